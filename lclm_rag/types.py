"""What goes in (documents), what they are split into (passages), and what comes back (hits and answers)."""

from __future__ import annotations

import hashlib
import html
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from lclm_rag.checks import check_unicode, not_unicode
from lclm_rag.printable import one_line, visible

__all__ = [
    "DEFAULT_TOP_K",
    "AddReport",
    "Answer",
    "CodecName",
    "Document",
    "DocumentParts",
    "Documents",
    "Grounding",
    "Hit",
    "Metadata",
    "MetadataField",
    "MetadataScalar",
    "MetadataValue",
    "Passage",
    "PassageKey",
    "Round",
    "RowPlace",
    "StoredDocument",
    "Timings",
    "Usage",
    "WorkerReport",
]

MetadataScalar = str | int | float | bool
MetadataValue = MetadataScalar | None | Sequence["MetadataValue"] | Mapping[str, "MetadataValue"]
Metadata = Mapping[str, MetadataValue]
"""What JSON can hold. Filters see strings, numbers, booleans and lists of these; the rest is only kept."""

CodecName = Literal["bf16", "fp16", "int8", "int4"]
"""How latents are encoded in bytes, from large and exact to small (`lclm_rag.store.codecs`)."""

DEFAULT_TOP_K = 8
"""How many passages are retrieved for a question by default."""

_DEEPEST = 100
"""How many lists and objects metadata may have inside each other; most readers of JSON take a few hundred."""

_HASHED_AT_ONCE = 1 << 20


class PassageKey(NamedTuple):
    """Identifies one passage: the document's id and the passage's position in it, counted from 0.

    Keys sort by document id, then ordinal: the canonical order of passages in a prompt.

    Attributes:
        document_id: The document's id.
        ordinal: The passage's position in the document, from 0.
    """

    document_id: str
    ordinal: int

    def __str__(self) -> str:
        return f"{self.document_id}#{self.ordinal}"


class RowPlace(NamedTuple):
    """Where a latent store has a passage.

    Attributes:
        fragment: The number of the fragment.
        row: The row, from 0.
    """

    fragment: int
    row: int


@dataclass(frozen=True)
class Document:
    """A document to add to a knowledge base.

    Attributes:
        id: A non-empty string that is unique in the knowledge base, without NUL.
        text: The text; it must hold more than white space.
        metadata: Any values that JSON can hold: no NaN or infinity, and texts that are valid Unicode.
            Strings, numbers, booleans and lists of these can be filtered on; null counts as missing; objects
            are only kept and given back.

    Raises:
        ValueError: When the id is empty or not a string, the text is blank or not a string, one of them
            cannot be written as UTF-8, or the metadata hold what JSON cannot. The message names the document.
    """

    id: str
    text: str
    metadata: Metadata = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"A document id must be a non-empty string, not {self.id!r}.")
        check_unicode(self.id, f"The document id {self.id!r}")
        if "\0" in self.id:
            raise ValueError(
                f"The document id {self.id!r} has a NUL character, which no command line can pass on; use "
                "another."
            )
        if not isinstance(self.text, str):
            raise ValueError(
                f"The text of document {self.id!r} must be a string, not {type(self.text).__name__}."
            )
        if not self.text.strip():
            raise ValueError(f"Document {self.id!r} is empty; leave it out or give it text.")
        check_unicode(self.text, f"The text of document {self.id!r}")
        if not isinstance(self.metadata, Mapping):
            raise ValueError(
                f"The metadata of document {self.id!r} must be a mapping, not "
                f"{type(self.metadata).__name__}."
            )
        for key, value in self.metadata.items():
            if not isinstance(key, str):
                raise ValueError(
                    f"Metadata of document {self.id!r} has the key {key!r}; use strings."
                )
            if (alien := _not_json(key) or _not_json(value)) is not None:
                raise ValueError(
                    f"Metadata {key!r} of document {self.id!r} holds {alien}; use what JSON can "
                    "hold: strings, numbers, booleans, lists and objects of these."
                )

    def content_hash(self) -> bytes:
        """Hash the text and the metadata.

        Returns:
            32 bytes that change when the text or the metadata change; the order of the metadata's keys does
            not matter.
        """
        metadata = json.dumps(dict(self.metadata), sort_keys=True)
        digest = hashlib.sha256(f"{len(self.text)} {metadata}".encode())
        # In pieces, because a text may take up a good part of the memory and should not be copied whole.
        for start in range(0, len(self.text), _HASHED_AT_ONCE):
            piece = self.text[start : start + _HASHED_AT_ONCE]
            digest.update(piece.encode("utf-8", "surrogatepass"))
        return digest.digest()


def _not_json(value: object, depth: int = 0) -> str | None:
    """The first thing in `value` that JSON cannot hold, in words; None if there is none."""
    match value:
        case None | bool():
            return None
        case str():
            return not_unicode(value)
        case int():
            return "a number of more than 308 digits" if abs(value) > sys.float_info.max else None
        case float():
            return None if math.isfinite(value) else f"the number {value}"
        case list() | tuple():
            inner: Iterable[object] = value
        case dict():
            aliens = [type(key).__name__ for key in value if not isinstance(key, str)]
            if aliens:
                return f"a key of type {aliens[0]}"
            inner = (*value, *value.values())
        case _:
            return f"a {type(value).__name__}"
    if depth == _DEEPEST:
        return f"more than {_DEEPEST} lists and objects inside each other"
    return next(
        (found for part in inner if (found := _not_json(part, depth + 1)) is not None), None
    )


@dataclass(frozen=True)
class Passage:
    """A stretch of one document: the unit of retrieval, compression and expansion.

    Attributes:
        key: The document's id and the passage's position in it.
        start: Where the passage begins in the document's text, in characters (not bytes).
        end: Where the passage ends in the document's text (exclusive), in characters.
        text: Exactly `document.text[start:end]`.
        metadata: The document's metadata.
        header: The title and the headings above the passage; empty if the knowledge base has no contextual
            headers.
    """

    key: PassageKey
    start: int
    end: int
    text: str
    metadata: Metadata = field(default_factory=dict)
    header: str = ""

    @property
    def content(self) -> str:
        """What is compressed, indexed and pasted: the text, below its header if it has one."""
        return f"{self.header}\n{self.text}" if self.header else self.text

    @cached_property
    def characters(self) -> int:
        """Approximate size in memory: the characters of header, text and metadata (as JSON)."""
        metadata = json.dumps(dict(self.metadata)) if self.metadata else ""
        return len(self.header) + len(self.text) + len(metadata)


class ReadablePart(Protocol):
    """A part of a corpus that another process, perhaps on another machine, can read by itself."""

    def read(self) -> Iterator[Document | Exception | str]:
        """Read the part's documents.

        Yields:
            The documents, the same ones in the same order each time. An exception in place of a document that
            cannot be read; a string that describes what was left out by a rule.
        """
        ...


@dataclass(frozen=True)
class DocumentParts:
    """Documents that workers read themselves, in place of a stream that this process reads.

    Attributes:
        parts: The parts; each must be picklable.
    """

    parts: Sequence[ReadablePart]


Documents = Document | Mapping[str, Any] | Iterable[Document | Mapping[str, Any]] | DocumentParts
"""What can be added: one document or many; as a mapping, a document has "id", "text" and maybe "metadata"."""


# --- what comes back ----------------------------------------------------------------------


@dataclass(frozen=True)
class Grounding:
    """The numbers, codes and quoted strings of an answer, looked up in its sources.

    Each string is listed once, in the order of the answer.

    Attributes:
        found: Strings that occur verbatim in the text of the answer's sources.
        missing: Strings that do not.
    """

    found: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every such string was found; True if the answer has none."""
        return not self.missing


@dataclass(frozen=True)
class Hit:
    """A retrieved passage.

    Attributes:
        key: The passage's key.
        score: The passage index's score for it, or the reranker's.
        text: The passage's text.
        start: Where it begins in the document's text, in characters.
        end: Where it ends in the document's text (exclusive), in characters.
        metadata: The document's metadata.
        neighbours: Other passages that `text`, `start` and `end` cover as well, because the search was to
            bring what stands beside each hit; in reading order.
    """

    key: PassageKey
    score: float
    text: str
    start: int
    end: int
    metadata: Metadata
    neighbours: tuple[PassageKey, ...] = ()

    def place(self) -> dict[str, Any]:
        """Describe where the passage is, as metadata for a document in another framework.

        Returns:
            The document's id, the passage's ordinal, and its start and end, under keys that begin with
            "passage_".
        """
        return {
            "passage_document_id": self.key.document_id,
            "passage_ordinal": self.key.ordinal,
            "passage_start": self.start,
            "passage_end": self.end,
        }

    def to_dict(self) -> dict[str, Any]:
        """The hit as a dict that JSON can hold."""
        return {
            "document_id": self.key.document_id,
            "ordinal": self.key.ordinal,
            "score": self.score,
            "text": self.text,
            "span": [self.start, self.end],
            "neighbours": [key.ordinal for key in self.neighbours],
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True)
class StoredDocument:
    """A document of a knowledge base, without its text.

    Attributes:
        id: The document's id.
        passages: How many passages it has.
        characters: How many characters its text has.
        tokens: Source tokens of its passages, their headers included.
        latents: How many latents stand for it.
        metadata: Its metadata.
    """

    id: str
    passages: int
    characters: int
    tokens: int
    latents: int
    metadata: Metadata

    def to_dict(self) -> dict[str, Any]:
        """The document as a dict that JSON can hold."""
        return {**vars(self), "metadata": dict(self.metadata)}


@dataclass(frozen=True)
class MetadataField:
    """A metadata key that documents can be filtered by.

    Attributes:
        name: The key.
        kinds: The kinds of its values, such as "string", "number" and "boolean", sorted.
        documents: How many documents have a value under it.
    """

    name: str
    kinds: tuple[str, ...]
    documents: int


@dataclass(frozen=True)
class Usage:
    """What an answer took, in decoder positions and tokens.

    Attributes:
        positions: Decoder positions of the prompt; of the last prompt if there were several rounds.
        unexpanded_positions: What they would have been with no passage verbatim.
        latents: How many of the positions are latents.
        source_tokens: Encoder tokens that the latents stand for.
        generated_tokens: Tokens of all replies, those that are not the answer included.
        cached_positions: How many of the positions a prefix cache already held, so that they were not
            computed again; None if a server does not report it.
    """

    positions: int
    unexpanded_positions: int
    latents: int
    source_tokens: int
    generated_tokens: int
    cached_positions: int | None


@dataclass(frozen=True)
class Timings:
    """How long the steps to an answer took, in seconds.

    Attributes:
        retrieve: Searching the passage index and reading the hits.
        load: Decoding the latents and, if the decoder does not do it, projecting them to decoder space.
        assemble: Building the prompt, again if passages were expanded.
        first_token: From the decoder's start to the answer's first token, over all rounds.
        total: From the question to the answer.
    """

    retrieve: float
    load: float
    assemble: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Round:
    """One prompt on the way to an answer, and what the decoder replied.

    Attributes:
        reply: The decoder's reply; for a follow-up, what was searched for.
        expanded: Passages that were verbatim in this prompt and in none before.
        no_room: Passages that should have been verbatim, but did not fit.
        positions: Decoder positions of the prompt, as in `Usage`.
        cached_positions: As in `Usage`, for this prompt.
        generated_tokens: Tokens of the reply.
        first_token: Seconds from the decoder's start to the reply's first token.
        seconds: Seconds that decoding took.
        purpose: "answer"; "follow_up", if the question was put so that it can be understood without the
            conversation before it.
    """

    reply: str
    expanded: tuple[PassageKey, ...]
    no_room: tuple[PassageKey, ...]
    positions: int
    cached_positions: int | None
    generated_tokens: int
    first_token: float
    seconds: float
    purpose: Literal["answer", "follow_up"] = "answer"

    def to_dict(self) -> dict[str, Any]:
        """The round as a dict that JSON can hold."""
        return {
            **asdict(self),
            "expanded": [str(key) for key in self.expanded],
            "no_room": [str(key) for key in self.no_room],
        }


@dataclass(frozen=True)
class Answer:
    """The answer to a question, with its sources and what it took.

    Attributes:
        question: The question.
        text: The answer; empty if there is none, for the `reason`.
        sources: The passages that were in the prompt, best first.
        left_out: Keys of retrieved passages that did not fit into the prompt.
        complete: False if the answer was cut at `max_tokens`, or the decoder did not answer.
        grounding: The answer's numbers, codes and quoted strings, looked up in the text of the sources.
        rounds: The transcript; more than one round if passages were expanded after a first reply. The answer
            need not be the last reply: see "auto" of `Expand`.
        usage: Positions and tokens.
        timings: Seconds.
        history_left_out: Turns of the conversation, the oldest, for which the prompt had no room.
        reason: Why there is no answer: no passage was found, so nothing was decoded; the decoder kept
            asking for passages; or it wrote nothing but thoughts. Otherwise empty.
    """

    question: str
    text: str
    sources: list[Hit]
    left_out: list[PassageKey]
    complete: bool
    grounding: Grounding
    rounds: tuple[Round, ...]
    usage: Usage
    timings: Timings
    history_left_out: int = 0
    reason: str = ""

    @property
    def no_passages(self) -> bool:
        """Whether no passage was found, so that nothing was decoded."""
        return bool(self.reason) and not self.rounds

    @property
    def expanded(self) -> list[PassageKey]:
        """The passages that the decoder read verbatim."""
        return [key for round in self.rounds for key in round.expanded]

    def __str__(self) -> str:
        """The text alone."""
        return self.text

    def details(self) -> list[str]:
        """Describe what the answer rests on and what it took, as it is shown below its text.

        Returns:
            One line for each source, for what is wrong with the answer, and for what it took. They hold
            nothing that a terminal would obey.
        """
        expanded = set(self.expanded)
        lines = [
            f"{hit.score:6.2f}  {hit.key}  {_excerpt(hit.text)}"
            + ("  (verbatim)" if hit.key in expanded else "")
            for hit in self.sources
        ]
        if self.grounding.missing:
            lines.append(f"not in the sources: {', '.join(self.grounding.missing)}")
        if len(self.rounds) > 1:
            first = _excerpt(self.rounds[0].reply)
            lines.append(f"decoded {len(self.rounds)} times; the first reply: {first}")
        if no_room := [str(key) for round in self.rounds for key in round.no_room]:
            lines.append(f"no room to expand: {', '.join(no_room)}")
        if self.left_out:
            lines.append(f"left out, no room in the prompt: {', '.join(map(str, self.left_out))}")
        if not self.complete and not self.reason:
            cut = self.rounds[-1].generated_tokens
            lines.append(f"cut after {cut} tokens; raise max_tokens (--max-tokens)")
        usage, timings = self.usage, self.timings
        cached = f" ({usage.cached_positions:,} cached)" if usage.cached_positions else ""
        lines.append(
            f"{usage.source_tokens:,} source tokens as {usage.latents:,} latents, "
            f"{usage.positions:,} prompt positions{cached}; first token after "
            f"{timings.first_token * 1000:.0f} ms, {timings.total * 1000:.0f} ms in all"
        )
        return [one_line(line) for line in lines]

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, and `details` below it."""
        details = html.escape("\n".join(self.details()))
        said = self.text or self.reason
        return (
            f'<div style="white-space: pre-wrap">{html.escape(visible(said))}</div>'
            f'<pre style="font-size: smaller; overflow-x: auto">{details}</pre>'
        )

    def to_dict(self) -> dict[str, Any]:
        """The answer as a dict that JSON can hold."""
        return {
            "question": self.question,
            "answer": self.text,
            "no_passages": self.no_passages,
            "reason": self.reason,
            "complete": self.complete,
            "sources": [hit.to_dict() for hit in self.sources],
            "left_out": [str(key) for key in self.left_out],
            "history_left_out": self.history_left_out,
            "expanded": [str(key) for key in self.expanded],
            "grounding": asdict(self.grounding),
            "rounds": [round.to_dict() for round in self.rounds],
            "usage": asdict(self.usage),
            "timings": asdict(self.timings),
        }


def _excerpt(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


@dataclass(frozen=True)
class WorkerReport:
    """What one worker compressed.

    Attributes:
        worker: The worker's name.
        passages: Passages that it compressed.
        tokens: Source tokens of these passages.
        seconds: How long it was busy, without the time it took to start.
    """

    worker: str
    passages: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class AddReport:
    """What one `add` or `sync` did, in documents and passages.

    Attributes:
        added: New documents.
        updated: Documents whose text or metadata changed.
        unchanged: Documents that were skipped because nothing in them changed.
        deleted: Documents that `sync` deleted.
        passages: Passages of the new and changed documents.
        reused: How many of these passages were compressed already, by a run that was killed or because their
            text had not changed.
        tokens: Source tokens that were compressed.
        latents: Latents that were computed.
        skipped: "document: reason" for each document that was left out.
        workers: What each worker did, if there were several.
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
