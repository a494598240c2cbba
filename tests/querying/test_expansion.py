"""Skim, then expand: what goes into the prompt verbatim, who decides it, and what it costs."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclm_rag import KnowledgeBase
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import Sampling
from lclm_rag.errors import CheckpointError
from lclm_rag.evaluation.datasets.exact_strings import exact_string_questions
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
from lclm_rag.evaluation.measures import exact_match
from lclm_rag.prompting import SoftPrompt
from lclm_rag.prompting.replies import parse_reply
from lclm_rag.querying.expansion import EXPAND_TOOL, Expand
from lclm_rag.types import PassageKey
from support.commands import Run
from support.scripted import Scripted, scripted, words

# --- by rule ----------------------------------------------------------------------------------------


def test_passages_that_are_named_go_in_verbatim(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion]
) -> None:
    question = string_questions[0].question
    hits = string_kb.retrieve(question, 5)
    chosen = hits[3].key, hits[1].key
    answer = string_kb.query(
        question, 5, expand=(*chosen, PassageKey("no such", 0)), sampling=Sampling(max_tokens=4)
    )
    assert set(answer.expanded) == set(chosen)
    with pytest.raises(ValueError, match="expand takes keys of passages"):
        string_kb.assemble(question, expand=PassageKey("velun", 0))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_number_puts_so_many_of_the_best_in_verbatim(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion], count: int
) -> None:
    question = string_questions[0].question
    answer = string_kb.query(question, 5, expand=count, sampling=Sampling(max_tokens=4))
    best = [hit.key for hit in answer.sources[:count]]
    assert answer.expanded == best
    prompt = string_kb.assemble(question, 5, expand=count, max_tokens=4)
    seen = words(string_kb, prompt)
    for rank, hit in enumerate(answer.sources):
        assert (hit.text in seen) == (rank < count)
    assert {span.key for span in prompt.spans} == {h.key for h in answer.sources[count:]}
    assert answer.usage.positions == prompt.positions
    skimmed = string_kb.assemble(question, 5, expand="never", max_tokens=4)
    assert answer.usage.unexpanded_positions == skimmed.positions
    assert (prompt.positions > skimmed.positions) == (count > 0)


def test_always_is_the_prompt_of_pasted_text(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion]
) -> None:
    question = string_questions[1].question
    always = string_kb.assemble(question, 4, expand="always")
    assert always.token_ids == string_kb.assemble(question, 4, context="text").token_ids
    assert always.spans == ()


def test_auto_expands_where_the_question_asks_for_an_exact_string_and_only_there(
    string_kb: KnowledgeBase, string_sheets: list[FactSheet]
) -> None:
    for sheet in string_sheets[:10]:
        for question in sheet.questions:
            auto = string_kb.assemble(question.question, 4)
            never = string_kb.assemble(question.question, 4, expand="never")
            expanded = auto.token_ids != never.token_ids
            wanted = "code" in question.question or " id " in question.question
            assert expanded == (wanted or "reference" in question.question), question.question


def test_what_has_no_room_stays_as_latents_and_is_named(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion]
) -> None:
    question = string_questions[2].question
    skimmed = string_kb.assemble(question, 5, expand="never", max_tokens=8)
    one = string_kb.assemble(question, 5, expand=1, max_tokens=8)
    kb, decoder = scripted(string_kb, "yes")
    decoder.context_length = one.positions + 8
    answer = kb.query(question, 5, expand="always", sampling=Sampling(max_tokens=8))
    (round_,) = answer.rounds
    assert answer.expanded
    assert round_.no_room
    assert not set(answer.expanded) & set(round_.no_room)
    assert len(answer.expanded) + len(round_.no_room) == 5
    assert answer.left_out == []
    assert skimmed.positions <= answer.usage.positions <= one.positions


def test_an_answer_that_its_sources_do_not_have_is_asked_once_more(
    string_kb: KnowledgeBase, string_sheets: list[FactSheet]
) -> None:
    """The question's words do not tell that a code is wanted; the answer does."""
    sheet = string_sheets[0]
    right = exact_string_questions(sheet)[0].answer
    question = f"Under what is {sheet.name} filed?"
    kb, decoder = scripted(string_kb, "ZZ-99Q-1", f"It is {right}.")
    answer = kb.query(question, 6)
    assert answer.text == f"It is {right}."
    assert (answer.grounding.found, answer.grounding.missing) == ((right,), ())
    first, second = answer.rounds
    assert first.reply == "ZZ-99Q-1"
    assert first.expanded == ()
    assert list(second.expanded) == [hit.key for hit in answer.sources[:3]]
    assert first.positions < second.positions == answer.usage.positions
    assert answer.usage.unexpanded_positions == first.positions
    assert answer.timings.first_token == pytest.approx(0.1 + 0.01)
    assert right in words(kb, decoder.prompts[1])
    assert right not in words(kb, decoder.prompts[0])


def test_it_is_asked_no_third_time(
    string_kb: KnowledgeBase, string_sheets: list[FactSheet]
) -> None:
    kb, _ = scripted(string_kb, "ZZ-99Q-1 and ZZ-99Q-3", "ZZ-99Q-2")
    answer = kb.query(f"Under what is {string_sheets[0].name} filed?", 6)
    assert answer.text == "ZZ-99Q-2"
    assert answer.grounding.missing == ("ZZ-99Q-2",)


@pytest.mark.parametrize(
    "second", ["ZZ-99Q-2", "ZZ-99Q-2 or ZZ-99Q-3", " ", "<think>What now?</think>", "EXPAND: 5"]
)
def test_a_second_answer_that_is_not_better_grounded_is_not_taken(
    string_kb: KnowledgeBase, string_sheets: list[FactSheet], second: str
) -> None:
    kb, decoder = scripted(string_kb, "It is ZZ-99Q-1.", second)
    answer = kb.query(f"Under what is {string_sheets[0].name} filed?", 6)
    assert (answer.text, answer.complete, answer.reason) == ("It is ZZ-99Q-1.", True, "")
    assert answer.grounding.missing == ("ZZ-99Q-1",)
    assert [r.reply for r in answer.rounds] == ["It is ZZ-99Q-1.", second.strip()]
    assert answer.usage.generated_tokens == sum(r.generated_tokens for r in answer.rounds)
    assert answer.usage.positions == decoder.prompts[1].positions
    assert answer.timings.first_token == pytest.approx(0.1 + 0.01)


def test_thoughts_raise_no_alarm(string_kb: KnowledgeBase, string_sheets: list[FactSheet]) -> None:
    kb, _ = scripted(string_kb, "<think>ZZ-99Q-1?</think>I do not know.")
    answer = kb.query(f"Under what is {string_sheets[0].name} filed?", 6)
    assert (answer.text, len(answer.rounds)) == ("I do not know.", 1)


@pytest.mark.parametrize("expand", ["never", "always", 2])
def test_only_auto_asks_once_more(
    string_kb: KnowledgeBase, string_sheets: list[FactSheet], expand: Expand
) -> None:
    kb, _ = scripted(string_kb, "ZZ-99Q-1")
    answer = kb.query(f"Under what is {string_sheets[0].name} filed?", 6, expand=expand)
    assert answer.grounding.missing == ("ZZ-99Q-1",)


@pytest.mark.slow
def test_codes_and_ids_come_back_exactly(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion]
) -> None:
    """With the real decoder: exact strings from latents are lost, expanded they are right."""

    def right(expand: Expand) -> float:
        sampling = Sampling(max_tokens=64)
        answers = [
            string_kb.query(q.question, 5, expand=expand, sampling=sampling)
            for q in string_questions
        ]
        return sum(
            exact_match(a.text, q.answer) for a, q in zip(answers, string_questions, strict=True)
        ) / len(answers)

    assert right("never") < 0.5
    assert right("auto") >= 0.9


# --- by the decoder's wish --------------------------------------------------------------------------


def test_the_decoder_reads_what_it_asks_for_in_a_chat_that_only_grows(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion]
) -> None:
    question = string_questions[3]
    kb, decoder = scripted(string_kb, "EXPAND: 2, 9", f"ANSWER: {question.answer}")
    answer = kb.query(question.question, 5, expand="model")
    assert answer.text == question.answer
    first, second = decoder.prompts
    assert first.token_ids == second.token_ids[: first.positions]
    assert (first.latents, first.spans) == (second.latents, second.spans)
    place = sorted(hit.key for hit in answer.sources)[1]
    (text,) = [hit.text for hit in answer.sources if hit.key == place]
    grown = words(kb, SoftPrompt(second.token_ids[first.positions :]))
    assert grown.startswith("EXPAND: 2, 9<|im_end|>\n<|im_start|>user\n")
    assert f"[2] {text}\n" in grown
    assert "There is no passage 9." in grown
    assert grown.endswith("<|im_start|>assistant\n")
    assert [r.expanded for r in answer.rounds] == [(), (place,)]
    assert [r.positions for r in answer.rounds] == [first.positions, second.positions]
    assert answer.usage.unexpanded_positions == first.positions


def test_rounds_are_bounded(string_kb: KnowledgeBase) -> None:
    kb, decoder = scripted(string_kb, *[f"EXPAND: {n}" for n in range(1, 9)])
    answer = kb.query("Which record is it?", 5, expand="model")
    assert len(answer.rounds) == kb.frame.expansion.rounds == len(decoder.prompts) == 3
    assert "EXPAND:" in words(kb, decoder.prompts[0])
    last = words(kb, decoder.prompts[-1]).rpartition("<|im_start|>user")[2]
    assert "Nothing more can be expanded." in last
    assert "Nothing more can be expanded." not in words(kb, decoder.prompts[-2])
    assert (answer.text, answer.complete, answer.no_passages) == ("", False, False)
    assert "asked for passages" in answer.reason


def test_a_passage_that_was_read_is_not_given_again(string_kb: KnowledgeBase) -> None:
    kb, decoder = scripted(string_kb, "EXPAND: 1", "EXPAND: 1, 2", "ANSWER: x")
    answer = kb.query("Which record is it?", 5, expand="model")
    _, second, third = answer.rounds
    told = "Passage 1 is above, verbatim."
    assert [told in words(kb, prompt) for prompt in decoder.prompts] == [False, False, True]
    assert len(second.expanded) == len(third.expanded) == 1
    assert second.expanded != third.expanded


def test_an_empty_reply_is_an_empty_answer(string_kb: KnowledgeBase) -> None:
    kb, _ = scripted(string_kb, " ")
    answer = kb.query("Which record is it?", 5, expand="model")
    assert (answer.text, len(answer.rounds)) == ("", 1)


def test_a_wish_for_which_there_is_no_room_is_told(string_kb: KnowledgeBase) -> None:
    kb, decoder = scripted(string_kb, "EXPAND: 1, 2, 3", "ANSWER: x")
    first = string_kb.assemble("Which record is it?", 5, expand="model", max_tokens=8)
    decoder.context_length = first.positions + 360
    answer = kb.query("Which record is it?", 5, expand="model", sampling=Sampling(max_tokens=8))
    second = answer.rounds[1]
    assert second.expanded
    assert second.no_room
    assert len(second.expanded) + len(second.no_room) == 3
    assert second.positions + 8 <= decoder.context_length
    assert "There is no room for passage" in words(kb, decoder.prompts[1])


@pytest.mark.slow
def test_the_bundled_decoder_asks_where_it_must_and_reads_what_it_is_given(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion], string_sheets: list[FactSheet]
) -> None:
    """Which passage it asks for is often the wrong one: it is small (docs/decisions/expansion.md)."""
    sampling = Sampling(max_tokens=64)
    for_strings = [
        string_kb.query(q.question, 5, expand="model", sampling=sampling) for q in string_questions
    ]
    assert sum(len(a.rounds) > 1 for a in for_strings) >= 0.8 * len(for_strings)
    read = [
        exact_match(answer.text, question.answer)
        for answer, question in zip(for_strings, string_questions, strict=True)
        if question.document_id in {key.document_id for key in answer.expanded}
    ]
    assert len(read) >= 3
    assert sum(read) >= 0.8 * len(read)
    others = [
        string_kb.query(sheet.questions[0].question, 5, expand="model", sampling=sampling)
        for sheet in string_sheets[:12]
    ]
    assert sum(len(a.rounds) == 1 for a in others) >= 0.8 * len(others)


# --- by a tool --------------------------------------------------------------------------------------

_WITH_TOOLS = (
    "{%- if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'tool' %}{{- '<tool_response>\n' + message.content + '</tool_response>' }}"
    "{%- else %}{{- message.content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def test_a_decoder_that_calls_tools_is_given_one(
    tmp_path: Path, string_kb: KnowledgeBase, checkpoint: Checkpoint
) -> None:
    folder = tmp_path / "with-tools"
    shutil.copytree(checkpoint.path, folder)
    (folder / "decoder" / "chat_template.jinja").write_text(_WITH_TOOLS)
    called = json.dumps({"name": "expand", "arguments": {"passages": [1]}})
    decoder = Scripted(string_kb.decoder, [f"<tool_call>\n{called}\n</tool_call>", "It is so."])
    decoder.checkpoint = Checkpoint.open(folder)
    with KnowledgeBase.open(string_kb.path, checkpoint=folder, decoder=decoder) as kb:
        answer = kb.query("Which record is it?", 5, expand="tool")
        first, second = (words(kb, prompt) for prompt in decoder.prompts)
    assert answer.text == "It is so."
    assert json.dumps(EXPAND_TOOL["function"]["name"]) in first
    assert "EXPAND:" not in first
    assert second.startswith(first)
    key = answer.expanded[0]
    (text,) = [hit.text for hit in answer.sources if hit.key == key]
    assert f"<|im_start|>tool\n<tool_response>\n[1] {text}\n</tool_response>" in second


def test_a_chat_template_without_tools_is_named(string_kb: KnowledgeBase) -> None:
    with pytest.raises(CheckpointError, match="offers no tools"):
        string_kb.query("Which record is it?", expand="tool")


# --- what decoders write ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "numbers"),
    [
        ("EXPAND: 3, 5", (3, 5)),
        ("EXPAND(3), EXPAND(5)", (3, 5)),
        ("expand(3)", (3,)),
        ("**EXPAND:** passages 3–5", (3, 4, 5)),
        ("EXPAND: passage 2 and passage 4", (2, 4)),
        ("EXPAND [3] and [5].", (3, 5)),
        ("`EXPAND: 3`", (3,)),
        ("- EXPAND: #1 & #2", (1, 2)),
        ("I need the exact code. EXPAND: 3", (3,)),
        ("Expand passage 4.", (4,)),
        ("EXPAND: 3 (it has the code)", (3,)),
        ("<think>ANSWER: no, EXPAND: 2</think>\nEXPAND: 7", (7,)),
        ("It may be 2.</think>EXPAND: 7", (7,)),
        ("[THINK]EXPAND: 1[/THINK]EXPAND: 7", (7,)),
        ("ANSWER: AB-1\nEXPAND: 2", (2,)),
        ("EXPAND：3，5", (3, 5)),
        ("EXPAND： ３、５", (3, 5)),
        ("ＥＸＰＡＮＤ（3）", (3,)),
        ("EXPAND：【3】【5】", (3, 5)),
        ('<tool_call>\n{"name": "expand", "arguments": {"passages": [3, 5]}}\n</tool_call>', (3, 5)),
        ('{"name": "expand", "arguments": "{\\"passages\\": [6]}"}', (6,)),
        ('{"name": "expand", "parameters": {"passages": "2"}}', (2,)),
        ("EXPAND: Chunk 7, 3", (7, 3)),
        ("EXPAND: Chunk 7, Chunk 3", (7, 3)),
        ("EXPAND: chunks 7 and 3", (7, 3)),
        ("EXPAND: seg_7, seg_3", (7, 3)),
        ("EXPAND: <7, 3>", (7, 3)),
        ("EXPAND: 7,3 to find the code", (7, 3)),
        ("EXPAND → 7", (7,)),
        ("EXPAND: segments 3 through 5", (3, 4, 5)),
        ("EXPAND: all", (1, 2, 3, 4, 5, 6, 7, 8)),
        ('<tool_call>\n{"name": "expand", "arguments": {"segment_id": "seg_3"}}\n</tool_call>', (3,)),
        ('<tool_call>{"name": "expand", "arguments": {"segment_id": "seg_3"}}</tool_call>\n'
         '<tool_call>{"name": "expand", "arguments": {"segment_id": "seg_5"}}</tool_call>', (3, 5)),
        ('I look at it. <tool_call>{"name": "expand", "arguments": {"segment_id": 3}', (3,)),
        ('{"name": "expand", "arguments": {"segment_ids": ["seg_3", "seg_5"]}}', (3, 5)),
        ('```json\n{"name": "expand", "arguments": {"segment_id": "seg_3"}}\n```', (3,)),
        ('expand(segment_id="seg_3")', (3,)),
        ("<tool_call>\n<function=expand>\n<parameter=segment_id>\nseg_3\n</parameter>\n</function>", (3,)),
        ('<expand segment_id="seg_3"/>', (3,)),
        ("EXPAND: Chunk 7 (Tides), Chunk 3 (Bees)", (7, 3)),
        ("EXPAND the following chunks: 7, 3", (7, 3)),
        ("function_call: expand(segment_id='seg_7')", (7,)),
        ('{"segment_id": "seg_7"}', (7,)),
        ("{'name': 'expand', 'arguments': {'segment_id': 'seg_7'}}", (7,)),
        ('<|tool_call|>{"name": "expand", "arguments": {"id": 7}}', (7,)),
    ],
)  # fmt: skip
def test_wishes_in_the_forms_that_decoders_write(written: str, numbers: tuple[int, ...]) -> None:
    reply = parse_reply(written, 8)
    assert (reply.numbers, reply.unknown, reply.answer) == (numbers, (), "")


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("ANSWER: AB-1234", "AB-1234"),
        ("**ANSWER:** AB-1234", "AB-1234"),
        ("Answer: 5 - 3", "5 - 3"),
        ("AB-1234", "AB-1234"),
        ("EXPAND: 3\nANSWER: AB-1234", "AB-1234"),
        ("They expand 3 stores.", "They expand 3 stores."),
        ("ANSWER: Expand 3 stores in Berlin", "Expand 3 stores in Berlin"),
        ("ANSWER: first\nsecond", "first\nsecond"),
        ("<think>EXPAND: 1</think>ANSWER: q", "q"),
        ("EXPAND: 1</think>q", "q"),
        ("<think>EXPAND: 1", ""),
        ("ANSWER： 九（9）时，开始。", "九（9）时，开始。"),
        ("FINAL：AB-1234", "AB-1234"),
        ('<tool_call>{"name": "search", "arguments": {}}</tool_call> Paris', "Paris"),
        ("FINAL: AB-1234", "AB-1234"),
        ("Final answer: AB-1234", "AB-1234"),
        ('{"answer": 3}', '{"answer": 3}'),
        ("[]", "[]"),
        ("{}", "{}"),
        ("The function expand(x) doubles 3.", "The function expand(x) doubles 3."),
    ],
)  # fmt: skip
def test_answers_in_the_forms_that_decoders_write(written: str, answer: str) -> None:
    reply = parse_reply(written, 8)
    assert (reply.numbers, reply.answer) == ((), answer)


def test_numbers_of_no_passage_are_told_apart() -> None:
    reply = parse_reply("EXPAND: 0, 3, 9, 3", 8)
    assert (reply.numbers, reply.unknown) == ((3,), (0, 9))


@given(
    numbers=st.lists(st.integers(1, 30), min_size=1, max_size=8, unique=True),
    passages=st.integers(1, 30),
    form=st.sampled_from(
        ["EXPAND: {}", "expand({})", "**EXPAND** [{}]", "Let me see.\nEXPAND {}."]
    ),
    separator=st.sampled_from([", ", " and ", "; ", " ", "] [", ",\t"]),
)
def test_every_number_of_a_wish_is_read(
    numbers: list[int], passages: int, form: str, separator: str
) -> None:
    reply = parse_reply(form.format(separator.join(map(str, numbers))), passages)
    assert list(reply.numbers) == [n for n in numbers if n <= passages]
    assert list(reply.unknown) == [n for n in numbers if n > passages]


@given(st.text(max_size=200), st.integers(0, 9))
def test_any_reply_can_be_read(written: str, passages: int) -> None:
    reply = parse_reply(written, passages)
    assert all(1 <= n <= passages for n in reply.numbers)
    assert not (reply.numbers and reply.answer)


# --- everywhere else --------------------------------------------------------------------------------


def test_streams_and_event_loops_expand_as_query_does(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion]
) -> None:
    question, sampling = string_questions[0].question, Sampling(max_tokens=64)
    expected = string_kb.query(question, 5, sampling=sampling)
    assert expected.expanded
    assert "".join(string_kb.stream(question, 5, sampling=sampling)) == expected.text
    found = asyncio.run(string_kb.aquery(question, 5, sampling=sampling))
    assert (found.text, found.expanded) == (expected.text, expected.expanded)
    by_wish = string_kb.query(question, 5, expand="model", sampling=sampling)
    found = asyncio.run(string_kb.aquery(question, 5, expand="model", sampling=sampling))
    assert [r.reply for r in found.rounds] == [r.reply for r in by_wish.rounds]


@pytest.mark.parametrize("expand", ["model", "tool"])
def test_a_stream_shows_one_round_only(string_kb: KnowledgeBase, expand: Expand) -> None:
    with pytest.raises(ValueError, match="several rounds"):
        next(iter(string_kb.stream("Who?", expand=expand)))


@pytest.mark.parametrize("expand", ["sometimes", -1, True, 1.5])
def test_an_unknown_expand_is_refused(string_kb: KnowledgeBase, expand: Expand) -> None:
    with pytest.raises(ValueError, match="expand"):
        string_kb.query("Who?", expand=expand)


@pytest.mark.parametrize("form", ["text", "none"])
def test_where_nothing_is_latents_nothing_is_expanded(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion], form: str
) -> None:
    question = string_questions[0].question
    for expand in ("auto", "model", "always"):
        answer = string_kb.query(question, 2, context=form, expand=expand)  # type: ignore[arg-type]
        assert answer.expanded == []
        assert len(answer.rounds) == 1


def test_at_the_shell(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion], run: Run
) -> None:
    question, kb = string_questions[0], str(string_kb.path)
    code, out, _ = run("query", "--kb", kb, question.question, "--top-k", "5")
    assert code == 0
    assert f"{question.document_id}#0" in out
    assert "(verbatim)" in out
    code, out, _ = run("query", "--kb", kb, question.question, "--expand", "2", "--json")
    told = json.loads(out)
    assert len(told["expanded"]) == 2
    assert told["usage"]["positions"] > told["usage"]["unexpanded_positions"]
    assert told["grounding"].keys() == {"found", "missing"}
    assert told["rounds"][0]["expanded"] == told["expanded"]
    code, _, err = run("query", "--kb", kb, "Who?", "--expand", "some")
    assert code == 2
    assert "auto, never, always, model, tool, or a number" in err
    code, _, err = run("chat", "--kb", kb, "--expand", "model")
    assert code == 2


def test_a_passage_is_read_at_the_shell(
    string_kb: KnowledgeBase, string_sheets: list[FactSheet], run: Run
) -> None:
    document = string_sheets[0].document
    code, out, _ = run("show", "--kb", str(string_kb.path), document.id, "0")
    assert (code, out) == (0, document.text + "\n")
    code, out, _ = run(
        "show", "--kb", str(string_kb.path), document.id, "0", "--json", "--after", "2"
    )
    (passage,) = json.loads(out)
    assert (passage["text"], passage["ordinal"]) == (document.text, 0)
    code, _, err = run("show", "--kb", str(string_kb.path), document.id, "7")
    assert code == 1
    assert str(PassageKey(document.id, 7)) in err
