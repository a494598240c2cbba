"""The passage index of a version without passages, for which no collection is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lclm_rag.errors import PassageIndexError
from lclm_rag.retrieval import Filter, IndexEntry, ScoredKey
from lclm_rag.retrieval.filters import Kind
from lclm_rag.types import PassageKey

__all__ = ["NothingIndexed"]


class NothingIndexed:
    """A `PassageIndex` of no passages."""

    def upsert(self, entries: Iterable[IndexEntry]) -> None:
        """Refuse: there is no collection yet."""
        raise PassageIndexError("There is no collection yet; it is made with the first passages.")

    def delete(self, keys: Iterable[PassageKey]) -> None:
        """Do nothing: there is nothing."""

    def search(self, question: str, top_k: int, filter: Filter | None = None) -> list[ScoredKey]:
        """No hits."""
        return []

    def search_all(
        self,
        questions: Sequence[str],
        top_k: int,
        filter: Filter | None = None,
        *,
        words_only: bool = False,
        dense_only: bool = False,
    ) -> list[list[ScoredKey]]:
        """No hits."""
        return [[] for _ in questions]

    def dense_vectors(self, keys: Sequence[PassageKey]) -> None:
        """None."""

    def keys(self, filter: Filter | None) -> list[PassageKey]:
        """No keys."""
        return []

    def has(self, filter: Filter | None) -> bool:
        """False."""
        return False

    def unmatchable(self, filter: Filter) -> list[str]:
        """No conditions: of an empty index nothing can be said."""
        return []

    def fields(self) -> dict[str, set[Kind]]:
        """No keys."""
        return {}

    def count(self) -> int:
        """0."""
        return 0

    def flush(self) -> None:
        """Do nothing."""

    def optimize(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
