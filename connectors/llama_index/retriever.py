"""LatentRetriever: the passages of a knowledge base as nodes."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters

from lclm_rag import KnowledgeBase, Passage, PassageKey
from lclm_rag.connectors.llama_index.filters import to_filter
from lclm_rag.connectors.llama_index.nodes import to_node
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

    Raises:
        ValueError: When `similarity_top_k` is below 1, or Qdrant does not support a filter.
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        if similarity_top_k < 1:
            raise ValueError(f"similarity_top_k must be at least 1, not {similarity_top_k}.")
        self.knowledge_base = knowledge_base
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self._filter = to_filter(filters)
        super().__init__(callback_manager, object_map, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # A query transform, such as HyDE, may have set other words to search for than the question's.
        question = "\n".join(query_bundle.embedding_strs)
        kb = self.knowledge_base
        nodes = []
        for hit in kb.retrieve(question, self.similarity_top_k, self._filter):
            document_id, ordinal = hit.key
            around = (PassageKey(document_id, ordinal - 1), PassageKey(document_id, ordinal + 1))
            passage = Passage(hit.key, hit.start, hit.end, hit.text, hit.metadata)
            node = to_node(passage, [key for key in around if key in kb.store])
            nodes.append(NodeWithScore(node=node, score=hit.score))
        return nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
