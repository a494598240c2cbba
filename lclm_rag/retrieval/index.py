"""The interface that every passage index has, independent of its engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lclm_rag.retrieval.filters import Filter, Kind
from lclm_rag.types import Metadata, PassageKey, RowPlace

if TYPE_CHECKING:
    import numpy as np

__all__ = ["IndexEntry", "PassageIndex", "ScoredKey"]


@dataclass(frozen=True)
class IndexEntry:
    """A passage to put into an index.

    Attributes:
        key: The key that a search returns.
        text: The text to search, header included; the index does not keep it.
        metadata: The metadata to filter on.
        place: Where the store has the passage, kept with it as a hint; None to keep none.
    """

    key: PassageKey
    text: str
    metadata: Metadata = field(default_factory=dict)
    place: RowPlace | None = None


class ScoredKey(NamedTuple):
    """A passage that a search returned.

    Attributes:
        key: The passage.
        score: Higher is better; comparable only with other hits of the same search.
        place: Where the store had the passage when it was put into the index; None if that was not kept. It
            may have moved since.
    """

    key: PassageKey
    score: float
    place: RowPlace | None = None


class PassageIndex(Protocol):
    """question → passage keys.

    Every method raises PassageIndexError if the engine fails.
    """

    def upsert(self, entries: Iterable[IndexEntry]) -> None:
        """Add passages; one whose key is already in the index is replaced.

        Args:
            entries: The passages, read batch by batch.

        Raises:
            ValueError: When a passage cannot be stored. The batches before it have been stored.
            PassageIndexError: When the engine fails.
        """
        ...

    def delete(self, keys: Iterable[PassageKey]) -> None:
        """Remove passages.

        Args:
            keys: The passages' keys; keys that are not in the index are ignored.

        Raises:
            PassageIndexError: When the engine fails.
        """
        ...

    def search(self, question: str, top_k: int, filter: Filter | None = None) -> list[ScoredKey]:
        """Search for the passages that fit a question best.

        Args:
            question: The question. Without an embedder, a question of nothing but stop words has no hits.
            top_k: The number of hits to return.
            filter: Keeps only passages whose metadata match; None keeps all.

        Returns:
            At most `top_k` hits, best first; hits of equal score in the order of their keys.

        Raises:
            ValueError: When `top_k` is below 1.
            PassageIndexError: When the engine fails.
        """
        ...

    def search_all(
        self,
        questions: Sequence[str],
        top_k: int,
        filter: Filter | None = None,
        *,
        words_only: bool = False,
        dense_only: bool = False,
    ) -> list[list[ScoredKey]]:
        """Search for several questions together.

        Args:
            questions: The questions.
            top_k: As for `search`.
            filter: As for `search`; it holds for every question.
            words_only: Whether to leave the dense vectors out, if there are any.
            dense_only: Whether to leave the words out. Without an embedder there are no hits then.

        Returns:
            For each question what `search` returns.

        Raises:
            ValueError: As for `search`.
            PassageIndexError: As for `search`.
        """
        ...

    def dense_vectors(self, keys: Sequence[PassageKey]) -> np.ndarray | None:
        """Read the dense vectors of passages.

        Args:
            keys: The passages' keys, all of them in the index.

        Returns:
            The vectors, float32 [len(keys), width], each of length 1; None without an embedder.

        Raises:
            PassageIndexError: When the engine fails, or does not hold one of the passages.
        """
        ...

    def keys(self, filter: Filter | None) -> list[PassageKey]:
        """List the passages that a filter keeps.

        Args:
            filter: The filter; None for all passages.

        Returns:
            The passages' keys, sorted.

        Raises:
            PassageIndexError: When the engine fails.
        """
        ...

    def has(self, filter: Filter | None) -> bool:
        """Whether there is a passage that the filter keeps (None: any passage at all)."""
        ...

    def unmatchable(self, filter: Filter) -> list[str]:
        """Explain which conditions of a filter cannot hold. Costs no search.

        A condition cannot hold if no passage has, or ever had, such a metadata key or a value of that kind.

        Args:
            filter: The filter to check.

        Returns:
            A sentence for each such condition; empty if all can hold.

        Raises:
            PassageIndexError: When the engine fails.
        """
        ...

    def fields(self) -> dict[str, set[Kind]]:
        """The kinds of values under each metadata key that filters can name. Costs no search.

        Keys and kinds that occurred once, and whose passages were deleted since, are among them.
        """
        ...

    def count(self) -> int:
        """The number of passages in the index."""
        ...

    def flush(self) -> None:
        """Return once everything written so far is on disk."""
        ...

    def optimize(self) -> None:
        """Make later searches faster, if the engine does not do so by itself. May take minutes."""
        ...

    def close(self) -> None:
        """Flush and release the engine. A closed index cannot be used; closing it again does nothing."""
        ...
