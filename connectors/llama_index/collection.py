"""LatentCollectionIndex: latents for a Qdrant collection that LlamaIndex's QdrantVectorStore filled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.indices import VectorStoreIndex
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import BaseNode, Document
from llama_index.core.vector_stores import MetadataFilters

from lclm_rag import KnowledgeBase
from lclm_rag.config import is_knowledge_base
from lclm_rag.connectors.llama_index.arguments import refuse_others
from lclm_rag.connectors.llama_index.index import LatentIndex
from lclm_rag.connectors.llama_index.opening import CREATE_OPTIONS, OPEN_OPTIONS
from lclm_rag.storage import open_folder
from lclm_rag.types import DEFAULT_TOP_K

if TYPE_CHECKING:
    from llama_index.vector_stores.qdrant import QdrantVectorStore

__all__ = ["LatentCollectionIndex"]

_SCROLLED = 256
"""Points to read from the collection at once."""


class LatentCollectionIndex(LatentIndex):
    """A knowledge base whose passages are the nodes of a Qdrant collection.

    The collection is only read, never changed. It retrieves by its own vectors, and the latents come from the
    knowledge base. Nodes added to the collection after the last `sync` go into prompts as text.

    Args:
        knowledge_base: The knowledge base with the latents; it stays open until `close`.
        vector_store: The vector store of the collection.
        embed_model: The embedding model that the collection was filled with; by default
            `Settings.embed_model`.
        callback_manager: LlamaIndex's callback manager.
        show_progress: Whether to show progress bars.

    Raises:
        ValueError: When the vector store has no synchronous client, or the collection does not exist.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        vector_store: QdrantVectorStore,
        embed_model: BaseEmbedding | None = None,
        *,
        callback_manager: CallbackManager | None = None,
        show_progress: bool = False,
    ) -> None:
        _check(vector_store)
        super().__init__(
            knowledge_base, callback_manager=callback_manager, show_progress=show_progress
        )
        self._collection = vector_store
        self._retrieving = VectorStoreIndex.from_vector_store(
            vector_store, embed_model, callback_manager=callback_manager
        )
        self._embed_model = self._retrieving._embed_model

    @classmethod
    def from_vector_store(
        cls,
        vector_store: QdrantVectorStore,
        path: str | Path,
        *,
        embed_model: BaseEmbedding | None = None,
        callback_manager: CallbackManager | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> LatentCollectionIndex:
        """Compress the nodes of a collection into the knowledge base at `path`, new or existing.

        An existing knowledge base is brought up to date.

        Args:
            vector_store: The vector store of the collection.
            path: The folder of the knowledge base.
            embed_model: The embedding model that the collection was filled with; by default
                `Settings.embed_model`.
            callback_manager: LlamaIndex's callback manager.
            show_progress: Whether to show progress bars.
            **options: As for `KnowledgeBase.create`, or as for `KnowledgeBase.open` if it exists.

        Returns:
            The index, with the latents of all nodes.

        Raises:
            ValueError: When the vector store has no synchronous client, or the collection does not exist.
            TypeError: When an option is unknown.
        """
        _check(vector_store)  # Before a folder is made for the knowledge base.
        is_there = is_knowledge_base(open_folder(path))
        known = OPEN_OPTIONS if is_there else CREATE_OPTIONS
        refuse_others(f"{cls.__name__}.from_vector_store", options, known)
        kb = (KnowledgeBase.open if is_there else KnowledgeBase.create)(path, **options)
        index = cls(
            kb,
            vector_store,
            embed_model,
            callback_manager=callback_manager,
            show_progress=show_progress,
        )
        index.sync()
        return index

    def sync(self) -> None:
        """Bring the latents up to date with the collection.

        Only new and changed nodes are compressed; those that are gone from the collection are deleted.
        """
        seen: set[str] = set()

        def nodes() -> Iterator[BaseNode]:
            for node in _nodes(self._collection):
                seen.add(node.node_id)
                yield node

        self._add_nodes(nodes())
        rows = self.knowledge_base.store.passages()
        gone = {row.passage.key.document_id for row in rows} - seen
        if gone:
            self.knowledge_base.delete(sorted(gone))

    def as_retriever(
        self,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        verbose: bool = False,
        **options: Any,
    ) -> BaseRetriever:
        """The collection's own retriever.

        Args:
            similarity_top_k: How many nodes to retrieve.
            filters: LlamaIndex's metadata filters.
            verbose: Whether the retriever prints what it does.
            **options: As for LlamaIndex's `VectorIndexRetriever`.

        Raises:
            TypeError: When it has no such option.
        """
        known = set(inspect.signature(VectorIndexRetriever).parameters) - {"index", "kwargs"}
        refuse_others(
            "LatentCollectionIndex.as_retriever", options, known | {"vector_store_kwargs"}
        )
        return self._retrieving.as_retriever(
            similarity_top_k=similarity_top_k, filters=filters, verbose=verbose, **options
        )

    @property
    def vector_store(self) -> QdrantVectorStore:
        """The vector store of the collection."""
        return self._collection

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Raises ValueError: change the collection through its vector store, and call `sync`."""
        raise _read_only()

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Raises ValueError: change the collection through its vector store, and call `sync`."""
        raise _read_only()

    def delete_ref_doc(
        self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Raises ValueError: change the collection through its vector store, and call `sync`."""
        raise _read_only()

    def delete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Raises ValueError: change the collection through its vector store, and call `sync`."""
        raise _read_only()

    def _replace(self, documents: Sequence[Document], **insert_kwargs: Any) -> None:
        raise _read_only()


def _check(vector_store: QdrantVectorStore) -> None:
    name = vector_store.collection_name
    if vector_store.client is None:
        raise ValueError(
            f"The vector store of {name!r} has an asynchronous client alone; give it `client=` as well."
        )
    if not vector_store.client.collection_exists(name):
        raise ValueError(f"There is no Qdrant collection {name!r}; fill it first.")


def _read_only() -> ValueError:
    return ValueError(
        "This index stands beside a Qdrant collection: change the collection through its vector store, and "
        "call sync()."
    )


def _nodes(vector_store: QdrantVectorStore) -> Iterator[BaseNode]:
    """Every node of the collection, a batch at a time, without vectors."""
    offset = None
    while True:
        points, offset = vector_store.client.scroll(
            vector_store.collection_name,
            limit=_SCROLLED,
            offset=offset,
            with_payload=True,
            with_vectors=False,
        )
        yield from vector_store.parse_to_query_result(points).nodes or ()
        if offset is None:
            return
