"""What comes back: hits and answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lclm_rag.documents import Metadata, PassageKey

__all__ = ["AddReport", "Answer", "Hit", "Timings", "Usage", "WorkerReport"]


@dataclass(frozen=True)
class Hit:
    """A retrieved passage. start, end: its character span in the document."""

    key: PassageKey
    score: float
    text: str
    start: int
    end: int
    metadata: Metadata

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
    """positions: decoder positions of the prompt. latents: how many of these are latents.
    source_tokens: encoder tokens that the latents stand for. generated_tokens: the answer's.
    cached_positions: how many of the positions a prefix cache held already, so that they were not computed
    again; None where a server does not say."""

    positions: int
    latents: int
    source_tokens: int
    generated_tokens: int
    cached_positions: int | None


@dataclass(frozen=True)
class Timings:
    """Seconds. first_token: from the decoder's start to its first token. total: from question to answer."""

    retrieve: float
    load: float
    assemble: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Answer:
    """sources: the passages that were in the prompt, best first. left_out: keys of retrieved passages for
    which the prompt had no room. complete: False where the answer was cut at max_tokens."""

    question: str
    text: str
    sources: list[Hit]
    left_out: list[PassageKey]
    complete: bool
    usage: Usage
    timings: Timings

    def to_dict(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.text,
            "complete": self.complete,
            "sources": [hit.to_dict() for hit in self.sources],
            "left_out": [str(key) for key in self.left_out],
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
