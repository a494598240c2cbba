"""LlamaIndex into a knowledge base: documents, nodes, pipelines, collections."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import (
    HierarchicalNodeParser,
    MarkdownNodeParser,
    SentenceSplitter,
    SentenceWindowNodeParser,
)
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.schema import (
    IndexNode,
    NodeWithScore,
    TextNode,
    TransformComponent,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

import lclm_rag
from lclm_rag import KnowledgeBase, KnowledgeBaseError, PassageKey
from lclm_rag.cli.main import cli
from lclm_rag.connectors.llama_index import (
    LatentCollectionIndex,
    LatentCompressor,
    LatentIndex,
    LatentSynthesizer,
)
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from support.checkpoints import MakeCheckpoint

EXAMPLES = Path(__file__).parents[2] / "examples" / "llama_index"


def as_document(sheet: FactSheet) -> Document:
    return Document(
        text=sheet.document.text, doc_id=sheet.document.id, metadata=dict(sheet.document.metadata)
    )


@pytest.fixture
def documents(sheets: list[FactSheet]) -> list[Document]:
    return [as_document(sheet) for sheet in sheets[:6]]


MakeIndex = Callable[..., LatentIndex]


@pytest.fixture
def make_index(tmp_path: Path, decoder: TransformersDecoder) -> Iterator[MakeIndex]:
    made: list[LatentIndex] = []

    def make(documents: list[Document], **options: Any) -> LatentIndex:
        path = tmp_path / f"kb{len(made)}"
        made.append(LatentIndex.from_documents(documents, path, decoder=decoder, **options))
        return made[-1]

    yield make
    for index in made:
        index.close()


def ids(index: LatentIndex) -> set[str]:
    return set(index.ref_doc_info)


# --- documents --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_10_000_documents_give_the_latents_of_the_command_line_byte_for_byte(
    tmp_path: Path, sheets: list[FactSheet], make_index: MakeIndex
) -> None:
    documents = [
        lclm_rag.Document("long", "\n\n".join(sheet.document.text for sheet in sheets[:80])),
        *(sheet.document for sheet in sheets[:100]),
        *(lclm_rag.Document(f"short {i}", f"Box {i}." + " A bee." * (i % 3)) for i in range(9_899)),
    ]
    assert len(documents) == 10_000
    corpus = tmp_path / "corpus.jsonl"
    with corpus.open("w") as out:
        for document in documents:
            record = {"id": document.id, "text": document.text, **document.metadata}
            out.write(json.dumps(record) + "\n")
    cli.main(["build", str(corpus), "--kb", str(tmp_path / "kb")], standalone_mode=False)
    index = make_index(
        [Document(text=d.text, doc_id=d.id, metadata=dict(d.metadata)) for d in documents]
    )
    with KnowledgeBase.open(tmp_path / "kb") as built:
        assert len(built) == len(index.knowledge_base) > 10_000
        pairs = zip(built.store.passages(), index.knowledge_base.store.passages(), strict=True)
        for theirs, ours in pairs:
            assert ours.passage == theirs.passage
            assert ours.latents.view(torch.uint8).equal(theirs.latents.view(torch.uint8))


def test_an_index_is_opened_by_its_path(
    make_index: MakeIndex, documents: list[Document], decoder: TransformersDecoder
) -> None:
    index = make_index(documents)
    index.close()
    again = LatentIndex.from_path(index.knowledge_base.path, decoder=decoder)
    assert ids(again) == {document.id_ for document in documents}
    again.close()


def test_a_corpus_that_fails_leaves_nothing_behind(
    tmp_path: Path, documents: list[Document]
) -> None:
    odd = Document(text="x", metadata={"x": {1, 2}})
    with pytest.raises(ValueError, match="holds a set"):
        LatentIndex.from_documents([*documents, odd], tmp_path / "kb")
    assert not (tmp_path / "kb").exists()


def test_what_has_no_text_is_left_out_and_told(
    make_index: MakeIndex, documents: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    index = make_index([Document(text=" ", doc_id="blank page"), documents[0]])
    index.insert(Document(text="", doc_id="nothing"))
    index.insert_nodes([TextNode(id_="empty", text="\n"), TextNode(id_="n", text="A node.")])
    assert ids(index) == {documents[0].id_, "n"}
    for name in ("blank page", "nothing", "empty"):
        assert f"{name} has no text; it is left out." in caplog.text


def test_an_index_may_begin_empty(make_index: MakeIndex, documents: list[Document]) -> None:
    index = make_index([])
    assert index.as_query_engine().query("Who?").response == "Empty Response"
    index.insert(documents[0])
    assert ids(index) == {documents[0].id_}
    by_nodes = LatentIndex(index.knowledge_base, nodes=[TextNode(id_="n", text="A node.")])
    assert ids(by_nodes) == {documents[0].id_, "n"}


WAYS: list[list[TransformComponent] | None] = [
    None,
    [SentenceSplitter(chunk_size=64, chunk_overlap=0)],
]


@pytest.mark.parametrize("transformations", WAYS, ids=["split here", "split there"])
def test_documents_come_go_and_change(
    make_index: MakeIndex,
    documents: list[Document],
    transformations: list[TransformComponent] | None,
) -> None:
    index = make_index(documents[:3], transformations=transformations)
    assert ids(index) == {d.id_ for d in documents[:3]}
    for document in documents[:3]:
        info = index.ref_doc_info[document.id_]
        assert info.metadata == document.metadata
        nodes = [n.node for n in index.as_retriever(50).retrieve(document.text)]
        assert set(info.node_ids) == {n.node_id for n in nodes if n.ref_doc_id == document.id_}

    index.insert(documents[3])
    assert documents[3].id_ in ids(index)

    changed = Document(text="A text about zebras.", doc_id=documents[0].id_, metadata={"new": 1})
    index.update_ref_doc(changed)
    assert ids(index) == {d.id_ for d in documents[:4]}
    (found,) = index.as_retriever(1).retrieve("zebras")
    assert (found.text, found.metadata) == ("A text about zebras.", {"new": 1})
    assert len(index.ref_doc_info[changed.id_].node_ids) == 1

    index.delete_ref_doc(documents[1].id_)
    assert documents[1].id_ not in ids(index)
    retrieved = index.as_retriever(50).retrieve(documents[1].text)
    assert documents[1].id_ not in {n.node.ref_doc_id for n in retrieved}


@pytest.mark.parametrize("transformations", WAYS, ids=["split here", "split there"])
def test_refreshing_writes_what_is_new_or_changed_and_nothing_else(
    make_index: MakeIndex,
    documents: list[Document],
    transformations: list[TransformComponent] | None,
) -> None:
    index = make_index(documents[:3], transformations=transformations)
    kb = index.knowledge_base
    version = kb.store.version
    assert index.refresh_ref_docs(documents[:3]) == [False, False, False]
    assert kb.store.version == version
    relabelled = Document(text=documents[2].text, doc_id=documents[2].id_, metadata={"new": True})
    assert index.refresh_ref_docs([documents[0], relabelled, documents[4]]) == [False, True, True]
    assert ids(index) == {documents[i].id_ for i in (0, 1, 2, 4)}
    assert index.ref_doc_info[relabelled.id_].metadata == {"new": True}
    assert asyncio.run(index.arefresh_ref_docs([relabelled, documents[5]])) == [False, True]


def test_changes_work_from_an_event_loop(make_index: MakeIndex, documents: list[Document]) -> None:
    index = make_index(documents[:1])

    async def change() -> None:
        await index.ainsert(documents[1])
        await index.ainsert_nodes([TextNode(id_="n", text="A node.")])
        await index.aupdate_ref_doc(Document(text="Other.", doc_id=documents[0].id_))
        await index.adelete_ref_doc(documents[1].id_)
        await index.ainsert_nodes([TextNode(id_="m", text="Another.")])
        await index.adelete_nodes(["m"])

    asyncio.run(change())
    assert ids(index) == {documents[0].id_, "n"}


def test_an_unknown_document_is_warned_of_and_nothing_is_deleted(
    make_index: MakeIndex, documents: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    index = make_index(documents[:2])
    version = index.knowledge_base.store.version
    index.delete_ref_doc("nobody")
    assert "ref_doc_id nobody not found" in caplog.text
    assert index.knowledge_base.store.version == version
    with pytest.raises(KnowledgeBaseError, match="no node 'nobody'"):
        index.delete_nodes(["nobody"])


# --- nodes ------------------------------------------------------------------------------------------

MARKDOWN = (
    "# Zoo\n\nAll about the zoo.\n\n## Zebras\n\nZebras have stripes.\n\n## Bees\n\nBees buzz.\n"
)
PARSERS: list[TransformComponent] = [
    SentenceSplitter(chunk_size=40, chunk_overlap=10),
    SentenceWindowNodeParser(window_size=1),
    MarkdownNodeParser(),
    HierarchicalNodeParser.from_defaults(chunk_sizes=[128, 40]),
]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: type(parser).__name__)
def test_nodes_of_any_parser_come_back_as_they_were_and_go_in_as_latents(
    make_index: MakeIndex, parser: TransformComponent
) -> None:
    document = Document(text=MARKDOWN * 3, doc_id="zoo", metadata={"lang": "en", "n": 1})
    nodes = list(parser([document]))
    index = make_index([Document(text="Something else.", doc_id="other")])
    index.insert_nodes(nodes)
    found = index.as_retriever(similarity_top_k=100).retrieve("zoo zebras stripes bees buzz")
    by_id = {n.node_id: n.node for n in found}
    assert by_id
    for node in nodes:
        if node.node_id in by_id:
            assert by_id[node.node_id] == node
    response = LatentSynthesizer(index.llm).synthesize("Who has stripes?", found[:3])
    assert response.extra["latents"] == [n.node_id for n in found[:3]]
    assert index.ref_doc_info["zoo"].node_ids == [node.node_id for node in nodes]


def test_a_window_put_in_place_of_a_sentence_goes_in_as_text(make_index: MakeIndex) -> None:
    index = make_index(
        [Document(text="One zebra. Two bees. Three cows.", doc_id="d")],
        transformations=[SentenceWindowNodeParser(window_size=1)],
    )
    engine = index.as_query_engine(
        similarity_top_k=1,
        node_postprocessors=[MetadataReplacementPostProcessor(target_metadata_key="window")],
    )
    response = engine.query("bees")
    assert response.source_nodes[0].node.get_content() == "One zebra.  Two bees.  Three cows."
    assert len(response.extra["text"]) == 1


def test_passages_stand_in_the_prompt_as_in_their_document(make_index: MakeIndex) -> None:
    text = " ".join(
        f"Sentence number {word} tells of zebras." for word in "one two six ten".split()
    )
    nodes = SentenceSplitter(chunk_size=12, chunk_overlap=0)([Document(text=text, doc_id="d")])
    index = make_index([Document(text="Other.", doc_id="o")])
    index.insert_nodes(nodes)
    found = [NodeWithScore(node=node, score=1.0) for node in nodes]
    first, second = (
        index.llm._prepare(
            [_message("\ue000passages\ue000")],
            nodes=order,
        ).prompt
        for order in (found, found[::-1])
    )
    assert first.token_ids == second.token_ids
    for ours, theirs in zip(first.latents, second.latents, strict=True):
        assert torch.equal(ours, theirs)
    expected = [index.knowledge_base.store.read([PassageKey(n.node_id, 0)])[0] for n in nodes]
    assert [len(latents) for latents in first.latents] == [len(row.latents) for row in expected]


def _message(text: str) -> Any:
    from llama_index.core.llms import ChatMessage

    return ChatMessage(role="user", content=text)


def test_a_node_can_be_replaced_and_deleted_by_its_id(make_index: MakeIndex) -> None:
    index = make_index([Document(text="Something else.", doc_id="other")])
    index.insert_nodes([TextNode(id_="a", text="About zebras."), TextNode(id_="b", text="Bees.")])
    index.insert_nodes([TextNode(id_="a", text="About cows.")])
    assert [n.node_id for n in index.as_retriever(3).retrieve("cows")] == ["a"]
    assert index.as_retriever(3).retrieve("zebras") == []
    index.delete_nodes(["a", "b"])
    assert ids(index) == {"other"}
    with pytest.raises(KnowledgeBaseError, match="'other#0' is a passage of 'other'"):
        index.delete_nodes(["other#0"])


def test_an_index_node_leads_to_what_it_points_to(
    make_index: MakeIndex, documents: list[Document], sheets: list[FactSheet]
) -> None:
    inner = make_index(documents)
    outer = make_index([Document(text="Something else.", doc_id="other")])
    pointer = IndexNode(text="Everything about towns", index_id="towns", obj=inner.as_retriever(1))
    outer.insert_nodes([pointer])
    found = outer.as_retriever(1).retrieve("towns everything")
    assert found[0].node.ref_doc_id in {document.id_ for document in documents}


# --- pipelines --------------------------------------------------------------------------------------


def test_a_pipeline_compresses_its_nodes_once(
    small_kb: KnowledgeBase, documents: list[Document], sheets: list[FactSheet]
) -> None:
    step = LatentCompressor(small_kb)
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=512), step])
    nodes = pipeline.run(documents=documents)
    version = small_kb.store.version
    assert [n.node_id for n in pipeline.run(documents=documents)] == [n.node_id for n in nodes]
    assert small_kb.store.version == version
    # Deleted meanwhile: the cache does not pass over the step.
    small_kb.delete([nodes[0].node_id])
    asyncio.run(pipeline.arun(documents=documents))
    assert PassageKey(nodes[0].node_id, 0) in small_kb.store
    found = [NodeWithScore(node=node) for node in nodes[:2]]
    response = LatentSynthesizer(LatentIndex(small_kb).llm).synthesize("Who?", found)
    assert response.extra["latents"] == [node.node_id for node in nodes[:2]]


def test_a_pipeline_step_comes_back_from_its_dict_and_refuses_another_encoder(
    small_kb: KnowledgeBase, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    small_kb.close()
    step = LatentCompressor(small_kb)
    assert step.fingerprint == small_kb.store.layout.fingerprint
    again = LatentCompressor.from_dict(step.to_dict())
    assert again.to_dict() == step.to_dict()
    again([TextNode(id_="n", text="A node.")])
    assert again.to_dict() != step.to_dict()
    again._kb.close()
    KnowledgeBase.create(tmp_path / "other", make_checkpoint()).close()
    elsewhere = {**step.to_dict(), "knowledge_base": str(tmp_path / "other")}
    with pytest.raises(KnowledgeBaseError, match=f"not {step.fingerprint}"):
        LatentCompressor.from_dict(elsewhere)


# --- a collection that is there already ---------------------------------------------------------------


class Letters(BaseEmbedding):
    """Counts letters: enough for a text to be nearest to itself."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(text.lower().count(chr(97 + i))) + 0.01 for i in range(26)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
def test_a_collection_that_llamaindex_filled_gets_latents_beside_it(
    tmp_path: Path, sheets: list[FactSheet], decoder: TransformersDecoder
) -> None:
    client = QdrantClient(":memory:")
    vector_store = QdrantVectorStore("sheets", client=client)
    documents = [as_document(sheet) for sheet in sheets[:300]]  # more than one page of a scroll
    theirs = VectorStoreIndex.from_documents(
        documents,
        storage_context=StorageContext.from_defaults(vector_store=vector_store),
        embed_model=Letters(),
        transformations=[SentenceSplitter(chunk_size=512)],
    )

    def content() -> list[Any]:
        points, _ = client.scroll("sheets", limit=1000, with_payload=True, with_vectors=True)
        return sorted((str(p.id), p.payload, p.vector) for p in points)

    before = content()
    index = LatentCollectionIndex.from_vector_store(
        vector_store, tmp_path / "kb", embed_model=Letters(), decoder=decoder
    )
    kb = index.knowledge_base
    assert content() == before
    assert len(kb) == len(before) == 300

    question = sheets[3].questions[0]
    expected = theirs.as_retriever(similarity_top_k=4).retrieve(sheets[3].document.text)
    found = index.as_retriever(similarity_top_k=4).retrieve(sheets[3].document.text)
    assert [(n.node_id, n.score) for n in found] == [(n.node_id, n.score) for n in expected]
    response = LatentSynthesizer(index.llm).synthesize(question.question, found)
    assert response.extra["latents"] == [n.node_id for n in found]
    assert str(response) == question.answer
    # The knowledge base stands on its own feet, too.
    assert question.document_id in {
        h.metadata["ref_doc_id"] for h in kb.retrieve(question.question, 3)
    }

    with pytest.raises(ValueError, match="change the collection through its vector store"):
        index.insert(documents[0])
    with pytest.raises(ValueError, match="change the collection"):
        index.refresh_ref_docs([Document(text="x")])

    # What comes later is text until the next sync; what goes, goes.
    theirs.delete_ref_doc(documents[0].id_)
    theirs.insert(as_document(sheets[350]))
    late = index.as_retriever(similarity_top_k=1).retrieve(sheets[350].document.text)
    told = LatentSynthesizer(index.llm).synthesize("Who?", late).extra
    assert (len(told["latents"]), len(told["text"])) == (0, 1)
    index.sync()
    told = LatentSynthesizer(index.llm).synthesize("Who?", late).extra
    assert (len(told["latents"]), len(told["text"])) == (1, 0)
    assert len(kb) == 300
    assert documents[0].id_ not in ids(index)
    index.close()
    version = KnowledgeBase.open(kb.path).store.version
    again = LatentCollectionIndex.from_vector_store(
        vector_store, kb.path, embed_model=Letters(), decoder=decoder
    )
    assert again.knowledge_base.store.version == version
    again.close()


def test_a_collection_that_cannot_be_read_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    absent = QdrantVectorStore("absent", client=QdrantClient(":memory:"))
    with pytest.raises(ValueError, match="no Qdrant collection 'absent'"):
        LatentCollectionIndex.from_vector_store(absent, tmp_path / "kb", embed_model=Letters())
    waiting = QdrantVectorStore("x", aclient=AsyncQdrantClient(":memory:"))
    with pytest.raises(ValueError, match="asynchronous client alone"):
        LatentCollectionIndex.from_vector_store(waiting, tmp_path / "kb", embed_model=Letters())
    assert not (tmp_path / "kb").exists()


# --- the examples -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("query_engine", "95 euros   (right: 95 euros)"),
        ("chat_engine", "At which elevation does Fuduhun lie? → 2626 metres"),
        ("router", "How much does Hogel Fuhin earn a year? → 30,509 euros"),
        ("sub_question", "Response: 2626 metres"),
        ("agent", "At which elevation does Fuduhun lie? → 2626 metres"),
        ("ingestion_pipeline", "after a second run: 20 passages, version 1"),
        ("qdrant_collection", "4 nodes as latents, 0 as text"),
    ],
)
def test_the_examples_run(
    name: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "fact_sheets", raising=False)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert expected in capsys.readouterr().out
