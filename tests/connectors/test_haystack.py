"""Haystack pipelines over a knowledge base: run, streamed, saved and loaded."""

from __future__ import annotations

import asyncio
import os
import runpy
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # It is read when Haystack is imported.

import pytest
from haystack import Document, Pipeline
from haystack.components.generators.utils import print_streaming_chunk
from haystack.core.errors import SerializationError
from haystack.dataclasses import StreamingChunk
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.errors import FilterError
from haystack.testing.document_store import FilterDocumentsTest

from lclm_rag import KnowledgeBase
from lclm_rag.connectors.haystack import LatentGenerator, LatentRetriever, to_filter
from lclm_rag.decoding import Decoder
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
from lclm_rag.retrieval import Bm25Settings, EdgeIndex, IndexEntry, matches
from lclm_rag.types import PassageKey
from support.checkpoints import MakeCheckpoint
from support.watched import WatchedDecoder, of_several_words

EXAMPLE = Path(__file__).parents[2] / "examples" / "haystack_pipeline.py"
OURS = ["lclm_rag.*"]


def condition(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


def pipeline(knowledge_base: KnowledgeBase | Path, **generator: Any) -> Pipeline:
    made = Pipeline()
    made.add_component("retriever", LatentRetriever(knowledge_base, top_k=4))
    made.add_component("generator", LatentGenerator(knowledge_base, **generator))
    made.connect("retriever.documents", "generator.documents")
    return made


def asked(query: str, **generator: Any) -> dict[str, Any]:
    return {"retriever": {"query": query}, "generator": {"query": query, **generator}}


def test_a_pipeline_answers_as_the_knowledge_base_does(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    made = pipeline(knowledge_base)
    for question in [q.question for q in questions[:2]]:
        wanted = knowledge_base.query(question, 4)
        found = made.run(asked(question))["generator"]
        assert found["replies"] == [wanted.text]
        assert [d.id for d in found["documents"]] == [str(hit.key) for hit in wanted.sources]
        (meta,) = found["meta"]
        assert (meta["finish_reason"], meta["left_out"]) == ("stop", [])
        assert meta["usage"] == {
            "positions": wanted.usage.positions,
            "latents": wanted.usage.latents,
            "generated_tokens": wanted.usage.generated_tokens,
        }
        assert asyncio.run(made.run_async(asked(question)))["generator"] == found
        assert LatentGenerator(knowledge_base, top_k=4).run(question) == found


def test_the_retriever_gives_the_passages_with_their_place(
    knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    retriever = LatentRetriever(knowledge_base, top_k=3)
    question = sheets[3].questions[0].question
    best = retriever.run(question)["documents"][0]
    (hit,) = knowledge_base.retrieve(question, 1)
    assert (best.id, best.content, best.score) == (str(hit.key), hit.text, hit.score)
    assert best.meta == {
        **sheets[3].document.metadata,
        "passage_document_id": sheets[3].document.id,
        "passage_ordinal": 0,
        "passage_start": hit.start,
        "passage_end": hit.end,
    }
    assert len(retriever.run(question, top_k=1)["documents"]) == 1
    assert asyncio.run(retriever.run_async(question)) == retriever.run(question)


def test_streamed_text_is_the_reply_and_begins_before_the_generation_ends(
    small_kb: KnowledgeBase, decoder: Decoder, sheets: list[FactSheet]
) -> None:
    small_kb.close()
    watched, question = WatchedDecoder(decoder), of_several_words(sheets[:5])
    with KnowledgeBase.open(small_kb.path, decoder=watched) as kb:
        made = pipeline(kb)
        (wanted,) = made.run(asked(question))["generator"]["replies"]
        pieces: list[str] = []

        def tell(chunk: StreamingChunk) -> None:
            assert watched.writing or not chunk.content
            pieces.append(chunk.content)

        found = made.run(asked(question, streaming_callback=tell))["generator"]
        assert found["replies"] == ["".join(pieces)] == [wanted]
        assert len(pieces) > 1
        assert found["documents"]

        async def streamed() -> tuple[list[str], Any]:
            handle = made.stream(asked(question))
            chunks = []
            async for chunk in handle:
                assert chunks or watched.writing
                chunks.append(chunk.content)
            return chunks, handle.result["generator"]

        chunks, result = asyncio.run(streamed())
        assert chunks == pieces
        assert result == found


def test_chunks_say_whose_they_are_where_they_begin_and_why_they_end(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    """docs/streaming-support: `print_streaming_chunk` and its like."""
    question, chunks = questions[0].question, []
    generator = LatentGenerator(
        knowledge_base, generation_kwargs={"max_tokens": 2}, streaming_callback=chunks.append
    )
    made = Pipeline()
    made.add_component("writer", generator)
    whole = made.run({"writer": {"query": question}})["writer"]
    assert {chunk.component_info.name for chunk in chunks} == {"writer"}
    assert [chunk.start for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert {chunk.index for chunk in chunks} == {0}
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    silent = LatentGenerator(knowledge_base, generation_kwargs={"max_tokens": 2}).run(question)
    assert silent == whole  # The meta as well.

    async def streamed() -> Any:
        return await generator.run_async(question, generation_kwargs={"max_tokens": 1})

    chunks.clear()
    assert asyncio.run(streamed())["meta"][0]["usage"]["generated_tokens"] == 1
    assert chunks[-1].finish_reason == "length"


def test_unknown_generation_kwargs_are_named(knowledge_base: KnowledgeBase) -> None:
    with pytest.raises(ValueError, match=r"takes max_tokens, .*; not 'max_new_tokens'"):
        LatentGenerator(knowledge_base, generation_kwargs={"max_new_tokens": 1})
    with pytest.raises(ValueError, match="not 'stop'"):
        LatentGenerator(knowledge_base).run("Who?", generation_kwargs={"stop": ["x"]})


def test_a_copy_opens_the_knowledge_base_for_itself(small_kb: KnowledgeBase) -> None:
    generator = LatentRetriever(small_kb.path)
    generator.warm_up()
    copied = deepcopy(generator)
    assert copied.to_dict() == generator.to_dict()
    generator.close()
    assert copied.run("the mayor of the town")["documents"]
    copied.close()
    assert deepcopy(LatentGenerator(small_kb)).kb is small_kb
    opened = deepcopy(pipeline(small_kb.path))
    opened.warm_up()
    assert deepcopy(opened).run(asked("the mayor of the town"))["generator"]["documents"]
    opened.close()


def test_documents_from_elsewhere_go_in_as_text_and_are_not_mixed_up(
    knowledge_base: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    generator = LatentGenerator(knowledge_base)
    question = sheets[3].questions[0]
    (passage,) = LatentRetriever(knowledge_base, top_k=1).run(question.question)["documents"]
    foreign = Document(id="elsewhere", content=sheets[3].document.text)
    changed = Document(id=passage.id, content=passage.content.upper(), meta=passage.meta)
    as_latents, as_text, as_changed = (
        generator.run(question.question, documents=[document])
        for document in (passage, foreign, changed)
    )
    assert as_latents["meta"][0]["usage"]["latents"] > 0
    assert as_text["meta"][0]["usage"]["latents"] == 0
    assert as_changed["meta"][0]["usage"]["latents"] == 0
    assert as_latents["replies"] == as_text["replies"] == [question.answer]
    both = generator.run(question.question, documents=[foreign, passage])
    assert both["documents"] == [foreign, passage]
    with pytest.raises(ValueError, match="document empty has no text"):
        generator.run("Who?", documents=[Document(id="empty")])


def test_documents_without_room_are_listed(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    long = [Document(id=f"long {i}", content="Zebra and lion. " * 100) for i in range(4)]
    with KnowledgeBase.create(tmp_path / "kb", make_checkpoint()) as kb:
        found = LatentGenerator(kb, generation_kwargs={"max_tokens": 1}).run("Who?", documents=long)
    left_out = found["meta"][0]["left_out"]
    assert left_out
    assert [d.id for d in found["documents"]] + left_out == [d.id for d in long]
    assert found["meta"][0]["finish_reason"] == "length"


def test_a_saved_pipeline_gives_the_same_answer(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    question = sheets[2].questions[0].question
    filters = condition("meta.kind", "==", sheets[2].kind)
    wanted = small_kb.query(question, 4).text
    small_kb.close()
    made = pipeline(
        small_kb.path,
        generation_kwargs={"max_tokens": 32},
        open_options={"device": "cpu"},
        streaming_callback=print_streaming_chunk,
    )
    made.get_component("retriever")._parameters["filters"] = filters
    loaded = Pipeline.loads(made.dumps(), allowed_modules=OURS)
    assert loaded.to_dict() == made.to_dict()
    found = loaded.run(asked(question))["generator"]
    assert found["replies"] == [wanted]
    assert {d.meta["kind"] for d in found["documents"]} == {sheets[2].kind}
    loaded.close()
    KnowledgeBase.open(small_kb.path).retrieve(question)  # Nobody holds it any more.


def test_an_open_knowledge_base_cannot_be_saved(knowledge_base: KnowledgeBase) -> None:
    with pytest.raises(SerializationError, match="value of type 'KnowledgeBase'"):
        pipeline(knowledge_base).dumps()


METADATA: list[dict[str, Any]] = [
    {},
    {"year": 2019, "lang": "en"},
    {"year": 2020, "lang": "de", "draft": True},
    {"year": 2021.5, "lang": "fr", "draft": False},
    {"lang": "EN", "year": None},
]
FILTERS = [
    condition("meta.lang", "==", "en"),
    condition("meta.lang", "!=", "en"),
    condition("lang", "in", ["en", "de"]),
    condition("meta.lang", "not in", ["en", "de"]),
    condition("meta.year", ">", 2020),
    condition("meta.year", ">=", 2020),
    condition("meta.year", "<", 2020),
    condition("meta.year", "<=", 2020),
    condition("meta.year", "==", None),
    condition("meta.year", "!=", None),
    condition("meta.draft", "==", True),
    {
        "operator": "AND",
        "conditions": [condition("meta.year", ">", 2000), condition("meta.lang", "!=", "de")],
    },
    {
        "operator": "OR",
        "conditions": [condition("meta.lang", "==", "fr"), condition("meta.draft", "==", True)],
    },
    {
        "operator": "NOT",
        "conditions": [condition("meta.year", ">", 2000), condition("meta.lang", "==", "en")],
    },
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_a_filter_keeps_what_haystacks_own_store_keeps(filters: dict[str, Any]) -> None:
    store = InMemoryDocumentStore()
    store.write_documents([Document(id=str(i), meta=meta) for i, meta in enumerate(METADATA)])
    kept = {document.id for document in store.filter_documents(filters)}
    translated = to_filter(filters)
    assert translated is not None
    assert {str(i) for i, meta in enumerate(METADATA) if matches(translated, meta)} == kept
    assert 0 < len(kept) < len(METADATA)


class FilteredStore:
    """The part of a document store that Haystack's own tests of filters use, over an embedded index."""

    def __init__(self, index: EdgeIndex) -> None:
        self._index = index
        self._documents: list[Document] = []

    def write_documents(self, documents: list[Document]) -> None:
        first = len(self._documents)
        self._documents += documents
        self._index.upsert(
            IndexEntry(PassageKey("d", first + n), document.content or "", document.meta)
            for n, document in enumerate(documents)
        )

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        return [self._documents[key.ordinal] for key in self._index.keys(to_filter(filters))]


class TestHaystacksOwnTestsOfFilters(FilterDocumentsTest):
    @pytest.fixture
    def document_store(self, tmp_path: Path) -> Iterator[FilteredStore]:
        index = EdgeIndex.create(tmp_path / "index", bm25=Bm25Settings())
        yield FilteredStore(index)
        index.close()


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (condition("meta.lang", "contains", "e"), "operator 'contains' is not known"),
        ({"operator": "XOR", "conditions": []}, "operator 'XOR' is not known"),
        ({"lang": "en"}, "operator None is not known"),
        ({"field": "meta.lang", "operator": "=="}, "operator '==' needs value"),
        ({"operator": "AND"}, "operator 'AND' needs conditions"),
        (condition("meta.lang", "in", "en"), "operator 'in' needs a list"),
        (condition("content", "==", "x"), "field 'content' is not a key"),
        (condition("meta.person.name", "==", "x"), "field 'meta.person.name' is not a key"),
    ],
)
def test_a_filter_that_cannot_be_translated_is_named(
    knowledge_base: KnowledgeBase, filters: dict[str, Any], message: str
) -> None:
    with pytest.raises(FilterError, match=message):
        LatentRetriever(knowledge_base).run("Who?", filters=filters)


def test_filters_reach_the_engine(knowledge_base: KnowledgeBase, sheets: list[FactSheet]) -> None:
    query = " ".join(sheet.document.text for sheet in sheets[:6])
    filters = condition("meta.kind", "!=", sheets[0].kind)
    for found in (
        LatentRetriever(knowledge_base, filters=filters).run(query),
        LatentGenerator(knowledge_base).run(query, filters=filters, top_k=2),
    ):
        kinds = {document.meta["kind"] for document in found["documents"]}
        assert kinds
        assert sheets[0].kind not in kinds
    with pytest.raises(FilterError, match="only numbers and dates have an order"):
        LatentRetriever(knowledge_base).run("Who?", filters=condition("meta.lang", ">", "en"))
    with pytest.raises(ValueError, match="query is empty"):
        LatentGenerator(knowledge_base).run(" ", documents=[])


def test_the_example_runs(
    small_kb: KnowledgeBase, sheets: list[FactSheet], capsys: pytest.CaptureFixture[str]
) -> None:
    question = sheets[2].questions[0].question
    wanted = small_kb.query(question, 4)
    small_kb.close()
    runpy.run_path(str(EXAMPLE))["main"](str(small_kb.path), question)
    answer, keys = capsys.readouterr().out.splitlines()
    assert answer == wanted.text
    assert keys == ", ".join(str(hit.key) for hit in wanted.sources)


def test_codes_and_ids_are_read_verbatim(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion]
) -> None:
    question = string_questions[0]
    generator = LatentGenerator(string_kb)
    found = generator.run(question.question)
    assert found["replies"] == [question.answer]
    plain = LatentGenerator(string_kb, expand="never").run(question.question)
    assert found["meta"][0]["usage"]["latents"] < plain["meta"][0]["usage"]["latents"]
    assert found["meta"][0]["usage"]["positions"] > plain["meta"][0]["usage"]["positions"]
