"""What goes in: documents, and the passages that they are split into."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

__all__ = [
    "Document",
    "Metadata",
    "MetadataScalar",
    "MetadataValue",
    "Passage",
    "PassageKey",
    "split_document",
]

MetadataScalar = str | int | float | bool
MetadataValue = MetadataScalar | None | Sequence["MetadataValue"] | Mapping[str, "MetadataValue"]
Metadata = Mapping[str, MetadataValue]
"""What JSON can hold. Filters see strings, numbers, booleans and lists of these; the rest is only kept."""


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
        content = json.dumps([self.text, dict(self.metadata)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()


def _not_json(value: object) -> str | None:
    """The type's name of the first thing in `value` that JSON cannot hold."""
    if value is None or isinstance(value, str | int | float | bool):
        return None
    if isinstance(value, list | tuple):
        inner: Iterable[object] = value
    elif isinstance(value, dict):
        if alien := next((key for key in value if not isinstance(key, str)), None):
            return f"key of type {type(alien).__name__}"
        inner = value.values()
    else:
        return type(value).__name__
    return next((alien for part in inner if (alien := _not_json(part)) is not None), None)


@dataclass(frozen=True)
class Passage:
    """A stretch of one document: the unit of retrieval, compression and expansion.

    `text` is exactly `document.text[start:end]` (characters, not bytes).
    """

    key: PassageKey
    start: int
    end: int
    text: str
    metadata: Metadata = field(default_factory=dict)


# A passage ends, by preference, after a blank line, a line, a sentence, a word; else after any character.
_BREAKS = tuple(
    re.compile(pattern) for pattern in (r"\n\s*\n\s*", r"\n\s*", r"(?<=[.!?…])[\"')\]]*\s+", r"\s+")
)

TokenOffsets = Callable[[str], Sequence[tuple[int, int]]]
"""text -> the character span of each of its tokens, in order."""


def split_document(
    document: Document, token_offsets: TokenOffsets, passage_tokens: int
) -> list[Passage]:
    """Split a document into passages of at most `passage_tokens` encoder tokens.

    Each passage ends at the last paragraph, line, sentence or word boundary (in this order of
    preference) in the second half of what fits; where there is none, after the last whole character.
    Passages follow each other without gap or overlap, so that their texts joined give the document's
    text; only white space may make a passage join its neighbour.
    """
    if passage_tokens < 1:
        raise ValueError(f"passage_tokens must be at least 1, not {passage_tokens}.")
    text = document.text
    bounds = [0]
    while bounds[-1] < len(text):
        bounds.append(_next_bound(text, bounds[-1], token_offsets, passage_tokens))
    spans = _join_blank(text, list(pairwise(bounds)))
    return [
        Passage(PassageKey(document.id, i), start, end, text[start:end], document.metadata)
        for i, (start, end) in enumerate(spans)
    ]


def _next_bound(text: str, start: int, token_offsets: TokenOffsets, passage_tokens: int) -> int:
    """Where the passage that begins at `start` ends (exclusive), in characters."""
    # A token holds at least one byte, so what fits lies within this many characters in all but
    # strange texts (long runs of one character that are a single token).
    reach = passage_tokens * 12
    while True:
        piece = text[start : start + reach]
        offsets = token_offsets(piece)
        if len(offsets) > passage_tokens or start + reach >= len(text):
            break
        reach *= 2
    if len(offsets) <= passage_tokens:
        return len(text)
    # Characters that several tokens share (byte-level tokens of one character) are never cut.
    limit = offsets[passage_tokens][0]
    if limit == 0:
        raise ValueError(
            f"passage_tokens is {passage_tokens}, but one character of {text[start : start + 1]!r} "
            "takes more tokens than that; use a larger passage_tokens."
        )
    end = _preferred_break(piece, limit)
    # A text cut elsewhere may tokenize a little longer: shrink until it fits.
    while len(token_offsets(piece[:end])) > passage_tokens:
        shorter = _preferred_break(piece, end - 1) if end > 1 else 0
        if shorter <= 0:
            raise ValueError(
                f"passage_tokens of {passage_tokens} is too small to hold {piece[:end]!r}."
            )
        end = shorter
    return start + end


def _preferred_break(piece: str, limit: int) -> int:
    for pattern in _BREAKS:
        ends = [m.end() for m in pattern.finditer(piece, 0, limit) if m.end() <= limit]
        if ends and ends[-1] > limit // 2:
            return ends[-1]
    return limit


def _join_blank(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Passages of nothing but white space join the one before (the first joins the next)."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and (not text[start:end].strip() or not text[slice(*joined[-1])].strip()):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
