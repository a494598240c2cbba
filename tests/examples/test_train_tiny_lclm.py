"""The training recipe asks exactly what the library will ask."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting import PromptTemplate, SoftPrompt, next_turn
from lclm_rag.prompting.replies import parse_reply
from lclm_rag.prompting.template import plain_ids
from lclm_rag.querying.expansion import Given, next_messages

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_tiny_lclm"


@pytest.fixture(scope="module", autouse=True)
def _example_on_the_path() -> object:
    sys.path.insert(0, str(EXAMPLE))
    yield
    sys.path.remove(str(EXAMPLE))


@pytest.mark.parametrize("latents", [True, False])
def test_a_block_is_computed_as_the_plain_prompt_would_be(
    template: PromptTemplate, latents: bool
) -> None:
    """Nothing of the answer, and nothing of another question, is seen before its time."""
    from data import make_batch
    from model import TinyLCLM
    from tokenizer import train_tokenizer

    torch.manual_seed(0)
    model = TinyLCLM(train_tokenizer(500)).eval()
    batch = make_batch(
        template, 4, seed=1, contexts=2, documents=2, questions=3, latents=latents, task="questions"
    )
    with torch.no_grad():
        states = model.answer_states(batch)
        embed = model.decoder.get_input_embeddings()
        context = embed(batch.context_ids)
        if latents:
            compressed = model.compress(batch.document_ids, batch.document_lengths)
            holes = (batch.context_ids == model.placeholder)[..., None]
            context = context.masked_scatter(holes, compressed)
        states = states.view(*batch.block_ids.shape, -1)
        for c in range(2):
            before = context[c, : batch.context_lengths[c]]
            for b in range(batch.block_ids.shape[1]):
                length = int((batch.labels[c, b] >= 0).nonzero().max()) + 1
                plain = torch.cat([before, embed(batch.block_ids[c, b, :length])])[None]
                expected = model.decoder.model(inputs_embeds=plain).last_hidden_state[
                    0, len(before) :
                ]
                torch.testing.assert_close(states[c, b, :length], expected, atol=1e-4, rtol=1e-3)


def test_training_prompts_are_the_assemblers(template: PromptTemplate) -> None:
    from data import draw_contexts, make_batch

    batch = make_batch(
        template, 4, seed=3, contexts=1, documents=2, questions=1, latents=False, task="repeat"
    )
    import random

    rng = random.Random(3)
    (sheets,) = draw_contexts(rng.getrandbits(60), 1, 2)
    bodies = [plain_ids(template.inert, sheet.document.text) for sheet in sheets]
    assert batch.context_ids[0].tolist() == template.context(template.start, bodies)[0]
    number = rng.randrange(2)
    asked = template.ends(f"Repeat passage {number + 1}.").after
    assert batch.block_ids[0, 0, : len(asked)].tolist() == asked
    learned = [i for i in batch.labels[0, 0].tolist() if i >= 0]
    assert template.inert.decode(learned).strip() == sheets[number].document.text


def test_a_skimming_block_is_the_librarys_chat(
    checkpoint: Checkpoint, template: PromptTemplate
) -> None:
    """Question, wish, passage verbatim, answer: as `KnowledgeBase.query(expand="model")` goes on."""
    from expansion_data import between_turns, make_expansion_batch

    batch = make_expansion_batch(
        template,
        between_turns(template),
        4,
        seed=2,
        contexts=1,
        documents=3,
        questions=4,
        style="skim",
    )
    offered = template.offering(checkpoint, None)
    context = batch.context_ids[0].tolist()
    header = offered.context(offered.start, [])[0]
    assert context[: len(header)] == header
    chats = 0
    for block, labels in zip(batch.block_ids[0].tolist(), batch.labels[0].tolist(), strict=True):
        length = max(i for i, label in enumerate(labels) if label >= 0) + 1
        said = [label for label in labels if label >= 0]
        words = template.inert.decode(said, skip_special_tokens=False)
        if not words.startswith("EXPAND: "):
            assert words.startswith("ANSWER: ")
            continue
        chats += 1
        number = parse_reply(words.partition("<|im_end|>")[0], 3).numbers[0]
        wish = [*plain_ids(template.inert, f"EXPAND: {number}"), template.end_of_turn]
        start = labels.index(wish[0]) + 1
        first = SoftPrompt(context + block[:start])
        shown = template.inert.decode(block, skip_special_tokens=False)
        passage = shown.partition(f"[{number}] ")[2].partition("\n")[0]
        question = shown.partition("Question: ")[2].partition("<|im_end|>")[0]
        given = Given(((number, passage),), (), question, left=2, last=False)
        turn = next_messages(template.frame, given, by_tool=False)
        grown = next_turn(checkpoint, template, first, wish, turn).token_ids
        assert (context + block[:length])[: len(grown)] == grown
        answer = said[len(wish) :]
        assert (context + block[:length] + [said[-1]])[len(grown) :] == answer
    assert chats >= 1


def test_training_resumes_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one step each end where one run of two steps does."""
    import train

    monkeypatch.setattr(train, "CONTEXTS", dict.fromkeys((1, 2, 4, 8), 1))

    def state(folder: Path, stops: list[int]) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        for stop in stops:
            train.train(folder, folder / "out", steps_b=1, max_level_a=1, stop_at=stop)
        return load_file(folder / "state.safetensors")

    once, twice = state(tmp_path / "once", [2]), state(tmp_path / "twice", [1, 2])
    assert once.keys() == twice.keys()
    for name, tensor in once.items():
        torch.testing.assert_close(tensor, twice[name], msg=name)
