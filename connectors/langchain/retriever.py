"""LatentRetriever: the passages of a knowledge base as LangChain documents."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from lclm_rag.connectors.langchain.base import OverKnowledgeBase, renamed
from lclm_rag.connectors.langchain.documents import from_hit
from lclm_rag.connectors.langchain.filters import Filters, to_filter

__all__ = ["LatentRetriever"]

_ONE_CALL = {"top_k", "filters", "rerank", "mmr", "neighbours", "words_only"}


class LatentRetriever(OverKnowledgeBase, BaseRetriever):
    """The best passages for a question, best first, as LangChain documents.

    A document's id is the passage's key, "report#3". Its metadata is the passage's own, with
    passage_document_id, passage_ordinal, passage_start and passage_end (characters of the document) and
    passage_score added. `invoke` and `bind` also take `top_k` and `filters`, and the other arguments of
    `KnowledgeBase.retrieve`, for a single call. `top_k` may be called `k`, as in other retrievers.

    Attributes:
        knowledge_base: The knowledge base to retrieve from, open, or its folder.
        top_k: How many passages to retrieve.
        filters: Conditions on metadata, as `to_filter` takes them.
    """

    filters: Filters = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: Any = None, **own: Any
    ) -> list[Document]:
        named: dict[str, Any] = {"top_k": self.top_k, "filters": self.filters}
        named |= renamed(type(self).__name__, own, _ONE_CALL)
        named["filters"] = to_filter(named["filters"])
        return [from_hit(hit) for hit in self.knowledge_base.retrieve(query, **named)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: Any = None, **own: Any
    ) -> list[Document]:
        return await asyncio.to_thread(self._get_relevant_documents, query, **own)
