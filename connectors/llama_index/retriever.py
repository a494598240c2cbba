"""LatentRetriever: the passages of a knowledge base as nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from lclm_rag import KnowledgeBase
from lclm_rag.connectors.llama_index.filters import to_filter
from lclm_rag.connectors.llama_index.searching import narrowed, ranking_of, search
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["LatentRetriever"]


class LatentRetriever(BaseRetriever):
    """Retrieves from a knowledge base, best first; the nodes carry text, metadata and scores, no latents.

    Args:
        knowledge_base: The knowledge base.
        similarity_top_k: How many passages to retrieve.
        filters: LlamaIndex's metadata filters, which Qdrant applies.
        callback_manager: LlamaIndex's callback manager.
        object_map: The objects of LlamaIndex's IndexNodes, by id.
        verbose: Whether the retriever prints what it does.
        doc_ids: Ids of the documents to search; None for all.
        node_ids: Ids of the nodes to search; None for all.
        vector_store_query_mode: "default" is the knowledge base's way; "sparse" and "text_search" are words
            alone; "hybrid" and "mmr" need an embedder.
        mmr_threshold: For "mmr": relevance against diversity, from 1 to 0.

    Raises:
        ValueError: When `similarity_top_k` is below 1, Qdrant does not support a filter, the mode is not
            possible, or a node is a passage of a document that the knowledge base has split.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
        *,
        doc_ids: Sequence[str] | None = None,
        node_ids: Sequence[str] | None = None,
        vector_store_query_mode: VectorStoreQueryMode | str = VectorStoreQueryMode.DEFAULT,
        mmr_threshold: float | None = None,
    ) -> None:
        if similarity_top_k < 1:
            raise ValueError(f"similarity_top_k must be at least 1, not {similarity_top_k}.")
        self.knowledge_base = knowledge_base
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self._filter = to_filter(filters)
        self._doc_ids, self._node_ids = doc_ids, node_ids
        self._ranking = ranking_of(knowledge_base, vector_store_query_mode, mmr_threshold)
        super().__init__(callback_manager, object_map, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # A query transform, such as HyDE, may have set other words to search for than the question's.
        question = "\n".join(query_bundle.embedding_strs)
        kb = self.knowledge_base
        # Narrowed anew each time: the documents may have other nodes by now.
        kept = narrowed(kb, self._filter, self._doc_ids, self._node_ids)
        return search(kb, question, self.similarity_top_k, kept, **self._ranking)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
