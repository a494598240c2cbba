"""LangChain over a knowledge base, as its own chains, callbacks and streams use it."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document as LangChainDocument
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import RetrieversIntegrationTests

from lclm_rag import KnowledgeBase, Sampling, field
from lclm_rag.connectors.langchain import LatentAnswer, LatentRetriever, to_documents
from lclm_rag.decoding import Decoder
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
from support.watched import WatchedDecoder, of_several_words

EXAMPLE = Path(__file__).parents[2] / "examples" / "langchain_qa.py"


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


class Seen(BaseCallbackHandler):
    """What a tracer is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.events.append(("retriever asked", query))

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.events.append(("retriever found", len(documents)))

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.events.append(("started", kwargs["name"]))

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.events.append(("ended", outputs))

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(("failed", str(error)))


def test_the_retriever_gives_the_passages_with_their_place(
    knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    retriever = LatentRetriever(knowledge_base=knowledge_base, top_k=3)
    question = sheets[3].questions[0].question
    found = retriever.invoke(question)
    hits = knowledge_base.retrieve(question, 3)
    assert [d.id for d in found] == [str(hit.key) for hit in hits]
    assert [d.page_content for d in found] == [hit.text for hit in hits]
    assert found[0].metadata == {
        **sheets[3].document.metadata,
        "passage_document_id": sheets[3].document.id,
        "passage_ordinal": 0,
        "passage_start": hits[0].start,
        "passage_end": hits[0].end,
        "passage_score": hits[0].score,
    }
    assert asyncio.run(retriever.ainvoke(question)) == found
    assert retriever.batch([question, question]) == [found, found]


def test_filters_of_the_retriever_and_of_one_call(
    knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    place = next(sheet for sheet in sheets if sheet.kind == "place")
    question = place.questions[0].question
    retriever = LatentRetriever(knowledge_base=knowledge_base, filters=field("kind") == "place")
    assert {d.metadata["kind"] for d in retriever.invoke(question)} == {"place"}
    others = retriever.invoke(question, filters={"kind": "person"}, top_k=2)
    assert {d.metadata["kind"] for d in others} <= {"person"}
    assert len(others) <= 2
    assert asyncio.run(retriever.ainvoke(question, filters={"kind": "nothing"})) == []


def test_every_way_of_asking_gives_the_same_text(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    question = questions[0].question
    wanted = knowledge_base.query(question, 4)
    answer = LatentAnswer(knowledge_base=knowledge_base, top_k=4)
    chain = answer | StrOutputParser()

    async def astreamed() -> str:
        return "".join([piece async for piece in chain.astream(question)])

    assert wanted.text
    assert answer.invoke(question) == wanted.text
    assert asyncio.run(answer.ainvoke(question)) == wanted.text
    assert "".join(answer.stream(question)) == wanted.text
    assert "".join(chain.stream({"question": question})) == wanted.text
    assert asyncio.run(astreamed()) == wanted.text
    assert (RunnableLambda(lambda _: question) | answer).invoke(None) == wanted.text
    assert answer.with_sources().invoke(question).sources == wanted.sources
    assert asyncio.run(answer.with_sources().ainvoke(question)).text == wanted.text


def test_one_question_may_have_its_own_top_k_filters_and_sampling(
    knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    question = sheets[1].questions[0].question
    with_sources = LatentAnswer(knowledge_base=knowledge_base, top_k=4).with_sources()
    asked = {
        "question": question,
        "top_k": 2,
        "filters": {"name": sheets[1].document.metadata["name"]},
    }
    assert [hit.key.document_id for hit in with_sources.invoke(asked).sources] == [
        sheets[1].document.id
    ]
    cut = with_sources.bind(sampling=Sampling(max_tokens=1), top_k=1).invoke(question)
    assert (cut.complete, len(cut.sources)) == (False, 1)


def test_the_first_piece_comes_before_the_generation_ends(
    small_kb: KnowledgeBase, decoder: Decoder, sheets: list[FactSheet]
) -> None:
    small_kb.close()
    watched, question = WatchedDecoder(decoder), of_several_words(sheets[:5])
    with KnowledgeBase.open(small_kb.path, decoder=watched) as kb:
        chain = LatentAnswer(knowledge_base=kb) | StrOutputParser()

        async def first(whole: bool) -> list[str]:
            watched.go.clear()
            pieces = chain.astream(question)
            found = [await anext(pieces)]
            assert watched.writing
            watched.go.set()
            if whole:
                found += [piece async for piece in pieces]
            await pieces.aclose()  # type: ignore[attr-defined]
            return found

        pieces = chain.stream(question)
        found = [next(pieces)]
        assert watched.writing
        found += pieces
        assert len(found) > 1
        assert asyncio.run(first(whole=True)) == found
        # A stream that is left ends the generation.
        pieces = chain.stream(question)
        assert next(pieces) == found[0]
        pieces.close()  # type: ignore[attr-defined]
        assert not watched.writing
        assert asyncio.run(first(whole=False)) == found[:1]
        assert not watched.writing


def test_runs_are_seen_by_a_tracer(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    seen, question = Seen(), questions[0].question
    config: Any = {"callbacks": [seen]}
    LatentRetriever(knowledge_base=knowledge_base, top_k=2).invoke(question, config)
    answer = LatentAnswer(knowledge_base=knowledge_base)
    text = answer.invoke(question, config)
    list(answer.stream(question, config))
    answer.with_sources().invoke(question, config)
    assert seen.events[:-1] == [
        ("retriever asked", question),
        ("retriever found", 2),
        ("started", "LatentAnswer"),
        ("ended", text),
        ("started", "LatentAnswer"),
        ("ended", text),
        ("started", "LatentAnswerWithSources"),
    ]
    assert seen.events[-1][1].text == text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"question": "Who?", "filter": {"lang": "en"}}, "not 'filter'"),
        ({"top_k": 3}, 'the string "question"'),
        (LangChainDocument("Who?"), 'the string "question"'),
        (" ", "question is empty"),
    ],
)
def test_what_cannot_be_asked_is_named_and_seen(
    knowledge_base: KnowledgeBase, asked: Any, message: str
) -> None:
    answer, seen = LatentAnswer(knowledge_base=knowledge_base), Seen()
    with pytest.raises(ValueError, match=message):
        answer.invoke(asked, {"callbacks": [seen]})
    with pytest.raises(ValueError, match=message):
        list(answer.stream(asked))
    assert [kind for kind, _ in seen.events] == ["started", "failed"]


def test_langchains_documents_can_be_added(small_kb: KnowledgeBase) -> None:
    document = LangChainDocument("A wholly new zebra text.", id="zebra", metadata={"page": 3})
    assert small_kb.add(to_documents([document])).added == 1
    (found,) = LatentRetriever(knowledge_base=small_kb, top_k=1).invoke("zebra")
    assert (found.id, found.page_content) == ("zebra#0", document.page_content)
    assert found.metadata["page"] == 3
    with pytest.raises(ValueError, match="document 2 has no id"):
        small_kb.add(to_documents([document, LangChainDocument("Another.")]))


def test_the_example_runs(
    small_kb: KnowledgeBase, sheets: list[FactSheet], capsys: pytest.CaptureFixture[str]
) -> None:
    small_kb.close()
    question = sheets[2].questions[0].question
    runpy.run_path(str(EXAMPLE))["main"](str(small_kb.path), question)
    answer, keys = capsys.readouterr().out.splitlines()
    assert answer
    assert f"{sheets[2].document.id}#0" in keys


@pytest.mark.anyio
class TestLangChainsOwnTestsOfRetrievers(RetrieversIntegrationTests):
    """The standard tests of langchain-tests, with their defaults."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture(autouse=True)
    def _over_the_fact_sheets(
        self, knowledge_base: KnowledgeBase, questions: list[FactQuestion]
    ) -> None:
        self.knowledge_base = knowledge_base
        self.question = questions[0].question

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return LatentRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"knowledge_base": self.knowledge_base}

    @property
    def retriever_query_example(self) -> str:
        return self.question
