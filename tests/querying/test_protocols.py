"""How decoders ask for passages in each frame, and that no request is ever shown as an answer."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lclm_rag import KnowledgeBase
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting import FRAMES
from support.scripted import Scripted, scripted, words

QUESTION = "Which record is it?"
TURN = "<|im_end|>\n<|im_start|>assistant\n"


def texts(kb: KnowledgeBase, count: int) -> list[str]:
    """The texts of the best passages, in the order of the prompt."""
    hits = kb.retrieve(QUESTION, count)
    return [hit.text for hit in sorted(hits, key=lambda hit: hit.key)]


# --- chunks: the agent of the paper ---------------------------------------------------------------


def test_chunks_are_asked_for_and_given_as_the_papers_agent_does(string_kb: KnowledgeBase) -> None:
    replies = ("EXPAND: Chunk 2, Chunk 4", "EXPAND: 1", "ANSWER: XY-1")
    kb, decoder = scripted(string_kb, *replies, frame="chunks")
    answer = kb.query(QUESTION, 5, expand="model")
    assert answer.text == "XY-1"
    first, second, third = (words(kb, prompt) for prompt in decoder.prompts)
    system, user = first.split("<|im_end|>\n", 1)
    assert system.startswith("<|im_start|>system\n")
    for rule in ("EXPAND at least one chunk", "5 rounds", "about 8 characters"):
        assert rule in system
    assert user.startswith(
        "<|im_start|>user\n[Document — indexed chunks, compressed]\nChunk 1: <|memory"
    )
    assert user.endswith(f"\n\nQuestion: {QUESTION}{TURN}")
    given = texts(kb, 5)
    assert second == (
        f"{first}EXPAND: Chunk 2, Chunk 4<|im_end|>\n<|im_start|>user\n[EXPAND result]\n"
        f"Chunk 2:\n{given[1]}\n\nChunk 4:\n{given[3]}\n\n(4 round(s) of expansion left.){TURN}"
    )
    assert third.startswith(second)
    assert f"Chunk 1:\n{given[0]}\n\n(3 round(s)" in third[len(second) :]


def test_an_answer_before_the_first_expansion_is_not_taken(string_kb: KnowledgeBase) -> None:
    kb, decoder = scripted(string_kb, "ANSWER: it is in chunk 3", "ANSWER: XY-1", frame="chunks")
    answer = kb.query(QUESTION, 5, expand="model")
    assert (answer.text, len(answer.rounds)) == ("XY-1", 2)
    second = words(kb, decoder.prompts[1])
    assert "You must EXPAND at least one chunk" in second
    assert f"Chunk 3:\n{texts(kb, 5)[2]}\n" in second
    # An answer that mentions none gets the best one.
    kb, decoder = scripted(string_kb, "XY-2", "ANSWER: XY-1", frame="chunks")
    answer = kb.query(QUESTION, 5, expand="model")
    assert answer.expanded == [answer.sources[0].key]


def test_a_decoder_that_goes_on_asking_must_answer_in_a_last_turn(string_kb: KnowledgeBase) -> None:
    replies = [f"EXPAND: {n}" for n in range(1, 6)] + ["ANSWER: XY-1"]
    kb, decoder = scripted(string_kb, *replies, frame="chunks")
    answer = kb.query(QUESTION, 8, expand="model")
    assert (answer.text, len(answer.rounds), len(answer.expanded)) == ("XY-1", 6, 4)
    last = words(kb, decoder.prompts[-1]).rpartition("<|im_start|>user\n")[2]
    assert last == (
        "No more expansion rounds available. Write `ANSWER: <your final answer>` now." + TURN
    )


# --- segments: the tool of the supervised data ----------------------------------------------------

# As Qwen3's template puts tools and their results.
WITH_TOOLS = (
    "{%- if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "{%- if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def call(name: str) -> str:
    asked = json.dumps({"name": "expand", "arguments": {"segment_id": name}})
    return f"<tool_call>\n{asked}\n</tool_call>"


@pytest.fixture
def with_tools(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    folder = tmp_path / "with-tools"
    shutil.copytree(checkpoint.path, folder)
    (folder / "decoder" / "chat_template.jinja").write_text(WITH_TOOLS)
    return folder


@pytest.fixture
def segments(
    string_kb: KnowledgeBase, with_tools: Path
) -> Iterator[tuple[KnowledgeBase, Scripted]]:
    """A decoder that calls tools, whose replies are set by a test."""
    decoder = Scripted(string_kb.decoder, [])
    decoder.checkpoint = Checkpoint.open(with_tools)
    with KnowledgeBase.open(
        string_kb.path, checkpoint=with_tools, frame="segments", decoder=decoder
    ) as kb:
        yield kb, decoder


def test_a_segment_is_called_for_and_its_bare_text_comes_back(
    segments: tuple[KnowledgeBase, Scripted],
) -> None:
    kb, decoder = segments
    decoder.reply(call("seg_3"), f"{call('seg_1')}\n{call('seg_9')}", "FINAL: XY-1")
    answer = kb.query(QUESTION, 5, expand="model")
    assert answer.text == "XY-1"
    first, second, third = (words(kb, prompt) for prompt in decoder.prompts)
    assert '"required": ["segment_id"]' in first
    assert "<|im_start|>user\nContext segments:\n\nseg_1\n<|memory_start|>" in first
    assert first.endswith(f"\n\nQuestion:\n{QUESTION}{TURN}")
    given = texts(kb, 5)
    assert second == (
        f"{first}{call('seg_3')}<|im_end|>\n<|im_start|>user\n"
        f"<tool_response>\n{given[2]}\n</tool_response>{TURN}"
    )
    assert third[len(second) :] == (
        f"{call('seg_1')}\n{call('seg_9')}<|im_end|>\n<|im_start|>user\n"
        f"<tool_response>\n{given[0]}\n</tool_response>\n"
        f"<tool_response>\nThere is no seg_9.\n</tool_response>{TURN}"
    )


def test_sixteen_calls_and_an_answer(segments: tuple[KnowledgeBase, Scripted]) -> None:
    kb, decoder = segments
    decoder.reply(*[call(f"seg_{n}") for n in range(1, 17)], "FINAL: XY-1")
    answer = kb.query(QUESTION, 16, expand="model")
    assert (answer.text, len(answer.expanded), len(answer.rounds)) == ("XY-1", 16, 17)


def test_a_call_that_cannot_be_read_is_answered_with_how_to_call(
    segments: tuple[KnowledgeBase, Scripted],
) -> None:
    kb, decoder = segments
    decoder.reply('<tool_call>{"name": "search", "arguments": {}}</tool_call>', "FINAL: XY-1")
    assert kb.query(QUESTION, 5, expand="model").text == "XY-1"
    assert "Call expand, as for seg_1." in words(kb, decoder.prompts[1])


# --- nobody is shown a request --------------------------------------------------------------------

REQUESTS = (
    call("seg_3"),
    "EXPAND: 1, 2",
    '<tool_call>{"name": "expand", "argum',
    "EXPAND: Chunk 2",
)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("expand", ["auto", "never", 2, "model"])
def test_a_request_is_never_shown_as_the_answer(
    string_kb: KnowledgeBase,
    segments: tuple[KnowledgeBase, Scripted],
    frame: str,
    request_: str,
    expand: str | int,
) -> None:
    kb, decoder = segments if frame == "segments" else scripted(string_kb, frame=frame)
    decoder.reply(*[request_] * 20)
    answer = kb.query(QUESTION, 5, expand=expand)  # type: ignore[arg-type]
    assert (answer.text, answer.complete, answer.no_passages) == ("", False, False)
    assert "asked for passages" in answer.reason
    assert answer.sources


@pytest.mark.parametrize("request_", REQUESTS)
def test_no_stream_shows_a_request_either(
    string_kb: KnowledgeBase, request_: str, caplog: pytest.LogCaptureFixture
) -> None:
    kb, decoder = scripted(string_kb)
    decoder.reply(request_)
    assert list(kb.stream(QUESTION)) == []
    assert "asked for passages" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("FINAL: XY-1", "XY-1"),
        ("  ANSWER: XY-1 and more.  ", "XY-1 and more."),
        ("Expanding foam.", "Expanding foam."),
        ("EXPANDED METAL is a mesh.", "EXPANDED METAL is a mesh."),
        ("A", "A"),
        ("Final words come last.", "Final words come last."),
    ],
)
def test_what_is_no_request_is_shown_whole(
    string_kb: KnowledgeBase, reply: str, shown: str
) -> None:
    kb, decoder = scripted(string_kb)
    decoder.reply(reply, reply, reply)
    assert "".join(kb.stream(QUESTION)) == shown
    assert kb.query(QUESTION, expand="never").text == shown

    async def gathered() -> str:
        return "".join([piece async for piece in kb.astream(QUESTION)])

    assert asyncio.run(gathered()) == shown


def test_a_request_that_was_not_offered_is_granted_once(string_kb: KnowledgeBase) -> None:
    """A decoder that was trained to ask does so whatever it is offered."""
    kb, decoder = scripted(string_kb)
    decoder.reply("EXPAND: 2", "XY-1")
    answer = kb.query(QUESTION, 5)
    assert answer.text == "XY-1"
    assert texts(kb, 5)[1] in words(kb, decoder.prompts[1])
    assert len(answer.expanded) == 1
