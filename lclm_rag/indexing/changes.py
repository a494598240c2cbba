"""The difference between two versions of a store, as changes to a passage index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lclm_rag.retrieval import IndexEntry, PassageIndex
from lclm_rag.store import LatentStore
from lclm_rag.store.fragment import Fragment
from lclm_rag.store.lists import FragmentEntry
from lclm_rag.types import RowPlace

__all__ = ["Changes", "entries_of"]


@dataclass(frozen=True)
class Changes:
    """What must be deleted from and added to the index of one version to get that of another.

    A row that was only moved to another fragment (by compaction, or conversion to another codec) is in
    neither list.

    Attributes:
        gone: The rows to delete, by fragment; int64, ascending.
        new: The rows to add, by fragment; int64, ascending.
    """

    gone: list[tuple[Fragment, np.ndarray]]
    new: list[tuple[Fragment, np.ndarray]]

    @classmethod
    def between(cls, indexed: LatentStore | None, store: LatentStore) -> Changes:
        """The changes from one version to another.

        Only rows that just one of the two shows are looked at.

        Args:
            indexed: The version that the index shows; None if the index is empty.
            store: The version that it is to show.
        """
        # Without the lists that both versions have: a change to a large store is found without reading it
        # all.
        before = {e.name: e for e in indexed.entries_unlike(store)} if indexed else {}
        after = {e.name: e for e in store.entries_unlike(indexed)}
        gone = _only_in(indexed, before, store, after) if indexed else []
        new = _only_in(store, after, indexed, before)
        moved = _identities(gone) & _identities(new) if gone and new else set()
        return cls(_without(gone, moved), _without(new, moved))

    @property
    def count(self) -> int:
        """The number of rows to delete and to add."""
        return sum(len(rows) for _, rows in (*self.gone, *self.new))

    def delete(self, index: PassageIndex) -> None:
        """Delete from an index what is gone; this is the first half of `apply`."""
        for fragment, rows in self.gone:
            index.delete(map(fragment.key, rows.tolist()))

    def apply(self, index: PassageIndex) -> None:
        """Make the changes in an index, and flush it."""
        # Deletions first: a changed document's new passages have the keys of its old ones, and deleting
        # afterwards would remove them.
        self.delete(index)
        for fragment, rows in self.new:
            index.upsert(entries_of(fragment, rows))
        index.flush()


def _only_in(
    store: LatentStore,
    entries: dict[str, FragmentEntry],
    other: LatentStore | None,
    others: dict[str, FragmentEntry],
) -> list[tuple[Fragment, np.ndarray]]:
    """The rows that one version shows and the other does not, judged by their places."""
    found = []
    for name, entry in entries.items():
        shown = store.table.visible(entry)
        if other is not None and name in others:
            shown = shown & ~other.table.visible(others[name])
        if shown.any():
            found.append((store.fragment(name), np.flatnonzero(shown)))
    return found


def _identity(fragment: Fragment, row: int) -> tuple[int, bytes]:
    """What two rows have in common if their keys, texts and metadata are the same."""
    return fragment.key_hash(row), fragment.document_hash(row)


def _identities(rows: list[tuple[Fragment, np.ndarray]]) -> set[tuple[int, bytes]]:
    return {_identity(fragment, row) for fragment, numbers in rows for row in numbers.tolist()}


def _without(
    rows: list[tuple[Fragment, np.ndarray]], moved: set[tuple[int, bytes]]
) -> list[tuple[Fragment, np.ndarray]]:
    if not moved:
        return rows
    return [
        (f, numbers[[_identity(f, row) not in moved for row in numbers.tolist()]])
        for f, numbers in rows
    ]


def entries_of(fragment: Fragment, rows: np.ndarray) -> Iterator[IndexEntry]:
    """Rows of a fragment as entries of an index.

    Args:
        fragment: The fragment.
        rows: Their numbers.

    Yields:
        The entries, each with its place if the fragment's number is known.
    """
    for row in rows.tolist():
        passage = fragment.passage(row)
        place = None if fragment.number is None else RowPlace(fragment.number, row)
        yield IndexEntry(passage.key, passage.content, passage.metadata, place)
