"""What reading a file or a record gives: a document, an error, or the reason why it is left out."""

from __future__ import annotations

from dataclasses import dataclass

from lclm_rag.errors import CorpusError
from lclm_rag.types import Document

__all__ = ["Item", "NotRead"]


@dataclass(frozen=True)
class NotRead:
    """A file or folder that is left out by rule, not because it is broken.

    Attributes:
        message: "path: reason".
        is_knowledge_base: Whether it is left out because it is a knowledge base.
    """

    message: str
    is_knowledge_base: bool = False


Item = tuple[int, Document | CorpusError | NotRead]
"""The number of a line or row, from 1 (0 for a whole file), and the result of reading it.

Errors are passed on as values, because a generator that raises cannot continue with the next record.
"""
