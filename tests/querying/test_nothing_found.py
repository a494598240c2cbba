"""Where no passage is found nothing is decoded, whichever way the question comes; and it is said why."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # It is read when Haystack is imported.

import pytest
from mcp import Client

from lclm_rag import Answer, Completion, Document, KnowledgeBase, PromptError, Sampling, SoftPrompt
from lclm_rag.connectors.haystack import LatentGenerator
from lclm_rag.connectors.langchain import LatentAnswer
from lclm_rag.connectors.mcp import mcp_server
from lclm_rag.decoding import Decoder
from lclm_rag.decoding.decoder import Finished
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.evaluation.contexts import parse_context
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet
from lclm_rag.evaluation.run import evaluate
from lclm_rag.retrieval import field
from support.commands import Run

TOWNS = [
    Document(
        "velun", "The mayor of Velun is Gedul Gizel.", {"year": 2020, "code": "7", "new": True}
    ),
    Document("sorak", "The mayor of Sorak is Tibor Malen.", {"year": 2021, "lang": ["en", "de"]}),
]
QUESTION = "Who is the mayor of Velun?"


class SilentDecoder(Decoder):
    """A decoder that must not be asked."""

    def __init__(self, real: TransformersDecoder) -> None:
        self.checkpoint, self.context_length = real.checkpoint, real.context_length

    def complete(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> list[Completion | PromptError]:
        raise AssertionError("It was asked.")

    def stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
    ) -> Generator[str]:
        raise AssertionError("It was asked.")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("towns") / "kb"
    with KnowledgeBase.create(path, device="cpu") as kb:
        kb.add(TOWNS)
    return path


@pytest.fixture
def kb(built: Path, decoder: TransformersDecoder) -> Iterator[KnowledgeBase]:
    with KnowledgeBase.open(built, decoder=SilentDecoder(decoder), device="cpu") as opened:
        yield opened


NO_KEY = "No passage has the metadata key 'yaer'; there are 'code', 'lang', 'new' and 'year'."
NOTHING: list[tuple[str, Any, str]] = [
    (QUESTION, {"yaer": 2020}, NO_KEY),
    (QUESTION, {"year": 1900}, "No passage matches the filter."),
    (QUESTION, {"year": "2020"}, "The filter compares 'year' with the text '2020'"),
    (
        QUESTION,
        {"code": 7},
        'its values are text: write code="7" for the text, or build with --num',
    ),
    (QUESTION, field("code") >= 1, "The filter compares 'code' with the number 1"),
    (QUESTION, {"new": "true"}, "its values are of another kind: true or false"),
    ("who", None, "No passage shares a word with the question"),
    ("Sorak?", {"year": 2020}, "No passage that matches the filter shares a word"),
]


@pytest.mark.parametrize(("question", "filters", "reason"), NOTHING)
def test_query_and_stream_do_not_ask_the_decoder(
    kb: KnowledgeBase, question: str, filters: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def both() -> tuple[Answer, list[str]]:
        answer = await kb.aquery(question, filters=filters)
        return answer, [piece async for piece in kb.astream(question, filters=filters)]

    answer, (later, pieces) = kb.query(question, filters=filters), asyncio.run(both())
    for found in (answer, later):
        assert (found.text, found.no_passages, found.sources) == ("", True, [])
        assert reason in found.reason
        assert (found.usage.positions, found.usage.generated_tokens, found.rounds) == (0, 0, ())
        assert json.loads(json.dumps(found.to_dict()))["no_passages"] is True
    assert caplog.messages == [answer.reason]
    assert [*kb.stream(question, filters=filters), *pieces] == []
    assert caplog.messages == [answer.reason] * 2
    for expand in ("model", "always", 2):
        assert kb.query(question, filters=filters, expand=expand).no_passages  # type: ignore[arg-type]
    for context in ("latents", "text"):
        prompt = kb.assemble(question, filters=filters, context=context)  # type: ignore[arg-type]
        assert prompt.spans == ()
        assert caplog.messages[-1] == answer.reason


def test_an_empty_version_is_named(built: Path, decoder: TransformersDecoder) -> None:
    with KnowledgeBase.open(built, version=0, decoder=SilentDecoder(decoder)) as kb:
        assert kb.query(QUESTION).reason == f"{built} has no passages in version 0."
        assert kb.query(QUESTION, filters={"yaer": 1}).reason.endswith("version 0.")


def test_who_wants_the_decoder_alone_says_so(built: Path, decoder: TransformersDecoder) -> None:
    with KnowledgeBase.open(built, decoder=decoder) as kb:
        answer = kb.query("who", context="none", sampling=Sampling(max_tokens=4))
        assert (answer.no_passages, answer.usage.generated_tokens > 0) == (False, True)


def test_what_of_a_filter_cannot_hold_is_said_where_passages_are_found_all_the_same(
    kb: KnowledgeBase, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(kb.retrieve("mayor", filters=field("yaer") != 2020)) == 2
    assert caplog.messages == [NO_KEY]
    assert kb.assemble(QUESTION, filters=(field("yaer") == 1) | (field("year") == 2020)).spans
    assert caplog.messages == [NO_KEY] * 2
    caplog.clear()
    assert kb.retrieve("mayor", filters=field("lang").is_in(["en", 3]))
    assert kb.retrieve("mayor", filters=field("lang").is_missing())
    assert caplog.messages == []


def test_langchain(kb: KnowledgeBase) -> None:
    answering = LatentAnswer(knowledge_base=kb, filters={"yaer": 1})
    assert answering.invoke(QUESTION) == ""
    assert "".join(answering.stream(QUESTION)) == ""
    assert asyncio.run(answering.ainvoke(QUESTION)) == ""
    assert answering.with_sources().invoke(QUESTION).reason == NO_KEY


def test_haystack(kb: KnowledgeBase) -> None:
    generator = LatentGenerator(kb)
    misspelt = {"field": "meta.yaer", "operator": "==", "value": 1}
    found = [
        generator.run(QUESTION, filters=misspelt),
        asyncio.run(generator.run_async(QUESTION, filters=misspelt)),
        generator.run(QUESTION, documents=[]),
    ]
    for output in found:
        assert (output["replies"], output["documents"]) == ([""], [])
        assert output["meta"][0]["finish_reason"] == "no_passages"
    reasons = [output["meta"][0]["reason"] for output in found]
    assert reasons == [NO_KEY, NO_KEY, "There are no documents to answer from."]


def test_mcp(kb: KnowledgeBase) -> None:
    async def ask() -> tuple[Any, ...]:
        async with Client(mcp_server(kb)) as agent:
            return (
                await agent.call_tool("ask", {"question": QUESTION, "filters": ["yaer=1"]}),
                await agent.call_tool("search", {"query": QUESTION, "filters": ["yaer=1"]}),
                await agent.call_tool("search", {"query": QUESTION, "filters": ["year=1"]}),
            )

    asked, misspelt, nothing = asyncio.run(ask())
    answered = asked.structured_content
    assert (answered["answer"], answered["reason"], answered["sources"]) == ("", NO_KEY, [])
    assert (misspelt.is_error, NO_KEY in misspelt.content[0].text) == (True, True)
    assert nothing.structured_content == {"passages": []}


@pytest.mark.parametrize("context", ["latents", "text", "latents+expand"])
def test_an_evaluation_counts_an_empty_answer(
    kb: KnowledgeBase, context: str, tmp_path: Path
) -> None:
    question = EvalQuestion("q", "who", ("Gedul Gizel",), document_ids=("velun",))
    eval_set = EvalSet("one", (question,), documents=(), whole_documents=False, settings={})
    evaluate(kb, eval_set, [parse_context(context)], tmp_path, top_k=2)
    (record,) = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert (record["answer"], record["error"]) == ("", "")
    assert (record["hit"], record["recall"], record["recall_at_1"]) == (False, 0, 0)
    assert (record["positions"], record["scores"]["exact_match"]) == (0, 0.0)


# --- at the shell -------------------------------------------------------------------------------------------


def test_a_question_without_hits_ends_with_one_sentence_and_exit_code_3(
    run: Run, built: Path
) -> None:
    code, out, err = run("query", "--kb", built, QUESTION, "--filter", "yaer=2020")
    assert (code, out, err) == (3, "", f"Nothing was found to answer from: {NO_KEY}\n")
    code, out, err = run("query", "--kb", built, "who", "--json")
    found = json.loads(out)
    assert (code, err, found["answer"], found["no_passages"]) == (3, "", "", True)
    assert "shares a word with the question" in found["reason"]
    code, out, err = run("query", "--kb", built, QUESTION, "--version", "0")
    assert (code, out, err.count("\n")) == (3, "", 1)


def _typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_a_dash_reads_the_question_from_standard_input(
    run: Run, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _typed(monkeypatch, f"{QUESTION}\n")
    code, out, _ = run("query", "--kb", built, "-", "--json", "--max-tokens", "8")
    assert (code, json.loads(out)["question"]) == (0, QUESTION)
    _typed(monkeypatch, "\n")
    code, out, err = run("query", "--kb", built, "-")
    assert (code, out, err) == (1, "", "Error: The question is empty.\n")


def test_chat_says_it_and_goes_on(run: Run, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _typed(monkeypatch, f"who\n{QUESTION}\n\n")
    code, out, err = run("chat", "--kb", built, "--max-tokens", "8")
    assert (code, "shares a word with the question" in err) == (0, True)
    assert len(out.split()) >= 1


def test_several_conditions_in_one_filter_are_wrong_usage(run: Run, built: Path) -> None:
    for text in ("year=2020 and code=7", "year=2020, code=7", "year>=1 && year<3"):
        code, out, err = run("query", "--kb", built, QUESTION, "--filter", text)
        assert (code, out, "holds several conditions" in err) == (2, "", True)


# --- deleting by a filter -----------------------------------------------------------------------------------


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """For tests that write."""
    assert os.system(f"cp -r --sparse=always '{built}' '{tmp_path}'") == 0
    return tmp_path / "kb"


@pytest.mark.parametrize(
    "text", ["yaer!=1900", "yaer=2020", "year!=1900 and code=7", "code!=7", 'year!="2020"']
)
def test_a_filter_that_asks_for_what_no_passage_has_deletes_nothing(
    run: Run, own: Path, text: str
) -> None:
    code, out, err = run("delete", "--filter", text, "--kb", own, "--yes")
    assert (code in (1, 2), out) == (True, ""), err
    assert json.loads(run("info", "--kb", own, "--json")[1])["documents"] == 2


def test_a_key_whose_passages_are_gone_is_no_key_any_more(own: Path) -> None:
    with KnowledgeBase.open(own, device="cpu") as kb:
        assert kb.delete(filters={"code": "7"}) == 1
        for filters in (field("code") != "8", field("code").is_missing(), ~(field("code") == "7")):
            with pytest.raises(KnowledgeBaseError, match="has the metadata key 'code' any more"):
                kb.delete(filters=filters)
        with pytest.raises(KnowledgeBaseError, match="has the metadata key 'yaer'; there are"):
            kb.delete(filters=(field("year") > 0) & (field("yaer") != 3))
        assert kb.store.count_documents() == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "options", "code", "documents"),
    [(None, [], 2, 2), (None, ["--yes"], 0, 1), ("n\n", [], 1, 2), ("y\n", [], 0, 1)],
)
def test_delete_says_how_many_match_and_asks(
    run: Run,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str | None,
    options: list[str],
    code: int,
    documents: int,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO() if typed is None else Terminal(typed))
    got, out, err = run("delete", "--filter", "year>=2021", "--kb", own, *options)
    assert got == code, err
    assert ("1 of 2 documents match" in err) == (not options)
    assert ("1 documents (1 passages) deleted" in out) == (code == 0)
    assert json.loads(run("info", "--kb", own, "--json")[1])["documents"] == documents
