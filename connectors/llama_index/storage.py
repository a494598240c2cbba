"""A knowledge base behind LlamaIndex's storage interfaces: docstore, vector store, storage context.

They show what the knowledge base holds; nothing is kept twice. What `StorageContext.persist` writes names the
knowledge base's folder, and `load_index_from_storage` opens it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.graph_stores import SimpleGraphStore
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.docstore.types import BaseDocumentStore, RefDocInfo
from llama_index.core.storage.index_store import SimpleIndexStore
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from lclm_rag import KnowledgeBase, PassageKey
from lclm_rag.connectors.llama_index.filters import to_filter
from lclm_rag.connectors.llama_index.nodes import (
    add_to,
    delete_nodes,
    documents_of,
    find_node,
    node_of,
    ref_doc_infos,
)
from lclm_rag.connectors.llama_index.searching import narrowed, ranking_of, search

__all__ = ["LatentDocstore", "LatentStruct", "LatentVectorStore", "storage_context_of"]


@dataclass
class LatentStruct(IndexDict):
    """What LlamaIndex stores of a `LatentIndex`: the folder of its knowledge base.

    Attributes:
        path: The folder.
    """

    path: str = ""

    @classmethod
    def get_type(cls) -> Any:
        """The name of the type in LlamaIndex's registries."""
        return "lclm_rag"


# LlamaIndex finds classes by this name when it reads what `persist` wrote; it has no function for it.
INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[LatentStruct.get_type()] = LatentStruct


def storage_context_of(
    knowledge_base: KnowledgeBase, given: StorageContext | None = None
) -> StorageContext:
    """A storage context over a knowledge base.

    Args:
        knowledge_base: The knowledge base.
        given: A storage context whose docstore holds further nodes, such as parents of those that are
            compressed.

    Returns:
        A storage context with a `LatentDocstore` and a `LatentVectorStore`.

    Raises:
        ValueError: When `given` has a vector store that could hold nodes, other than this knowledge base.
    """
    docstore = index_store = None
    if given is not None:
        docstore, index_store = given.docstore, given.index_store
        _check_vector_stores(given, knowledge_base)
    return StorageContext(
        docstore=LatentDocstore(knowledge_base, docstore),
        index_store=index_store or SimpleIndexStore(),
        vector_stores={DEFAULT_VECTOR_STORE: LatentVectorStore(knowledge_base)},
        graph_store=SimpleGraphStore(),
    )


def _check_vector_stores(given: StorageContext, knowledge_base: KnowledgeBase) -> None:
    for store in given.vector_stores.values():
        if isinstance(store, LatentVectorStore) and store.client is knowledge_base:
            continue
        if not isinstance(store, SimpleVectorStore) or store.data.embedding_dict:
            raise ValueError(
                f"A LatentIndex keeps its nodes in its knowledge base, not in a {type(store).__name__}; take "
                "it out of the storage_context, or see LatentCollectionIndex for a Qdrant collection."
            )


class LatentDocstore(BaseDocumentStore):
    """The nodes of a knowledge base, for reading; write through the index.

    Args:
        knowledge_base: The knowledge base.
        further: A docstore with further nodes, which are found, too.
    """

    def __init__(
        self, knowledge_base: KnowledgeBase, further: BaseDocumentStore | None = None
    ) -> None:
        self._kb = knowledge_base
        self._further = None if isinstance(further, LatentDocstore) else further

    @property
    def docs(self) -> dict[str, BaseNode]:
        """All nodes by id; reads the whole store."""
        rows = self._kb.store.passages()
        nodes = (node_of(row.passage, self._kb) for row in rows)
        further = {} if self._further is None else self._further.docs
        return {**further, **{node.node_id: node for node in nodes}}

    def get_document(self, doc_id: str, raise_error: bool = True) -> BaseNode | None:
        """The node with an id.

        Args:
            doc_id: The node's id.
            raise_error: Whether an unknown id is an error; if not, the result is None.

        Raises:
            ValueError: When there is no such node.
        """
        node = find_node(doc_id, self._kb)
        if node is None and self._further is not None:
            node = self._further.get_document(doc_id, raise_error=False)
        if node is None and raise_error:
            raise ValueError(f"There is no node {doc_id!r} in {self._kb.path}.")
        return node

    def document_exists(self, doc_id: str) -> bool:
        """Whether there is a node with this id."""
        return self.get_document(doc_id, raise_error=False) is not None

    def get_document_hash(self, doc_id: str) -> str | None:
        """The hash of the node with this id; None if there is none."""
        node = self.get_document(doc_id, raise_error=False)
        return None if node is None else node.hash

    def get_all_document_hashes(self) -> dict[str, str]:
        """The id of each node by its hash; reads the whole store."""
        return {node.hash: node_id for node_id, node in self.docs.items()}

    def get_all_ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The nodes and metadata of each document, by document id; reads the whole store."""
        return ref_doc_infos(row.passage for row in self._kb.store.passages())

    def get_ref_doc_info(self, ref_doc_id: str) -> RefDocInfo | None:
        """The nodes and metadata of one document; None if there is none."""
        store = self._kb.store
        keys = [k for d in documents_of([ref_doc_id], self._kb) for k in store.document_keys(d)]
        return ref_doc_infos(row.passage for row in store.read(keys)).get(ref_doc_id)

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Write an empty docstore, which LlamaIndex wants to find beside the name of the knowledge base."""
        (self._further or SimpleDocumentStore()).persist(persist_path, fs)

    # --- writing: by the index alone ----------------------------------------------------------------

    def add_documents(self, docs: Sequence[BaseNode], *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    def delete_document(self, doc_id: str, raise_error: bool = True) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    def delete_ref_doc(self, ref_doc_id: str, raise_error: bool = True) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    def set_document_hash(self, doc_id: str, doc_hash: str) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    def set_document_hashes(self, doc_hashes: dict[str, str]) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    # --- the same for event loops -------------------------------------------------------------------

    async def async_add_documents(
        self, docs: Sequence[BaseNode], *args: Any, **kwargs: Any
    ) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    async def adelete_document(self, doc_id: str, raise_error: bool = True) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    async def adelete_ref_doc(self, ref_doc_id: str, raise_error: bool = True) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    async def aset_document_hash(self, doc_id: str, doc_hash: str) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    async def aset_document_hashes(self, doc_hashes: dict[str, str]) -> None:
        """Raises ValueError: write through the index."""
        raise _read_only()

    async def aget_document(self, doc_id: str, raise_error: bool = True) -> BaseNode | None:
        """`get_document` for event loops."""
        return await asyncio.to_thread(self.get_document, doc_id, raise_error)

    async def adocument_exists(self, doc_id: str) -> bool:
        """`document_exists` for event loops."""
        return await asyncio.to_thread(self.document_exists, doc_id)

    async def aget_document_hash(self, doc_id: str) -> str | None:
        """`get_document_hash` for event loops."""
        return await asyncio.to_thread(self.get_document_hash, doc_id)

    async def aget_all_document_hashes(self) -> dict[str, str]:
        """`get_all_document_hashes` for event loops."""
        return await asyncio.to_thread(self.get_all_document_hashes)

    async def aget_all_ref_doc_info(self) -> dict[str, RefDocInfo]:
        """`get_all_ref_doc_info` for event loops."""
        return await asyncio.to_thread(self.get_all_ref_doc_info)

    async def aget_ref_doc_info(self, ref_doc_id: str) -> RefDocInfo | None:
        """`get_ref_doc_info` for event loops."""
        return await asyncio.to_thread(self.get_ref_doc_info, ref_doc_id)


def _read_only() -> ValueError:
    return ValueError(
        "The docstore of a LatentIndex shows its knowledge base, for reading; write through the index: "
        "insert, insert_nodes, delete_ref_doc, delete_nodes."
    )


class LatentVectorStore(BasePydanticVectorStore):
    """A knowledge base as a vector store of LlamaIndex.

    It makes the vectors itself (BM25, and the knowledge base's own embedder): embeddings that LlamaIndex
    gives it are not used. Query modes: "default" is the knowledge base's way, "sparse" and "text_search" are
    words alone; "hybrid" and "mmr" need an embedder.

    Args:
        knowledge_base: An open knowledge base, or the folder of one.
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    knowledge_base: str = Field(description="Folder of the knowledge base.")

    _kb: KnowledgeBase = PrivateAttr()

    def __init__(self, knowledge_base: KnowledgeBase | str | Path) -> None:
        kb = knowledge_base
        if not isinstance(kb, KnowledgeBase):
            kb = KnowledgeBase.open(kb)
        own: dict[str, Any] = {"knowledge_base": str(kb.path)}
        super().__init__(**own)
        self._kb = kb

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._kb,)

    @classmethod
    def class_name(cls) -> str:
        """The name that identifies the class in saved components."""
        return "LatentVectorStore"

    @property
    def client(self) -> KnowledgeBase:
        """The knowledge base."""
        return self._kb

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search the knowledge base.

        Args:
            query: The query; it needs `query_str`.
            **kwargs: "mmr_threshold" for the mode "mmr".

        Returns:
            The nodes, best first, with scores and ids.

        Raises:
            ValueError: When the query has no words, or a mode or an option that there is not here.
        """
        if not query.query_str:
            raise ValueError(
                "A LatentVectorStore makes its own vectors; give the query's query_str."
            )
        if query.alpha is not None or query.sparse_top_k or query.hybrid_top_k:
            raise ValueError(
                "A LatentVectorStore takes no alpha, sparse_top_k or hybrid_top_k: Qdrant fuses words and "
                "vectors by their ranks."
            )
        threshold = kwargs.get("mmr_threshold", query.mmr_threshold)
        found = search(
            self._kb,
            query.query_str,
            query.similarity_top_k,
            narrowed(self._kb, to_filter(query.filters), query.doc_ids, query.node_ids),
            **ranking_of(self._kb, query.mode, threshold),
        )
        nodes = [scored.node for scored in found]
        return VectorStoreQueryResult(
            nodes=nodes,
            similarities=[scored.get_score() for scored in found],
            ids=[node.node_id for node in nodes],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """`query` for event loops."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Read nodes.

        Args:
            node_ids: The nodes' ids; unknown ones are left out.
            filters: Conditions on metadata, for all nodes or for those.

        Returns:
            The nodes; all of them without arguments.
        """
        kb, condition = self._kb, to_filter(filters)
        keys = None if condition is None else kb.find(condition)
        if node_ids is None:
            rows = kb.store.passages() if keys is None else kb.store.read(keys)
            return [node_of(row.passage, kb) for row in rows]
        found = [find_node(node_id, kb) for node_id in node_ids]
        if keys is None:
            return [node for node in found if node is not None]
        kept = {str(key) for key in keys} | {key.document_id for key in keys if not key.ordinal}
        return [node for node in found if node is not None and node.node_id in kept]

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Compress nodes; those of the same id are replaced.

        Args:
            nodes: The nodes.
            **kwargs: Ignored; LlamaIndex passes its own.

        Returns:
            The ids of the nodes that have text.
        """
        written = add_to(self._kb, nodes, split=False)
        return [node.node_id for node in nodes if node.node_id in written]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete a document and its nodes, if it is there."""
        if gone := documents_of([ref_doc_id], self._kb):
            self._kb.delete(gone)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes.

        Args:
            node_ids: The nodes' ids.
            filters: Conditions on metadata, for all nodes or for those.
            **delete_kwargs: Ignored.

        Raises:
            ValueError: When a node is a passage of a document that the knowledge base has split.
        """
        known = self.get_nodes(node_ids, filters) if node_ids or filters else []
        delete_nodes([node.node_id for node in known], self._kb)

    def clear(self) -> None:
        """Delete everything."""
        keys: list[PassageKey] = self._kb.index.keys(None)
        if keys:
            self._kb.delete(sorted({key.document_id for key in keys}))
