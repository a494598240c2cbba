"""What comes back: hits and answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lclm_rag.documents import Metadata, PassageKey
from lclm_rag.grounding import Grounding

__all__ = [
    "AddReport",
    "Answer",
    "Grounding",
    "Hit",
    "Round",
    "Timings",
    "Usage",
    "WorkerReport",
]


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
    """positions: decoder positions of the prompt, of the last one where there were several.
    unexpanded_positions: what they would have been with no passage word for word. latents: how many of these
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

    expanded: passages that stood in the prompt word for word, and in none before. no_room: those that were
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
        """The passages that the decoder read word for word."""
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
