"""What every passage index does, whichever engine is under it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lclm_rag.retrieval.filters import Filter
from lclm_rag.types import Metadata, PassageKey

__all__ = ["IndexEntry", "PassageIndex", "ScoredKey"]


@dataclass(frozen=True)
class IndexEntry:
    """A passage to be found: its text is searched but not kept, its metadata can be filtered on."""

    key: PassageKey
    text: str
    metadata: Metadata = field(default_factory=dict)


class ScoredKey(NamedTuple):
    """A passage that was found. Scores compare the hits of one search, not those of two."""

    key: PassageKey
    score: float


class PassageIndex(Protocol):
    """question → passage keys. Every method raises PassageIndexError where the engine fails."""

    def upsert(self, entries: Iterable[IndexEntry]) -> None:
        """Add passages; one whose key is there already is replaced. Reads `entries` batch by batch.

        Raises ValueError for a passage that cannot be stored; the batches before it have been.
        """
        ...

    def delete(self, keys: Iterable[PassageKey]) -> None:
        """Remove passages; keys that are not there are passed over."""
        ...

    def search(self, question: str, top_k: int, filter: Filter | None = None) -> list[ScoredKey]:
        """At most `top_k` hits, best first; those of equal score in the order of their keys.

        Without an embedder a question without a word to search for (stop words only) has no hits.
        Raises ValueError for a top_k below 1.
        """
        ...

    def keys(self, filter: Filter | None) -> list[PassageKey]:
        """All passages that the filter keeps (None: all there are), in the order of their keys."""
        ...

    def has(self, filter: Filter | None) -> bool:
        """Whether there is a passage that the filter keeps."""
        ...

    def unmatchable(self, filter: Filter) -> list[str]:
        """Sentences on conditions that cannot hold, because no passage has, or had, such a key or a value of
        that kind. Costs no search."""
        ...

    def count(self) -> int:
        """How many passages there are."""
        ...

    def flush(self) -> None:
        """Return once everything written so far is on disk."""
        ...

    def optimize(self) -> None:
        """Make later searches faster where the engine does not by itself. May take minutes."""
        ...

    def close(self) -> None:
        """Flush and let go. A closed index cannot be used; closing it again does nothing."""
        ...
