"""Programs of LlamaIndex's own documentation, with only the index swapped. Each names its document."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import (
    Document,
    MockEmbedding,
    Settings,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import (
    HierarchicalNodeParser,
    SentenceSplitter,
    get_leaf_nodes,
)
from llama_index.core.postprocessor import PrevNextNodePostprocessor
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.retrievers import (
    AutoMergingRetriever,
    VectorIndexAutoRetriever,
    VectorIndexRetriever,
)
from llama_index.core.schema import ImageNode, IndexNode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import MetadataInfo, VectorStoreInfo

from lclm_rag import KnowledgeBase, KnowledgeBaseError
from lclm_rag.connectors.llama_index import (
    LatentCompressor,
    LatentIndex,
    LatentLLM,
    LatentVectorStore,
    embeddings,
)
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet


class Letters(BaseEmbedding):
    """Counts letters, so that a text is found by what it is made of, without a word in common."""

    model_name: str = "letters"

    def _get_text_embedding(self, text: str) -> list[float]:
        return [text.lower().count(chr(97 + i)) + 0.01 for i in range(26)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


DOCUMENTS = [
    Document(text="aaaa aaaa", doc_id="zebra", metadata={"kind": "animal"}),
    Document(text="bbbb bbbb", doc_id="bee", metadata={"kind": "animal"}),
    Document(text="cccc cccc", doc_id="car", metadata={"kind": "thing"}),
]


@pytest.fixture
def documents(sheets: list[FactSheet]) -> list[Document]:
    return [
        Document(text=s.document.text, doc_id=s.document.id, metadata=dict(s.document.metadata))
        for s in sheets[:4]
    ]


@pytest.fixture
def index(small_kb: KnowledgeBase) -> LatentIndex:
    return LatentIndex(small_kb)


@pytest.fixture
def shared(knowledge_base: KnowledgeBase) -> LatentIndex:
    """For reading only."""
    return LatentIndex(knowledge_base)


@pytest.fixture
def letters(tmp_path: Path, decoder: TransformersDecoder) -> Iterator[LatentIndex]:
    made = LatentIndex.from_documents(
        DOCUMENTS, tmp_path / "letters", embed_model=Letters(), decoder=decoder
    )
    yield made
    made.close()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LlamaIndex's settings, as they were afterwards."""
    for name in ("_embed_model", "_callback_manager", "_llm"):
        monkeypatch.setattr(Settings, name, None)
    embeddings._said.clear()
    return Settings


def found(nodes: list[Any]) -> list[str]:
    return [scored.node.ref_doc_id for scored in nodes]


# --- storing (module_guides/storing/save_load) -------------------------------------------------------


def test_persist_and_load_index_from_storage_give_the_index_back(
    tmp_path: Path, index: LatentIndex, sheets: list[FactSheet], decoder: TransformersDecoder
) -> None:
    index.storage_context.persist(persist_dir=str(tmp_path / "storage"))
    question = sheets[1].questions[0]
    expected = str(index.as_query_engine(similarity_top_k=2).query(question.question))
    index.close()
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"))
    again = load_index_from_storage(context, decoder=decoder)
    assert isinstance(again, LatentIndex)
    assert str(again.as_query_engine(similarity_top_k=2).query(question.question)) == expected
    again.close()


def test_a_script_runs_twice(
    tmp_path: Path, documents: list[Document], decoder: TransformersDecoder
) -> None:
    path = tmp_path / "kb"
    LatentIndex.from_documents(documents[:3], path, codec="bf16", decoder=decoder).close()
    with pytest.raises(KnowledgeBaseError, match=r"from_path\(.*exist_ok=True"):
        LatentIndex.from_documents(documents, path)
    changed = Document(text="About zebras.", doc_id=documents[0].id_)
    twice: dict[str, Any] = {"exist_ok": True, "decoder": decoder}
    index = LatentIndex.from_documents([changed, documents[3]], path, codec="bf16", **twice)
    assert set(index.ref_doc_info) == {document.id_ for document in documents}
    assert found(index.as_retriever(1).retrieve("zebras")) == [documents[0].id_]
    index.close()
    with pytest.raises(KnowledgeBaseError, match="made with codec='bf16', not 'int8'"):
        LatentIndex.from_documents(documents, path, codec="int8", **twice)


# --- retrieving (module_guides/querying/retriever, examples/retrievers) --------------------------------


def test_a_vector_index_retriever_searches_the_knowledge_base(letters: LatentIndex) -> None:
    for mode, expected in (("default", ["bee"]), ("hybrid", ["bee"]), ("sparse", [])):
        retriever = VectorIndexRetriever(
            index=letters, similarity_top_k=1, vector_store_query_mode=mode
        )
        assert found(retriever.retrieve("bb")) == expected
        ours = letters.as_retriever(similarity_top_k=1, vector_store_query_mode=mode)
        assert found(ours.retrieve("bb")) == expected
    within = VectorIndexRetriever(index=letters, similarity_top_k=3, doc_ids=["car", "zebra"])
    assert set(found(within.retrieve("bb"))) == {"car", "zebra"}
    diverse = letters.as_retriever(
        similarity_top_k=2, vector_store_query_mode="mmr", mmr_threshold=0.9
    )
    assert found(diverse.retrieve("bb"))[0] == "bee"


def test_an_auto_retriever_writes_its_own_filters(letters: LatentIndex) -> None:
    """examples/vector_stores/chroma_auto_retriever."""

    class Writes(MockLLM):
        def _generate_text(self, length: int) -> str:
            return '{"query": "bb", "filters": [{"key": "kind", "value": "thing"}]}'

        def complete(self, *args: Any, **kwargs: Any) -> Any:
            from llama_index.core.llms import CompletionResponse

            return CompletionResponse(text=self._generate_text(0))

    info = VectorStoreInfo(
        content_info="things", metadata_info=[MetadataInfo(name="kind", type="str", description="")]
    )
    retriever = VectorIndexAutoRetriever(
        letters, vector_store_info=info, llm=Writes(), similarity_top_k=3
    )
    assert found(retriever.retrieve("bb things")) == ["car"]


def test_a_vector_store_index_over_the_knowledge_base(letters: LatentIndex) -> None:
    """module_guides/indexing/vector_store_index, with a vector store that is there already."""
    theirs = VectorStoreIndex.from_vector_store(
        LatentVectorStore(letters.knowledge_base), embed_model=MockEmbedding(2)
    )
    assert found(theirs.as_retriever(similarity_top_k=1).retrieve("bb")) == ["bee"]
    theirs.insert_nodes([TextNode(id_="dog", text="dddd")])
    store = theirs.vector_store
    assert [node.node_id for node in store.get_nodes(["dog", "nobody"])] == ["dog"]
    theirs.delete_ref_doc("bee")
    store.delete_nodes(["dog"])
    assert {node.ref_doc_id for node in store.get_nodes()} == {"zebra", "car"}
    store.clear()
    assert store.get_nodes() == []


def test_doc_ids_narrow_nodes_and_split_documents(index: LatentIndex) -> None:
    index.insert_nodes(SentenceSplitter()([Document(text="A mayor of bees.", doc_id="bees")]))
    ids = ["bees", *list(index.ref_doc_info)[:2]]
    assert set(found(index.as_retriever(9, doc_ids=ids).retrieve("mayor of the town"))) <= set(ids)
    assert found(index.as_retriever(9, doc_ids=["bees"]).retrieve("mayor")) == ["bees"]
    assert index.as_retriever(9, doc_ids=["nobody"]).retrieve("mayor") == []


def test_neighbours_and_parents_come_from_the_docstore(
    tmp_path: Path, decoder: TransformersDecoder
) -> None:
    """examples/node_postprocessor/PrevNextPostprocessorDemo, examples/retrievers/auto_merging_retriever."""
    text = " ".join(f"Sentence number {i} tells of animal{i}." for i in range(12))
    document = Document(text=text, doc_id="zoo")
    index = LatentIndex.from_documents(
        [document], tmp_path / "kb", passage_tokens=30, decoder=decoder
    )
    nodes = index.as_retriever(1).retrieve("animal5")
    around = PrevNextNodePostprocessor(docstore=index.docstore, num_nodes=1, mode="both")
    ids = [scored.node.node_id for scored in around.postprocess_nodes(nodes)]
    assert len(ids) == 3
    info = index.docstore.get_ref_doc_info("zoo")
    assert info is not None
    assert set(ids) < set(info.node_ids)
    with pytest.raises(ValueError, match="write through the index"):
        index.docstore.add_documents(nodes)
    index.close()

    parsed = HierarchicalNodeParser.from_defaults(chunk_sizes=[128, 24])([document])
    docstore = SimpleDocumentStore()
    docstore.add_documents(parsed)
    context = StorageContext.from_defaults(docstore=docstore)
    with KnowledgeBase.create(tmp_path / "leaves", decoder=decoder) as kb:
        leaves = LatentIndex(kb, get_leaf_nodes(parsed), storage_context=context)
        merging = AutoMergingRetriever(leaves.as_retriever(9), leaves.storage_context)
        (merged,) = merging.retrieve("sentence number tells animal")
        assert merged.node.child_nodes


# --- embeddings (module_guides/models/embeddings) ------------------------------------------------------


def test_the_embed_model_of_the_settings_is_used_and_said_once(
    tmp_path: Path, settings: Any, caplog: pytest.LogCaptureFixture, decoder: TransformersDecoder
) -> None:
    settings.embed_model = Letters()
    for name in ("one", "two"):
        index = LatentIndex.from_documents(DOCUMENTS, tmp_path / name, decoder=decoder)
        assert found(index.as_retriever(1).retrieve("bb")) == ["bee"]
        index.close()
    assert caplog.text.count("Settings.embed_model (Letters/letters) is used") == 1
    again = LatentIndex.from_path(tmp_path / "one", decoder=decoder)
    assert found(again.as_retriever(1).retrieve("bb")) == ["bee"]
    again.close()
    settings._embed_model = None
    lost = LatentIndex.from_path(tmp_path / "one")
    with pytest.raises(KnowledgeBaseError, match="made with the embedder 'Letters/letters'"):
        lost.as_retriever().retrieve("bb")
    lost.close()


# --- answers (module_guides/deploying/query_engine, querying/response_synthesizers) --------------------


def test_the_metadata_of_a_response_are_those_of_its_nodes(
    shared: LatentIndex, sheets: list[FactSheet]
) -> None:
    """understanding/using_llms: `response.metadata` by node id."""
    response = shared.as_query_engine(similarity_top_k=2).query(sheets[0].questions[0].question)
    assert [v["kind"] for v in response.metadata.values()]
    assert list(response.metadata) == [scored.node.node_id for scored in response.source_nodes]


@pytest.mark.parametrize("mode", ["no_text", "context_only"])
def test_a_response_mode_that_decodes_nothing(
    shared: LatentIndex, sheets: list[FactSheet], mode: str
) -> None:
    text = sheets[0].document.text
    response = shared.as_query_engine(response_mode=mode, similarity_top_k=1).query(text)
    assert len(response.source_nodes) == 1
    assert ("" if mode == "no_text" else text[:20]) in str(response.response)  # type: ignore[union-attr]


def test_engines_that_give_text_say_so_once(
    shared: LatentIndex, sheets: list[FactSheet], caplog: pytest.LogCaptureFixture
) -> None:
    """examples/query_engine/citation_query_engine, understanding/querying."""
    question, llm = sheets[0].questions[0].question, LatentLLM(shared.knowledge_base, max_tokens=4)
    shared.as_query_engine(llm=llm, similarity_top_k=1).query(question)
    assert "as latents" not in caplog.text
    CitationQueryEngine.from_args(shared, llm=llm, similarity_top_k=1).query(question)
    RetrieverQueryEngine.from_args(shared.as_retriever(1), llm=llm).query(question)
    assert caplog.text.count("No node goes into the prompt as latents, but all as text") == 1


def test_callbacks_that_are_set_after_the_index_are_called(
    shared: LatentIndex, sheets: list[FactSheet], settings: Any
) -> None:
    """module_guides/observability/callbacks."""
    steps = LlamaDebugHandler(print_trace_on_end=False)
    settings.callback_manager = CallbackManager([steps])
    shared.as_query_engine(similarity_top_k=1).query(sheets[0].questions[0].question)
    for kind in (CBEventType.QUERY, CBEventType.RETRIEVE, CBEventType.SYNTHESIZE, CBEventType.LLM):
        assert len(steps.get_event_pairs(kind)) == 1, kind


# --- nodes ------------------------------------------------------------------------------------------------


def test_nodes_with_an_image_are_read_by_their_text(
    index: LatentIndex, caplog: pytest.LogCaptureFixture
) -> None:
    picture = ImageNode(id_="picture", text="A drawing of a zebra.", image_path="zebra.png")
    index.insert_nodes([picture, ImageNode(id_="mute", image_path="x.png")])
    assert "mute has no text" in caplog.text
    (scored,) = index.as_retriever(1).retrieve("zebra drawing")
    assert scored.node == picture
    assert isinstance(scored.node, ImageNode)
    response = index.as_query_engine(similarity_top_k=1).query("zebra drawing")
    assert response.extra["latents"] == ["picture"]  # type: ignore[union-attr]


def test_nodes_are_deleted_and_objects_taken(letters: LatentIndex) -> None:
    letters.delete_nodes([])
    letters.insert_nodes([TextNode(id_="dog", text="dddd")])
    letters.delete_nodes(["dog", "dog"])
    with pytest.raises(KnowledgeBaseError, match=r"delete it whole: delete_ref_doc\('bee'\)"):
        letters.delete_nodes(["bee#0"])
    pointer = IndexNode(text="eeee", index_id="all", obj=letters.as_retriever(1))
    outer = LatentIndex(letters.knowledge_base, objects=[pointer])
    assert found(outer.as_retriever(1).retrieve("eeee"))


# --- what has no meaning here -----------------------------------------------------------------------------


def test_every_argument_that_is_not_taken_is_named(
    tmp_path: Path, letters: LatentIndex, shared: LatentIndex
) -> None:
    new = tmp_path / "new"
    refused: list[tuple[Any, str]] = [
        (lambda: LatentIndex.from_documents([], new, use_async=True), "takes no use_async: await"),
        (lambda: LatentIndex.from_documents([], new, insert_batch_size=9), "in batches by itself"),
        (lambda: LatentIndex(letters.knowledge_base, embed_model=1), "takes no embed_model"),
        (lambda: letters.as_retriever(alpha=0.5), "takes no alpha: Qdrant fuses"),
        (lambda: letters.as_query_engine(refine_template=1), "in one pass"),
        (lambda: letters.as_query_engine(output_cls=int), "in one pass"),
        (lambda: letters.as_chat_engine("context", unknown=1), "takes no unknown"),
        (lambda: LatentLLM(letters.knowledge_base, unknown=1), "LatentLLM takes no unknown"),
        (lambda: LatentCompressor(letters.knowledge_base, unknown=1), "takes no unknown"),
    ]
    for call, message in refused:
        with pytest.raises(TypeError, match=message):
            call()
    assert not new.exists()
    nodes: Any = [TextNode(text="x")]
    with pytest.raises(ValueError, match=r"needs a knowledge base to keep its nodes in"):
        LatentIndex(nodes)
    with pytest.raises(ValueError, match="'mmr' needs dense vectors"):
        shared.as_retriever(vector_store_query_mode="mmr")
    with pytest.raises(ValueError, match="no vector_store_query_mode 'svm'"):
        shared.as_retriever(vector_store_query_mode="svm")
    with pytest.raises(ValueError, match="Give embed_model"):
        LatentIndex.from_documents([], new, embed_model=Letters(), embedder="x")


def test_an_index_can_be_pickled(small_kb: KnowledgeBase, sheets: list[FactSheet]) -> None:
    with KnowledgeBase.open(small_kb.path) as kb:
        index = LatentIndex(kb)
        question = sheets[1].questions[0].question
        engine = index.as_query_engine(similarity_top_k=1, llm=LatentLLM(kb, max_tokens=3))
        expected = str(engine.query(question))
        again = pickle.loads(pickle.dumps(index))
        llm = pickle.loads(pickle.dumps(LatentLLM(kb, max_tokens=3)))
        copied = again.as_query_engine(similarity_top_k=1, llm=llm)
        assert str(copied.query(question)) == expected
        assert found(pickle.loads(pickle.dumps(index.as_retriever(1))).retrieve(question))
        again.close()
    with pytest.raises(TypeError, match="cannot be pickled with a decoder"):
        pickle.dumps(LatentIndex(small_kb))
