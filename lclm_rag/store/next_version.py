"""What a commit writes besides fragments and the manifest: bitmaps, fragment lists, key runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from lclm_rag.store.fragment import Layout
from lclm_rag.store.keys import (
    KeyRun,
    RunEntry,
    SortedKeys,
    merge_with,
    merged,
    run_name,
    write_run,
)
from lclm_rag.store.lists import FragmentEntry, FragmentTable, next_lists, with_deletions
from lclm_rag.store.manifest import Manifest, Operation, Totals
from lclm_rag.store.parts import KEYS, StoreFile
from lclm_rag.store.store import LatentStore, key_records

__all__ = ["Added", "draft_version"]

_ROWS_AT_ONCE = 1 << 22
"""So many keys are sorted in memory: 64 MiB of them."""

Added = tuple[FragmentEntry, np.ndarray]
"""A fragment that comes to a version, and which of its rows the version shows, bool [rows]."""


def draft_version(
    base: LatentStore,
    operation: Operation,
    *,
    visible: Mapping[int, np.ndarray],
    added: Sequence[Added],
    totals: Totals,
    layout: Layout,
    keys: Literal["add", "merge", "rebuild"],
    files: list[StoreFile],
) -> Manifest:
    """Write everything that a version after `base` needs besides its fragments.

    Args:
        base: The version before.
        operation: The operation that makes the new version.
        visible: Which rows the new version shows of fragments of `base`, bool [rows], by their numbers;
            without those that do not change. A fragment of which it shows nothing is no part of it.
        added: The fragments that come to it.
        totals: How much it shows.
        layout: What all of its fragments have in common.
        keys: What becomes of the key runs: "add" writes one, and merges runs of like size; "merge" makes one
            of all; "rebuild" makes one from the fragments.
        files: Takes what is written, also if this fails. If the version is not committed, nothing needs
            these.

    Returns:
        The version's manifest, which is not in place yet.

    Raises:
        DamagedError: If a list, a bitmap, or the keys that are read are damaged.
    """
    folder, before = base.folder, base.manifest
    entries = {number: base.table[number] for number in visible}
    new = [(entry, shown) for entry, shown in added if shown.any()]
    numbered = [
        (replace(entry, number=before.next_fragment + at, deletions=None), shown)
        for at, (entry, shown) in enumerate(new)
    ]
    # 1. Bitmaps, all in one file.
    holed = [(entries[number], shown) for number, shown in visible.items() if shown.any()]
    holed += [(entry, shown) for entry, shown in numbered if not shown.all()]
    now = {entry.number: entry for entry in with_deletions(folder, holed, files)}
    # 2. The lists of fragments that changed.
    lists = next_lists(
        base.table,
        folder,
        {number: now.get(number) for number in visible},
        [now.get(entry.number, entry) for entry, _ in numbered],
        files,
    )
    gone = [entries[number] for number in visible if number not in now]
    manifest = before.next(
        operation,
        totals=totals,
        layout=layout,
        lists=tuple(lists),
        keys=(),
        fragments=before.fragments - len(gone) + len(numbered),
        bytes=before.bytes
        - sum(entry.bytes for entry in gone)
        + sum(entry.bytes for entry, _ in numbered),
        next_fragment=before.next_fragment + len(numbered),
    )
    # 3. Key runs.
    draft = LatentStore(folder, manifest)
    runs = _runs(draft, before.keys, [entry for entry, _ in numbered], keys, files)
    return replace(manifest, keys=tuple(runs))


def _runs(
    draft: LatentStore,
    before: Sequence[RunEntry],
    added: Sequence[FragmentEntry],
    how: Literal["add", "merge", "rebuild"],
    files: list[StoreFile],
) -> list[RunEntry]:
    """The key runs of a version, of which those that are new are written."""
    folder = draft.folder / KEYS
    if how == "rebuild":
        before, added = [], list(draft.entries())
    count = sum(entry.rows for entry in added)
    chosen = list(range(len(before)))
    if how == "add":
        if not count:
            return list(before)
        chosen = merge_with([run.rows for run in before], count)
    kept = [run for at, run in enumerate(before) if at not in chosen]
    sources: list[KeyRun | SortedKeys] = [KeyRun(folder, before[at]) for at in chosen]
    passing = []
    for piece in _sorted(draft, added):
        if count <= _ROWS_AT_ONCE:
            sources.append(piece)
        elif (run := write_run(folder, [piece.records(0, piece.rows)], files)) is not None:
            passing.append(run)
            sources.append(KeyRun(folder, run))
    pieces = merged(sources, lambda places: _shown(draft.table, places))
    written = write_run(folder, pieces, files)
    for run in passing:
        folder.remove(run_name(run.name))
    return kept if written is None else [*kept, written]


def _sorted(draft: LatentStore, added: Iterable[FragmentEntry]) -> Iterator[SortedKeys]:
    """The keys of fragments, in pieces that are sorted."""
    waiting: list[FragmentEntry] = []

    def piece() -> SortedKeys:
        found = zip(waiting, draft.key_hashes(waiting), strict=True)
        return SortedKeys(np.concatenate([key_records(entry, hashes) for entry, hashes in found]))

    for entry in added:
        waiting.append(entry)
        if sum(each.rows for each in waiting) >= _ROWS_AT_ONCE:
            yield piece()
            waiting = []
    if waiting:
        yield piece()


def _shown(table: FragmentTable, places: np.ndarray) -> np.ndarray:
    """Which places a version shows, bool [places]."""
    numbers, which = np.unique(places >> np.uint64(32), return_inverse=True)
    entries = [table.get(int(number)) for number in numbers]
    shown = np.array([entry is not None for entry in entries], bool)[which]
    for at, entry in enumerate(entries):
        if entry is not None and entry.deletions is not None:
            of = np.flatnonzero(which == at)
            rows = (places[of] & np.uint64(0xFFFFFFFF)).astype(np.int64)
            shown[of] = table.visible(entry)[rows]
    return shown
