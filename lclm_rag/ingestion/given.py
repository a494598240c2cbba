"""What callers give as documents: one or many, as `Document` or as a mapping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lclm_rag.types import Document, DocumentParts, Documents

__all__ = ["as_documents"]

_KEYS = ("id", "text", "metadata")


def as_documents(given: Documents) -> Iterable[Document] | DocumentParts:
    """Take documents as `KnowledgeBase.add` is given them.

    Args:
        given: One document or many. Those of a sequence are all checked now, those of another iterable when
            it is their turn.

    Returns:
        The documents, or the parts of a corpus as they are.

    Raises:
        ValueError: When something is no document; the message says which and why.
    """
    if isinstance(given, DocumentParts):
        return given
    if isinstance(given, Document | Mapping):
        return [_document(given, "The document")]
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ValueError(
            f"Documents are given as Document(id, text, metadata) or as {{'id': …, 'text': …}}, one or "
            f"several, not as {_kind(given)}; lclm_rag.connectors.corpora reads files."
        )
    documents = _each(given)
    return list(documents) if isinstance(given, Sequence) else documents


def _each(given: Iterable[Document | Mapping[str, Any]]) -> Iterator[Document]:
    return (_document(each, f"Document {number:,}") for number, each in enumerate(given, start=1))


def _document(given: object, which: str) -> Document:
    if isinstance(given, Document):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{which} is {_kind(given)}; give Document(id, text, metadata) or a dict with id, text and "
            "metadata."
        )
    if "id" in given:
        which = f"{which} ({given['id']!r})"
    if unknown := [key for key in given if key not in _KEYS]:
        raise ValueError(
            f"{which} has the key {unknown[0]!r}; a document has id, text and metadata, and what else there "
            "is to know belongs into metadata."
        )
    if missing := [key for key in ("id", "text") if key not in given]:
        raise ValueError(f"{which} has no {missing[0]!r}; a document needs id and text.")
    metadata = given.get("metadata")
    return Document(given["id"], given["text"], {} if metadata is None else metadata)


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
