"""Corpora on disk → documents: folders of text and Markdown, JSONL, Parquet."""

from __future__ import annotations

from lclm_rag.connectors.corpora.reading import count_documents, read_corpus
from lclm_rag.connectors.corpora.records import CorpusError

__all__ = ["CorpusError", "count_documents", "read_corpus"]
