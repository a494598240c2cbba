"""Questions that follow others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from lclm_rag import Answer, Document, KnowledgeBase, Sampling
from lclm_rag.decoding import Decoder, all_answered
from lclm_rag.prompting.frames import FRAMES
from lclm_rag.querying.query import Query
from support.scripted import Scripted, scripted, words

TOWNS = [
    Document("velun", "Velun lies in the hills. The mayor of Velun is Gedul Gizel."),
    Document("sorak", "Sorak lies by the sea. The mayor of Sorak is Tibor Malen."),
    Document("river", "The river that crosses Velun is the Hulamath."),
]
HISTORY = [
    ("user", "Who is the mayor of Velun?"),
    ("assistant", "Gedul Gizel is the mayor of Velun."),
]
ONE = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def towns(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder) -> Iterator[KnowledgeBase]:
    path = tmp_path_factory.mktemp("towns") / "kb"
    with KnowledgeBase.create(path, decoder=decoder, device="cpu") as kb:
        kb.add(TOWNS)
        yield kb


def test_a_decoder_that_knows_no_conversations_is_asked_the_questions_together(
    towns: KnowledgeBase,
) -> None:
    kb, told = scripted(towns, "The Hulamath.")
    answer = kb.query("Which river crosses it?", 1, history=HISTORY)
    assert answer.question == "Which river crosses it?"
    assert [hit.key.document_id for hit in answer.sources] == ["river"]
    assert "Question: Who is the mayor of Velun? Which river crosses it?" in words(
        kb, told.prompts[0]
    )
    assert "Gedul Gizel is the mayor" not in words(kb, told.prompts[0])
    assert len(answer.rounds) == 1


def test_a_question_that_refers_to_nothing_is_asked_alone(towns: KnowledgeBase) -> None:
    kb, told = scripted(towns, "Tibor Malen.")
    kb.query("Who is the mayor of Sorak?", 1, history=HISTORY)
    assert "Question: Who is the mayor of Sorak?" in words(kb, told.prompts[0])


@pytest.mark.parametrize("frame", [name for name in FRAMES if name != "numbered"])
def test_other_decoders_put_the_question_anew_and_see_the_conversation(
    frame: str, towns: KnowledgeBase
) -> None:
    kb, told = scripted(towns, ' "Which river crosses Velun?"\n', "The Hulamath.", frame=frame)
    answer = kb.query("Which river crosses it?", 1, history=HISTORY, expand="never")
    asked, _ = (words(kb, prompt) for prompt in told.prompts)
    assert asked.count("User: Who is the mayor of Velun?") == 1
    assert "Assistant: Gedul Gizel is the mayor of Velun." in asked
    assert "User: Which river crosses it?" in asked
    assert [hit.key.document_id for hit in answer.sources] == ["river"]
    assert [(r.purpose, r.reply) for r in answer.rounds] == [
        ("follow_up", "Which river crosses Velun?"),
        ("answer", "The Hulamath."),
    ]
    # The turns come after the passage's place, so that header and passages are a prefix of other prompts.
    span = told.prompts[1].spans[0]
    tokenizer = kb.checkpoint.decoder_tokenizer
    after = tokenizer.decode(told.prompts[1].token_ids[span.start + span.length :])
    assert after.index("Who is the mayor of Velun?") < after.index("Which river crosses it?")
    without = kb.assemble("Which river crosses Velun?", 1)
    assert (
        told.prompts[1].token_ids[: span.start + span.length]
        == (without.token_ids[: span.start + span.length])
    )


def test_all_ways_of_asking_take_a_conversation(towns: KnowledgeBase) -> None:
    question, rewritten = "Which river crosses it?", "Which river crosses Velun?"
    own: Any = {"top_k": 1, "history": HISTORY, "expand": "never"}
    kb, told = scripted(towns, *[rewritten, "The Hulamath."] * 4, frame="card")
    assert "".join(kb.stream(question, **own)) == "The Hulamath."

    async def ask() -> list[Any]:
        whole = await kb.aquery(question, **own)
        pieces = [piece async for piece in kb.astream(question, **own)]
        events = [event async for event in kb.astream_answer(question, **own)]
        return [whole.text, "".join(pieces), events]

    whole, streamed, events = asyncio.run(ask())
    assert whole == streamed == "The Hulamath."
    assert [hit.key.document_id for hit in events[0]] == ["river"]
    assert isinstance(events[-1], Answer)
    assert [r.purpose for r in events[-1].rounds] == ["follow_up", "answer"]
    assert len({tuple(prompt.token_ids) for prompt in told.prompts}) == 2


@pytest.mark.parametrize("reply", ["", "<think>Which?"])
def test_questions_are_joined_where_the_decoder_writes_none(
    reply: str, towns: KnowledgeBase
) -> None:
    kb, _ = scripted(towns, reply, "The Hulamath.", frame="card")
    answer = kb.query("Which river crosses it?", 1, history=HISTORY, expand="never")
    assert answer.rounds[0].reply == "Who is the mayor of Velun? Which river crosses it?"
    assert [hit.key.document_id for hit in answer.sources] == ["river"]


def test_the_oldest_turns_leave_first_and_that_is_said(towns: KnowledgeBase) -> None:
    long = [(role, f"{n} " + "word " * 200) for n in range(40) for role in ("user", "assistant")]
    kb, told = scripted(towns, "Which river crosses Velun?", "The Hulamath.", frame="card")
    answer = kb.query("Which river?", 1, history=[*long, *HISTORY], expand="never", sampling=ONE)
    assert 0 < answer.history_left_out < len(long)
    assert answer.to_dict()["history_left_out"] == answer.history_left_out
    shown = words(kb, told.prompts[1])
    assert "Gedul Gizel is the mayor" in shown
    assert "User: 0 word" not in shown
    assert told.prompts[1].positions < kb.context_length // 2


def test_older_turns_go_in_as_latents(towns: KnowledgeBase) -> None:
    story = "The harbour of Sorak was closed in winter, and its ships lay in the bay of Velun. " * 3
    history = [("user", "What about the harbour?"), ("assistant", story.strip()), *HISTORY]
    kb, told = scripted(towns, *["Which river crosses Velun?", "The Hulamath."] * 3, frame="card")

    def asked(**own: Any) -> Answer:
        return kb.query("Which river?", 1, history=history, expand="never", **own)

    plain, packed = asked(), asked(compress_history=True)
    assert packed.usage.positions < 0.7 * plain.usage.positions
    first, second = told.prompts[1], told.prompts[3]
    assert len(second.spans) == len(first.spans) + 2
    assert story.strip() not in words(kb, second)
    assert "Gedul Gizel is the mayor" in words(kb, second)  # The last turns stay as words.
    (alone,) = kb.compressor.compress([story.strip()])
    assert second.latents[-1].allclose(alone.cpu(), atol=1e-5)
    # They are encoded once.
    asked(compress_history=True)
    assert told.prompts[5].latents[-1] is second.latents[-1]


def test_every_decoder_takes_latents_after_the_passages(
    towns: KnowledgeBase, each_decoder: Decoder, decoder: Decoder
) -> None:
    """The latents of turns are no passages of the store."""
    history = [("user", "Which town is by the sea?"), ("assistant", "Sorak."), *HISTORY]
    query = Query.of(
        "Who is the mayor of Velun?", 1, sampling=ONE, history=history, compress_history=True
    )
    with KnowledgeBase.open(towns.path, frame="card", decoder=each_decoder) as kb:
        prompts = [
            kb.prompt_builder(asked.space).build(query, kb.reader.search(query)).prompt
            for asked in (each_decoder, decoder)
        ]
        assert [span.key is None for span in prompts[0].spans] == [False, True, True]
        (theirs,) = all_answered(each_decoder.complete(prompts[:1], ONE))
    (ours,) = all_answered(decoder.complete(prompts[1:], ONE))
    assert theirs.token_ids == ours.token_ids


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (["Why?"], r'is \(role, words\), such as \("user", "Why\?"\)'),
        ([("user",)], r"is \(role, words\)"),
        ([("user", 3)], r"is \(role, words\)"),
        ([("system", "Be brief.")], "the user's or the assistant's, not 'system'"),
    ],
)
def test_what_is_no_turn_is_refused(history: Any, message: str, towns: KnowledgeBase) -> None:
    with pytest.raises(ValueError, match=message):
        towns.query("Which river?", history=history)


def test_blank_turns_are_none(towns: KnowledgeBase) -> None:
    kb, told = scripted(towns, "The Hulamath.", frame="card")
    kb.query("Which river crosses Velun?", 1, history=[("user", " ")], expand="never")
    assert len(told.prompts) == 1
    assert isinstance(told, Scripted)
