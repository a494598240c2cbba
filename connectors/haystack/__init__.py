"""Haystack: a retriever and a generator as components, over one `KnowledgeBase`."""

from __future__ import annotations

try:
    import haystack  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lclm_rag.connectors.haystack needs Haystack: pip install 'lclm-rag[haystack]'."
    ) from error

from lclm_rag.connectors.haystack.components import LatentGenerator, LatentRetriever
from lclm_rag.connectors.haystack.filters import to_filter

__all__ = ["LatentGenerator", "LatentRetriever", "to_filter"]
