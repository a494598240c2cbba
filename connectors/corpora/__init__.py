"""Reads corpora as documents: folders, globs, files, data sets and records, local or in an object store."""

from __future__ import annotations

from lclm_rag.connectors.corpora.counting import count_documents
from lclm_rag.connectors.corpora.limits import ReadingLimits
from lclm_rag.connectors.corpora.number_hints import number_like_columns
from lclm_rag.connectors.corpora.parts import corpus_parts
from lclm_rag.connectors.corpora.reading import documents_from_records, read_corpus
from lclm_rag.errors import CorpusError

__all__ = [
    "CorpusError",
    "ReadingLimits",
    "corpus_parts",
    "count_documents",
    "documents_from_records",
    "number_like_columns",
    "read_corpus",
]
