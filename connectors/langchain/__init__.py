"""LangChain: a retriever, a Runnable that answers questions, and a chat model, over one `KnowledgeBase`."""

from __future__ import annotations

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lclm_rag.connectors.langchain needs LangChain: pip install 'lclm-rag[langchain]'."
    ) from error

from lclm_rag.connectors.langchain.answer import LatentAnswer
from lclm_rag.connectors.langchain.chat_model import ChatLatent
from lclm_rag.connectors.langchain.documents import to_documents
from lclm_rag.connectors.langchain.filters import to_filter
from lclm_rag.connectors.langchain.retriever import LatentRetriever

__all__ = ["ChatLatent", "LatentAnswer", "LatentRetriever", "to_documents", "to_filter"]
