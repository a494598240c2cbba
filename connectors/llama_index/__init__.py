"""LlamaIndex over a knowledge base: index, retriever, synthesizer, engines, LLM, pipeline step.

Needs `pip install 'lclm-rag[llama-index]'`.
"""

from __future__ import annotations

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "The LlamaIndex connector needs llama-index-core: pip install 'lclm-rag[llama-index]'"
    ) from error

from lclm_rag.connectors.llama_index.chat_engines import (
    LatentCondensePlusContextChatEngine,
    LatentContextChatEngine,
)
from lclm_rag.connectors.llama_index.collection import LatentCollectionIndex
from lclm_rag.connectors.llama_index.compress import LatentCompressor
from lclm_rag.connectors.llama_index.filters import to_filter
from lclm_rag.connectors.llama_index.index import LatentIndex
from lclm_rag.connectors.llama_index.llm import LatentLLM
from lclm_rag.connectors.llama_index.query_engine import LatentQueryEngine
from lclm_rag.connectors.llama_index.retriever import LatentRetriever
from lclm_rag.connectors.llama_index.storage import LatentDocstore, LatentVectorStore
from lclm_rag.connectors.llama_index.synthesizer import LatentSynthesizer

__all__ = [
    "LatentCollectionIndex",
    "LatentCompressor",
    "LatentCondensePlusContextChatEngine",
    "LatentContextChatEngine",
    "LatentDocstore",
    "LatentIndex",
    "LatentLLM",
    "LatentQueryEngine",
    "LatentRetriever",
    "LatentSynthesizer",
    "LatentVectorStore",
    "to_filter",
]
