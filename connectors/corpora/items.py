"""What comes of a file or a record: a document, an error, or the reason why it is left out."""

from __future__ import annotations

from dataclasses import dataclass

from lclm_rag.errors import CorpusError
from lclm_rag.types import Document

__all__ = ["Item", "NotRead"]


@dataclass(frozen=True)
class NotRead:
    """A file or folder that is left out by rule, not because it is broken: "path: reason"."""

    message: str
    is_knowledge_base: bool = False


Item = tuple[int, Document | CorpusError | NotRead]
"""The line or row, from 1 (0: a whole file), and what came of it.

Errors are handed on as values, because a generator that raises cannot go on to the next record.
"""
