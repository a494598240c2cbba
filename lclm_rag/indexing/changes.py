"""What the passage index of one version has to forget and to learn to be that of another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lclm_rag.retrieval import IndexEntry, PassageIndex
from lclm_rag.store import LatentStore
from lclm_rag.store.fragment import Fragment
from lclm_rag.store.manifest import FragmentEntry
from lclm_rag.store.store import visible_rows
from lclm_rag.types import Passage

__all__ = ["Changes", "entries_of"]


@dataclass(frozen=True)
class Changes:
    """What the index of one version has to forget and to learn to be that of another.

    gone, new: fragments with rows. A row that was only written elsewhere (compaction, another codec) is
    neither.
    """

    gone: list[tuple[Fragment, list[int]]]
    new: list[tuple[Fragment, list[int]]]

    @classmethod
    def between(cls, indexed: LatentStore | None, store: LatentStore) -> Changes:
        """indexed: None where the index is empty. Only fragments that the two do not share are looked at."""
        before = {e.name: e for e in indexed.manifest.fragments} if indexed else {}
        after = {e.name: e for e in store.manifest.fragments}
        gone = _only_in(indexed, before, after) if indexed else []
        new = _only_in(store, after, before)
        moved = _identities(gone) & _identities(new) if gone and new else set()
        return cls(_without(gone, moved), _without(new, moved))

    @property
    def count(self) -> int:
        return sum(len(rows) for _, rows in (*self.gone, *self.new))

    def delete(self, index: PassageIndex) -> None:
        """The first half of `apply`."""
        for fragment, rows in self.gone:
            index.delete(map(fragment.key, rows))

    def apply(self, index: PassageIndex) -> None:
        # Deletions first: a changed document has its passages under the same keys again.
        self.delete(index)
        for fragment, rows in self.new:
            index.upsert(entries_of(map(fragment.passage, rows)))
        index.flush()


def _only_in(
    store: LatentStore, entries: dict[str, FragmentEntry], others: dict[str, FragmentEntry]
) -> list[tuple[Fragment, list[int]]]:
    """The rows that one version shows and the other does not, as far as their places tell."""
    found = []
    for name, entry in entries.items():
        shown = visible_rows(entry)
        if name in others:
            shown &= ~visible_rows(others[name])
        if shown.any():
            found.append((store.fragment(name), [int(row) for row in np.flatnonzero(shown)]))
    return found


def _identity(fragment: Fragment, row: int) -> tuple[int, bytes]:
    """The same where key, text and metadata are."""
    return fragment.key_hash(row), fragment.document_hash(row)


def _identities(rows: list[tuple[Fragment, list[int]]]) -> set[tuple[int, bytes]]:
    return {_identity(fragment, row) for fragment, numbers in rows for row in numbers}


def _without(
    rows: list[tuple[Fragment, list[int]]], moved: set[tuple[int, bytes]]
) -> list[tuple[Fragment, list[int]]]:
    if not moved:
        return rows
    return [(f, [row for row in numbers if _identity(f, row) not in moved]) for f, numbers in rows]


def entries_of(passages: Iterable[Passage]) -> Iterator[IndexEntry]:
    return (IndexEntry(p.key, p.content, p.metadata) for p in passages)
