"""What goes in: documents, and the passages that they are split into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

__all__ = [
    "Document",
    "DocumentParts",
    "Metadata",
    "MetadataScalar",
    "MetadataValue",
    "Passage",
    "PassageKey",
]

MetadataScalar = str | int | float | bool
MetadataValue = MetadataScalar | None | Sequence["MetadataValue"] | Mapping[str, "MetadataValue"]
Metadata = Mapping[str, MetadataValue]
"""What JSON can hold. Filters see strings, numbers, booleans and lists of these; the rest is only kept."""

_HASHED_AT_ONCE = 1 << 20


class PassageKey(NamedTuple):
    """Names one passage: the document's id and the passage's place in it, counted from 0.

    Keys sort by document id, then ordinal: the canonical order of passages in a prompt.
    """

    document_id: str
    ordinal: int

    def __str__(self) -> str:
        return f"{self.document_id}#{self.ordinal}"


@dataclass(frozen=True)
class Document:
    """What the user gives.

    `metadata` values are what JSON can hold. Strings, numbers, booleans and lists of these can be filtered
    on; null counts as missing; objects are kept and given back.
    """

    id: str
    text: str
    metadata: Metadata = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"A document id must be a non-empty string, not {self.id!r}.")
        if not isinstance(self.text, str):
            raise ValueError(
                f"The text of document {self.id!r} must be a string, not {type(self.text).__name__}."
            )
        if not self.text.strip():
            raise ValueError(f"Document {self.id!r} is empty; leave it out or give it text.")
        for key, value in self.metadata.items():
            if not isinstance(key, str):
                raise ValueError(
                    f"Metadata of document {self.id!r} has the key {key!r}; use strings."
                )
            if (alien := _not_json(value)) is not None:
                raise ValueError(
                    f"Metadata {key!r} of document {self.id!r} holds a {alien}; use what JSON can "
                    "hold: strings, numbers, booleans, lists and objects of these."
                )

    def content_hash(self) -> bytes:
        """32 bytes that change when text or metadata change; the order of the keys does not count."""
        metadata = json.dumps(dict(self.metadata), sort_keys=True)
        digest = hashlib.sha256(f"{len(self.text)} {metadata}".encode())
        # In pieces, because a text may be a good part of what fits into memory.
        for start in range(0, len(self.text), _HASHED_AT_ONCE):
            piece = self.text[start : start + _HASHED_AT_ONCE]
            digest.update(piece.encode("utf-8", "surrogatepass"))
        return digest.digest()


def _not_json(value: object) -> str | None:
    """The type's name of the first thing in `value` that JSON cannot hold."""
    if value is None or isinstance(value, str | int | float | bool):
        return None
    if isinstance(value, list | tuple):
        inner: Iterable[object] = value
    elif isinstance(value, dict):
        aliens = [type(key).__name__ for key in value if not isinstance(key, str)]
        if aliens:
            return f"key of type {aliens[0]}"
        inner = value.values()
    else:
        return type(value).__name__
    return next((alien for part in inner if (alien := _not_json(part)) is not None), None)


@dataclass(frozen=True)
class Passage:
    """A stretch of one document: the unit of retrieval, compression and expansion.

    `text` is exactly `document.text[start:end]` (characters, not bytes). `header` is the title and the
    headings that it stands under; empty where the knowledge base has no contextual headers.
    """

    key: PassageKey
    start: int
    end: int
    text: str
    metadata: Metadata = field(default_factory=dict)
    header: str = ""

    @property
    def content(self) -> str:
        """What is compressed, indexed and pasted: the text, below its header where there is one."""
        return f"{self.header}\n{self.text}" if self.header else self.text

    @cached_property
    def characters(self) -> int:
        """About how much memory it takes: the characters of header, text and metadata (as JSON)."""
        metadata = json.dumps(dict(self.metadata)) if self.metadata else ""
        return len(self.header) + len(self.text) + len(metadata)


class ReadablePart(Protocol):
    """A part of a corpus that another process, on another machine perhaps, can read by itself."""

    def read(self) -> Iterator[Document | Exception | str]:
        """Its documents, the same in the same order each time; an error in place of what cannot be read; a
        text about what is left out by rule."""
        ...


@dataclass(frozen=True)
class DocumentParts:
    """Documents that workers read where they lie, in place of a stream that this process reads. parts: each
    can be pickled."""

    parts: Sequence[ReadablePart]
