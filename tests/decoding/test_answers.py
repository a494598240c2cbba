"""What is shown of replies: no thoughts, no requests, and all whole characters."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from lclm_rag import KnowledgeBase, Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.connectors.haystack import LatentGenerator
from lclm_rag.connectors.llama_index import LatentLLM
from lclm_rag.decoding import Decoder, aanswer_pieces, answer_pieces, answer_text
from lclm_rag.decoding.decoder import end_token_ids
from lclm_rag.decoding.detokenizer import Detokenizer, hidden_tokens
from lclm_rag.prompting import PromptTemplate, SoftPrompt
from support.scripted import Scripted, scripted

QUESTION = "Who signed it, and when was that?"
THOUGHTFUL = "<think>\nEXPAND: 1? Or 1999?\n</think>\n\nANSWER: In the spring."
ONE = Sampling(max_tokens=16)


def test_thoughts_are_in_the_transcript_and_nowhere_else(knowledge_base: KnowledgeBase) -> None:
    kb, _ = scripted(knowledge_base, THOUGHTFUL, THOUGHTFUL, THOUGHTFUL)
    answer = kb.query(QUESTION, 2)
    assert (answer.text, answer.complete, answer.reason) == ("In the spring.", True, "")
    assert answer.grounding.missing == ()
    assert [round_.reply for round_ in answer.rounds] == [THOUGHTFUL]
    assert "".join(kb.stream(QUESTION, 2)) == "In the spring."

    async def streamed() -> str:
        return "".join([piece async for piece in kb.astream(QUESTION, 2)])

    assert asyncio.run(streamed()) == "In the spring."


def test_a_decoder_that_only_thinks_has_not_answered(
    knowledge_base: KnowledgeBase, caplog: pytest.LogCaptureFixture
) -> None:
    kb, _ = scripted(knowledge_base, "<think>It was", "<think>It was")
    answer = kb.query(QUESTION, 2)
    assert (answer.text, answer.complete) == ("", False)
    assert "nothing but thoughts; raise max_tokens" in answer.reason
    with caplog.at_level(logging.WARNING):
        assert list(kb.stream(QUESTION, 2)) == []
    assert "still thinking at its last token; raise max_tokens" in caplog.text


def test_frameworks_get_the_answer_alone(knowledge_base: KnowledgeBase) -> None:
    kb, _ = scripted(knowledge_base, *[THOUGHTFUL] * 3)
    llm = LatentLLM(kb)
    assert llm.complete("Who?").text == "In the spring."
    assert [piece.text for piece in llm.stream_complete("Who?")][-1] == "In the spring."
    assert LatentGenerator(kb).run(QUESTION)["replies"] == ["In the spring."]


@pytest.fixture(scope="module")
def thinking(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The bundled checkpoint with a chat template that begins a thought, and tags that are special."""
    folder = tmp_path_factory.mktemp("thinking") / "checkpoint"
    shutil.copytree(checkpoint.path, folder)
    decoder = folder / "decoder"
    template = (decoder / "chat_template.jinja").read_text()
    begins = "{% if add_generation_prompt %}[THINK]\n{% endif %}"
    (decoder / "chat_template.jinja").write_text(template + begins)
    tokenizer = Tokenizer.from_file(str(decoder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[THINK]", AddedToken("[/THINK]", special=True)])
    tokenizer.save(str(decoder / "tokenizer.json"))
    config = json.loads((decoder / "config.json").read_text())
    config["vocab_size"] = tokenizer.get_vocab_size()
    (decoder / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(folder)


def asked(checkpoint: Checkpoint, question: str) -> SoftPrompt:
    ends = PromptTemplate.of(checkpoint).ends(question)
    return SoftPrompt([*ends.before, *ends.after])


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("It may be 8.[/THINK]\n\nNine.", "Nine."),
        ("It may be 8. EXPAND: 1", ""),
        ("8?[/THINK]ANSWER: Nine. [THINK]Or ten?[/THINK]", "Nine."),
        ("[/THINK]Nine.", "Nine."),
    ],
)
def test_a_prompt_that_begins_a_thought(
    reply: str, answer: str, thinking: Checkpoint, decoder: Decoder
) -> None:
    like = Scripted(decoder, [])
    like.checkpoint = thinking
    told = Scripted(like, [reply] * 3)
    prompt = asked(thinking, "What does [/THINK] mean?")

    async def streamed() -> str:
        return "".join([piece async for piece in aanswer_pieces(told, prompt, ONE)])

    (completion,) = told.complete([prompt], ONE)
    assert answer_text(thinking, prompt, completion) == answer
    assert "".join(answer_pieces(told, prompt, ONE)) == answer
    assert asyncio.run(streamed()) == answer


def test_a_question_about_thoughts_begins_none(checkpoint: Checkpoint, decoder: Decoder) -> None:
    told = Scripted(decoder, ["Nine."])
    assert list(answer_pieces(told, asked(checkpoint, "What is <think>"), ONE)) == ["Nin", "e."]


# --- tokens to text ------------------------------------------------------------------------------


def detokenizer(checkpoint: Checkpoint) -> Detokenizer:
    hidden = hidden_tokens(checkpoint, end_token_ids(checkpoint))
    return Detokenizer(checkpoint.decoder_tokenizer, hidden)


@given(
    text=st.text("aé€😀 \n<한", max_size=12),
    ids=st.lists(st.integers(0, 767), max_size=12),
    cut=st.integers(0, 3),
    sizes=st.lists(st.integers(1, 4), max_size=30),
)
def test_pieces_make_up_the_text_of_the_whole(
    text: str, ids: list[int], cut: int, sizes: list[int], checkpoint: Checkpoint
) -> None:
    written = [*checkpoint.inert_decoder_tokenizer.encode(text).ids, *ids]
    written = written[: len(written) - cut]
    whole = detokenizer(checkpoint).all(written)
    places = [0]
    for size in sizes:
        places.append(min(places[-1] + size, len(written)))
    pieces = detokenizer(checkpoint)
    shown = ""
    for start, end in pairwise([*places, len(written)]):
        shown += pieces(written[start:end])
        assert whole.startswith(shown)
    assert shown + pieces.end() == whole
    assert whole == checkpoint.chat_tokenizer.decode(written, skip_special_tokens=True)


def test_half_a_character_is_shown_as_such(checkpoint: Checkpoint) -> None:
    ids = checkpoint.inert_decoder_tokenizer.encode("a😀").ids[:-1]
    pieces = detokenizer(checkpoint)
    assert pieces(ids) == "a"
    assert set(pieces.end()) == {"\ufffd"}


def test_special_tags_around_thoughts_are_kept(thinking: Checkpoint) -> None:
    ids = thinking.decoder_tokenizer.encode("[THINK]8?[/THINK]Nine.<|im_end|>").ids
    assert detokenizer(thinking).all(ids) == "[THINK]8?[/THINK]Nine."
