"""What goes in, documents; what they are split into, passages; and what comes back: hits and answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

__all__ = [
    "DEFAULT_TOP_K",
    "AddReport",
    "Answer",
    "CodecName",
    "Document",
    "DocumentParts",
    "Grounding",
    "Hit",
    "Metadata",
    "MetadataScalar",
    "MetadataValue",
    "Passage",
    "PassageKey",
    "Round",
    "Timings",
    "Usage",
    "WorkerReport",
]

MetadataScalar = str | int | float | bool
MetadataValue = MetadataScalar | None | Sequence["MetadataValue"] | Mapping[str, "MetadataValue"]
Metadata = Mapping[str, MetadataValue]
"""What JSON can hold. Filters see strings, numbers, booleans and lists of these; the rest is only kept."""

CodecName = Literal["bf16", "fp16", "int8", "int4"]
"""How latents are laid down in bytes, from large and exact to small (`lclm_rag.store.codecs`)."""

DEFAULT_TOP_K = 8
"""Passages that are retrieved for a question where nobody says how many."""

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


# --- what comes back ----------------------------------------------------------------------


@dataclass(frozen=True)
class Grounding:
    """The numbers, codes and quoted strings of an answer, each once and in its order.

    found: those that stand in the text of the answer's sources, verbatim. missing: those that do not.
    """

    found: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every such string was found; True where the answer has none."""
        return not self.missing


@dataclass(frozen=True)
class Hit:
    """A retrieved passage. start, end: its character span in the document."""

    key: PassageKey
    score: float
    text: str
    start: int
    end: int
    metadata: Metadata

    def place(self) -> dict[str, Any]:
        """Where it is, as metadata of a document in other frameworks."""
        return {
            "passage_document_id": self.key.document_id,
            "passage_ordinal": self.key.ordinal,
            "passage_start": self.start,
            "passage_end": self.end,
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "document_id": self.key.document_id,
            "ordinal": self.key.ordinal,
            "score": self.score,
            "text": self.text,
            "span": [self.start, self.end],
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True)
class Usage:
    """positions: decoder positions of the prompt, of the last one where there were several.
    unexpanded_positions: what they would have been with no passage verbatim. latents: how many of these
    are latents. source_tokens: encoder tokens that the latents stand for. generated_tokens: the answer's.
    cached_positions: how many of the positions a prefix cache held already, so that they were not computed
    again; None where a server does not say."""

    positions: int
    unexpanded_positions: int
    latents: int
    source_tokens: int
    generated_tokens: int
    cached_positions: int | None


@dataclass(frozen=True)
class Timings:
    """Seconds. first_token: from the decoder's start to the answer's first token, over all rounds. total:
    from question to answer."""

    retrieve: float
    load: float
    assemble: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Round:
    """One prompt on the way to an answer, and what the decoder replied.

    expanded: passages that stood in the prompt verbatim, and in none before. no_room: those that were
    to, and for which there was no room. positions, cached_positions: of the prompt, as in `Usage`.
    first_token, seconds: of decoding.
    """

    reply: str
    expanded: tuple[PassageKey, ...]
    no_room: tuple[PassageKey, ...]
    positions: int
    cached_positions: int | None
    generated_tokens: int
    first_token: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "expanded": [str(key) for key in self.expanded],
            "no_room": [str(key) for key in self.no_room],
        }


@dataclass(frozen=True)
class Answer:
    """sources: the passages that were in the prompt, best first. left_out: keys of retrieved passages for
    which the prompt had no room. complete: False where the answer was cut at max_tokens. grounding: its
    numbers, codes and quoted strings, looked up in the sources' text. rounds: the transcript, more than one
    where something was expanded after a first reply. reason: why there is no answer, where no passage was
    found: then nothing was decoded, and `text` is empty."""

    question: str
    text: str
    sources: list[Hit]
    left_out: list[PassageKey]
    complete: bool
    grounding: Grounding
    rounds: tuple[Round, ...]
    usage: Usage
    timings: Timings
    reason: str = ""

    @property
    def no_passages(self) -> bool:
        """Whether nothing was found to answer from."""
        return bool(self.reason)

    @property
    def expanded(self) -> list[PassageKey]:
        """The passages that the decoder read verbatim."""
        return [key for round in self.rounds for key in round.expanded]

    def to_dict(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.text,
            "no_passages": self.no_passages,
            "reason": self.reason,
            "complete": self.complete,
            "sources": [hit.to_dict() for hit in self.sources],
            "left_out": [str(key) for key in self.left_out],
            "expanded": [str(key) for key in self.expanded],
            "grounding": asdict(self.grounding),
            "rounds": [round.to_dict() for round in self.rounds],
            "usage": asdict(self.usage),
            "timings": asdict(self.timings),
        }


@dataclass(frozen=True)
class WorkerReport:
    """What one worker compressed. tokens: of the source. seconds: that it was busy, starting not included."""

    worker: str
    passages: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class AddReport:
    """What one `add` or `sync` did, to documents and passages.

    passages: of documents that are new or changed. reused: how many of these were compressed already, by a
    run that was killed or because their text had not changed. tokens, latents: of those that were compressed.
    skipped: "document: reason" for each that was left out. workers: where there are several.
    """

    added: int
    updated: int
    unchanged: int
    deleted: int
    passages: int
    reused: int
    tokens: int
    latents: int
    skipped: tuple[str, ...] = ()
    workers: tuple[WorkerReport, ...] = ()
