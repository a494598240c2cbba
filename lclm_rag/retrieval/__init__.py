"""question → passage keys: BM25, dense vectors or both, with metadata filters, on Qdrant.

`ServerIndex` must be imported from `lclm_rag.retrieval.server`, which needs qdrant-client.
"""

from __future__ import annotations

from lclm_rag.retrieval.bm25 import Bm25Settings, average_length
from lclm_rag.retrieval.edge import EdgeIndex
from lclm_rag.retrieval.embedders import (
    GIVEN,
    Embedder,
    SentenceTransformerEmbedder,
    load_embedder,
)
from lclm_rag.retrieval.filter_syntax import as_filter, parse_filter
from lclm_rag.retrieval.filters import (
    And,
    Compare,
    Contains,
    Filter,
    In,
    Missing,
    Not,
    OfDocuments,
    Or,
    field,
    matches,
)
from lclm_rag.retrieval.index import IndexEntry, PassageIndex, ScoredKey
from lclm_rag.retrieval.language import check_language, detect_language
from lclm_rag.retrieval.words import LANGUAGES, WORDS

__all__ = [
    "GIVEN",
    "LANGUAGES",
    "WORDS",
    "And",
    "Bm25Settings",
    "Compare",
    "Contains",
    "EdgeIndex",
    "Embedder",
    "Filter",
    "In",
    "IndexEntry",
    "Missing",
    "Not",
    "OfDocuments",
    "Or",
    "PassageIndex",
    "ScoredKey",
    "SentenceTransformerEmbedder",
    "as_filter",
    "average_length",
    "check_language",
    "detect_language",
    "field",
    "load_embedder",
    "matches",
    "parse_filter",
]
