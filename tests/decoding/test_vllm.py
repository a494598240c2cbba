"""vLLM in process: what is cached, what is sent, what happens under load and after a failure."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lclm_rag import KnowledgeBase, Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import Completion, Decoder, all_answered
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.decoding.vllm import VLLMDecoder
from lclm_rag.decoding.vllm.engine import latent_architecture
from lclm_rag.decoding.vllm.inputs import identifier, item_prompt
from lclm_rag.errors import DecoderError, PromptError
from lclm_rag.evaluation.datasets.exact_strings import exact_string_questions, with_exact_strings
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
from lclm_rag.prompting import PromptPassage, PromptTemplate, SoftPrompt, Span, assemble

BLOCK = 32
"""Positions in a block of the KV cache; only whole blocks are kept."""

ONE = Sampling(max_tokens=16)


def on_engine(decoder: VLLMDecoder, work: Callable[[], Any]) -> Any:
    """Run `work()`, which gives a coroutine, where the engine lives."""

    async def run() -> Any:
        return await work()

    return decoder.thread.run(run)


@pytest.fixture
def cold(items_decoder: VLLMDecoder) -> VLLMDecoder:
    """The shared engine, as if it had just been started."""
    on_engine(items_decoder, items_decoder.engine.reset_mm_cache)
    on_engine(items_decoder, items_decoder.engine.reset_encoder_cache)
    assert on_engine(items_decoder, items_decoder.engine.reset_prefix_cache)
    return items_decoder


@contextmanager
def counted_bytes(decoder: VLLMDecoder) -> Iterator[list[int]]:
    """The bytes of each message to the engine's process, counted at the socket."""
    sizes: list[int] = []
    client = decoder.engine.engine_core
    send = client._send_input_message

    def counting(message: Any, engine: Any) -> Any:
        sizes.append(sum(memoryview(part).nbytes for part in message))
        return send(message, engine)

    client._send_input_message = counting
    try:
        yield sizes
    finally:
        client._send_input_message = send


def passages(kb: KnowledgeBase, sheets: list[FactSheet], *, as_text: bool = False) -> list[Any]:
    """One passage a sheet, in encoder space, in the order of `sheets`."""
    keys = [hit.key for sheet in sheets for hit in kb.retrieve(sheet.document.text, 1)]
    return [
        PromptPassage(row.passage.key, row.passage.text, None if as_text else row.latents)
        for row in kb.store.read(keys)
    ]


def shared_positions(a: SoftPrompt, b: SoftPrompt) -> int:
    pairs = enumerate(zip(a.token_ids, b.token_ids, strict=False))
    return next(number for number, (x, y) in pairs if x != y)


@pytest.mark.parametrize("which", ["items_decoder", "mixed_decoder"])
def test_a_second_question_about_the_same_passages_finds_them_in_the_cache(
    which: str,
    request: pytest.FixtureRequest,
    cold: VLLMDecoder,
    knowledge_base: KnowledgeBase,
    sheets: list[FactSheet],
    template: PromptTemplate,
) -> None:
    asked: Decoder = request.getfixturevalue(which)
    found = passages(knowledge_base, sheets[10:14])
    if which == "mixed_decoder":
        found = [
            dataclasses.replace(
                p, latents=knowledge_base.adapter.project(p.latents, [len(p.latents)])
            )
            for p in found
        ]
    space = "encoder" if which == "items_decoder" else "decoder"
    first, second = (
        assemble(template, order, template.ends(question), 4000, space).prompt
        for order, question in ((found, "Who signed it?"), (found[::-1], "When was it opened?"))
    )
    # Retrieved in another rank order, they stand in the prompt in the same one.
    assert [span.key for span in first.spans] == [span.key for span in second.spans]
    shared = shared_positions(first, second)
    assert shared >= second.spans[-1].start + second.spans[-1].length
    (before,) = all_answered(asked.complete([first], ONE))
    (after,) = all_answered(asked.complete([second], ONE))
    assert before.cached_positions == 0
    assert after.cached_positions == shared // BLOCK * BLOCK


@pytest.mark.parametrize(
    ("which", "form"),
    [("items_decoder", "latents"), ("mixed_decoder", "latents"), ("items_decoder", "text")],
)
def test_another_salt_finds_nothing_in_the_cache(
    which: str, form: str, request: pytest.FixtureRequest, knowledge_base: KnowledgeBase
) -> None:
    asked: Decoder = request.getfixturevalue(which)
    prompt = knowledge_base.assemble("Who signed it?", 4, context=form)  # type: ignore[arg-type]
    answers = [
        all_answered(asked.complete([dataclasses.replace(prompt, cache_salt=salt)], ONE))[0]
        for salt in (f"{which} {form} a", f"{which} {form} a", f"{which} {form} b")
    ]
    whole = (prompt.positions - 1) // BLOCK * BLOCK
    assert [answer.cached_positions for answer in answers] == [0, whole, 0]
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids


def test_another_rank_order_from_retrieval_hits_the_same_cache(
    cold: VLLMDecoder, small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    """All five documents come back for questions that name them all, each time in another order."""
    small_kb._decoder = cold
    names = " ".join(sheet.document.id.replace("-", " ") for sheet in sheets[:5])
    answers = [
        small_kb.query(
            f"{sheet.questions[0].question} {sheet.document.text} {names}", 5, expand="never"
        )
        for sheet in sheets[:5]
    ]
    assert all(len(answer.sources) == 5 for answer in answers)
    assert len({tuple(hit.key for hit in answer.sources) for answer in answers}) > 1
    assert answers[0].usage.cached_positions == 0
    for answer in answers[1:]:
        cached = answer.usage.cached_positions
        assert cached is not None
        latents_end = max(
            span.start + span.length
            for span in small_kb.assemble(answer.question, 5, expand="never", space="encoder").spans
        )
        assert cached >= latents_end // BLOCK * BLOCK


def test_a_passage_that_the_engine_has_seen_is_sent_as_its_identifier_alone(
    cold: VLLMDecoder,
    knowledge_base: KnowledgeBase,
    sheets: list[FactSheet],
    template: PromptTemplate,
) -> None:
    found = passages(knowledge_base, sheets[20:28])
    tensors = sum(p.latents.nbytes for p in found)
    first, second, other = (
        assemble(template, chosen, template.ends(question), 4000, "encoder").prompt
        for chosen, question in (
            (found, "Who signed it?"),
            (found, "When was it opened?"),
            (found[3:6], "How much is it?"),  # Other neighbours, other places in the prompt.
        )
    )
    with counted_bytes(cold) as sent:
        all_answered(cold.complete([first], ONE))
        before = sum(sent)
        sent.clear()
        all_answered(cold.complete([second], ONE))
        all_answered(cold.complete([other], ONE))
        after = max(sent)
    assert before > tensors
    assert after < tensors / 20
    # Token ids, placeholders and identifiers: nothing that grows with the width of latents.
    assert after < 4 * second.positions + 400 * len(found)


def test_mixed_prompts_send_the_tensors_each_time(
    cold: VLLMDecoder,
    mixed_decoder: VLLMDecoder,
    knowledge_base: KnowledgeBase,
    questions: list[FactQuestion],
) -> None:
    """Why items exist."""
    prompt = knowledge_base.assemble(questions[0].question, 4)
    with counted_bytes(cold) as sent:
        all_answered(mixed_decoder.complete([prompt, prompt], ONE))
    assert min(sorted(sent)[-2:]) > prompt.positions * 192 * 4


def test_an_item_that_the_engine_has_dropped_is_sent_again(
    cold: VLLMDecoder,
    decoder: TransformersDecoder,
    knowledge_base: KnowledgeBase,
    questions: list[FactQuestion],
) -> None:
    prompt = knowledge_base.assemble(questions[5].question, 4, space="encoder")
    wanted = decoder.complete([knowledge_base.assemble(questions[5].question, 4)], ONE)
    all_answered(cold.complete([prompt], ONE))
    # The engine forgets its items; vLLM's front end goes on believing that it has them.
    on_engine(cold, cold.engine.engine_core.reset_mm_cache_async)
    on_engine(cold, cold.engine.reset_prefix_cache)
    with counted_bytes(cold) as sent:
        (answer,) = all_answered(cold.complete([prompt], ONE))
        assert answer.token_ids == all_answered(wanted)[0].token_ids
    assert len([size for size in sent if size > 200]) == 2
    assert sorted(sent)[-1] > sum(latents.nbytes for latents in prompt.latents)
    on_engine(cold, cold.engine.engine_core.reset_mm_cache_async)
    assert "".join(cold.stream(prompt, ONE)) == answer.text


def test_a_text_request_shares_the_header(
    cold: VLLMDecoder,
    checkpoint: Checkpoint,
    knowledge_base: KnowledgeBase,
    sheets: list[FactSheet],
) -> None:
    template = PromptTemplate.of(checkpoint, instruction="Answer from the passages. " * 10)
    as_latents, as_text = (
        assemble(template, found, template.ends("Who signed it?"), 4000, "encoder").prompt
        for found in (
            passages(knowledge_base, sheets[30:31]),
            passages(knowledge_base, sheets[30:31], as_text=True),
        )
    )
    assert as_latents.spans
    assert not as_text.spans
    header = shared_positions(as_latents, as_text) // BLOCK * BLOCK
    assert header >= 2 * BLOCK
    (first,) = all_answered(cold.complete([as_text], ONE))
    (second,) = all_answered(cold.complete([as_latents], ONE))
    assert (first.cached_positions, second.cached_positions) == (0, header)


def test_64_questions_at_once_and_one_is_cancelled(
    cold: VLLMDecoder,
    knowledge_base: KnowledgeBase,
    questions: list[FactQuestion],
    endless_question: str,
) -> None:
    wanted = [knowledge_base.query(q.question, 4).text for q in questions[:64]]
    kb = knowledge_base
    usual, kb._decoder = kb.decoder, cold
    long = Sampling(max_tokens=8000)

    async def ask_all() -> list[Any]:
        endless = asyncio.create_task(kb.aquery(endless_question, context="none", sampling=long))
        asked = [asyncio.create_task(kb.aquery(q.question, 4)) for q in questions[:64]]
        await asked[0]
        assert not endless.done()
        endless.cancel()
        answers = await asyncio.gather(*asked)
        with pytest.raises(asyncio.CancelledError):
            await endless
        return answers

    try:
        answers = asyncio.run(ask_all())
    finally:
        kb._decoder = usual
    assert [answer.text for answer in answers] == wanted
    assert nothing_is_open(cold)


def test_leaving_an_asynchronous_stream_ends_the_generation(
    items_decoder: VLLMDecoder, knowledge_base: KnowledgeBase, endless_question: str
) -> None:
    prompt = knowledge_base.assemble(endless_question, 2)
    long = Sampling(max_tokens=8000)

    async def read_two() -> list[str]:
        pieces = items_decoder.astream(prompt, long)
        read = [await anext(pieces), await anext(pieces)]
        await pieces.aclose()
        return read

    assert len(asyncio.run(read_two())) == 2
    assert nothing_is_open(items_decoder)


def nothing_is_open(decoder: VLLMDecoder) -> bool:
    for _ in range(100):
        if decoder.engine.get_num_unfinished_requests() == 0:
            return True
        time.sleep(0.1)
    return False


def test_a_passage_longer_than_a_window_is_several_items(
    items_decoder: VLLMDecoder, decoder: TransformersDecoder, checkpoint: Checkpoint
) -> None:
    placeholder = checkpoint.decoder_tokenizer.token_to_id("<|memory|>")
    latents = decoder.model.get_input_embeddings().weight[:600].detach()
    prompt = SoftPrompt([5, 6, *[placeholder] * 600, 7], (latents,), (Span(2, 600),))
    (item,) = all_answered(items_decoder.complete([prompt], ONE))
    (plain,) = all_answered(decoder.complete([prompt], ONE))
    assert item.token_ids == plain.token_ids
    engine_prompt = item_prompt(prompt, placeholder=placeholder, most_latents=256, fingerprint="f")
    assert engine_prompt["prompt_token_ids"] == [5, 6, *[placeholder] * 3, 7]
    sizes = [len(part) for part, _ in engine_prompt["multi_modal_data"]["latent"]]
    assert sizes == [256, 256, 88]


@pytest.mark.parametrize("which", ["items_decoder", "mixed_decoder"])
def test_a_prompt_longer_than_a_step_of_the_scheduler_gives_the_same_tokens(
    which: str,
    request: pytest.FixtureRequest,
    decoder: TransformersDecoder,
    knowledge_base: KnowledgeBase,
    questions: list[FactQuestion],
) -> None:
    asked: VLLMDecoder = request.getfixturevalue(which)
    prompt = knowledge_base.assemble(questions[7].question, 120)
    step = asked.engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert step < prompt.positions
    (wanted,) = all_answered(decoder.complete([prompt], ONE))
    (got,) = all_answered(asked.complete([prompt], ONE))
    assert got.token_ids == wanted.token_ids


def test_an_identifier_tells_content_dtype_space_and_checkpoint_apart() -> None:
    torch.manual_seed(0)
    latents = torch.randn(4, 6)
    changed = latents.clone()
    changed[3, 5] += 1e-6
    names = {
        identifier(latents, "encoder", "a"),
        identifier(latents, "decoder", "a"),
        identifier(latents, "encoder", "b"),
        identifier(latents.bfloat16(), "encoder", "a"),
        identifier(latents.view(6, 4), "encoder", "a"),
        identifier(changed, "encoder", "a"),
    }
    assert len(names) == 6
    assert identifier(latents.clone(), "encoder", "a") in names


def test_a_placeholder_outside_the_spans_is_refused(
    items_decoder: VLLMDecoder, knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    good = knowledge_base.assemble(questions[0].question, 2)
    placeholder = good.token_ids[good.spans[0].start]
    bad = dataclasses.replace(good, token_ids=[*good.token_ids, placeholder])
    refused, answered = items_decoder.complete([bad, good], ONE)
    assert isinstance(refused, PromptError)
    assert f"placeholder token at position {good.positions}" in str(refused)
    assert isinstance(answered, Completion)


def test_what_vllm_refuses_is_refused_in_its_own_words(
    items_decoder: VLLMDecoder, knowledge_base: KnowledgeBase
) -> None:
    prompt = knowledge_base.assemble("Who?", 2)
    (refused,) = items_decoder.complete([prompt], Sampling(max_tokens=4, temperature=3.0))
    assert isinstance(refused, PromptError)
    assert "vLLM refuses the prompt" in str(refused)
    assert "temperature" in str(refused)


@pytest.mark.vllm
def test_an_engine_that_cannot_start_says_why(checkpoint: Checkpoint) -> None:
    with pytest.raises(DecoderError, match=r"engine did not start: .*max_model_len"):
        VLLMDecoder.from_pretrained(checkpoint, "cpu", max_model_len=10**9)


def test_architectures_without_a_latent_class_use_mixed_prompts(checkpoint: Checkpoint) -> None:
    assert latent_architecture(checkpoint) == "LatentQwen3ForCausalLM"
    other = Checkpoint(checkpoint.name, checkpoint.path, checkpoint.config)
    other.__dict__["decoder_config"] = {
        **checkpoint.decoder_config,
        "architectures": ["MambaForCausalLM"],
    }
    assert latent_architecture(other) is None
    with pytest.raises(
        ValueError, match="no latent modality for the architecture MambaForCausalLM"
    ):
        VLLMDecoder.from_pretrained(other, inputs="items")


def test_what_was_skimmed_is_cached_when_passages_are_read_verbatim(
    cold: VLLMDecoder, sheets: list[FactSheet], tmp_path: Path
) -> None:
    """The chat only grows: the second round computes the passage and the question, not the latents."""
    rng = random.Random(5)
    with_strings = [with_exact_strings(sheet, rng) for sheet in sheets[:8]]
    question = exact_string_questions(with_strings[0])[0].question
    with KnowledgeBase.create(tmp_path / "kb", decoder=cold) as kb:
        kb.add(sheet.document for sheet in with_strings)
        answer = kb.query(question, 8, expand="model", sampling=Sampling(max_tokens=64))
    first, second = answer.rounds[:2]
    assert second.expanded
    assert first.cached_positions == 0
    assert second.cached_positions is not None
    assert second.cached_positions > first.positions - BLOCK
    assert second.cached_positions % BLOCK == 0


def test_a_users_overrides_are_added_to_those_of_the_latent_modality(
    items_decoder: VLLMDecoder, checkpoint: Checkpoint
) -> None:
    config = items_decoder.engine.model_config.hf_config
    assert config.a_users_own == "setting"
    assert config.architectures == [latent_architecture(checkpoint)]
    with pytest.raises(ValueError, match="hf_overrides cannot set architectures"):
        VLLMDecoder.from_pretrained(checkpoint, hf_overrides={"architectures": ["Own"]})
    with pytest.raises(ValueError, match="hf_overrides must be a dict"):
        VLLMDecoder.from_pretrained(checkpoint, hf_overrides=lambda config: config)
