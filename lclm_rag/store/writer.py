"""Writing the next version of a store: additions, deletions and rewritten fragments, in one atomic commit.

A commit is durable and atomic because of its order; `StoreWriter.commit` says why each step comes where it
does:

1. Fragments, each synced under a temporary name and then renamed (`LocalFolder.write`).
2. With a writer that can be resumed, a note on each fragment, in `uncommitted/`.
3. Bitmaps of deleted rows, fragment lists and key runs, in the same way (`lclm_rag.store.next_version`).
4. The manifest, put in place whole under a name that must be new (`LocalFolder.create`). This is the commit.
5. Only then the notes are removed, and after them the fragments that no version needs.

A writer that is killed before step 4 leaves the previous version as the newest, and files that no version
names.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.forking import this_process
from lclm_rag.storage import Folder, disk_full_as, open_folder
from lclm_rag.store.compressed import Compressed
from lclm_rag.store.fragment import Layout, StoredPassage, write_fragment
from lclm_rag.store.lists import FragmentEntry, FragmentTable, ListEntry
from lclm_rag.store.locks import write_lock
from lclm_rag.store.manifest import (
    Operation,
    Totals,
    committed_versions,
    pack_entry,
    read_manifest,
    unpack_entry,
    unpack_layout,
    write_manifest,
)
from lclm_rag.store.marks import marked
from lclm_rag.store.next_version import Added, draft_version
from lclm_rag.store.parts import FRAGMENTS, MANIFESTS, UNCOMMITTED, StoreFile
from lclm_rag.store.store import LatentStore, Place, newest_version, row_totals, totals_at

__all__ = [
    "FRAGMENT_BYTES",
    "FRAGMENT_TOKENS",
    "MERGED_BYTES",
    "Packing",
    "StoreWriter",
    "named_fragments",
    "note_uncommitted",
    "pack_uncommitted",
    "uncommitted_entries",
    "write_uncommitted",
    "writing",
]

FRAGMENT_BYTES = 64 * 2**20
"""A writer starts a new fragment once the latents, texts and metadata it holds reach this size."""

FRAGMENT_TOKENS = 2**19
"""A writer that can be resumed also starts a new fragment once the one it holds has this many source tokens.

If the writer is killed, only the passages it holds have to be compressed again.
"""

MERGED_BYTES = 2**30
"""The size that compaction brings fragments to, and a bulk load those that it has finished."""

# The batches of such a fragment are a part of this of what a writer holds: what a reader in an object store
# needs of a passage besides its text and latents lies together.
_BATCHES = 4

# A commit that finds this many fragments below this size, among those that were written last, merges them
# into one. Otherwise each insert of a document would leave a file.
_SMALL_BYTES = FRAGMENT_BYTES // 16
_SMALL_FRAGMENTS = 64
_LAST_LISTS = 2

_READS_AT_ONCE = 16

_log = logging.getLogger(__name__)


@contextmanager
def writing(
    location: str | Path | Folder,
    operation: Operation,
    *,
    wait: float = 0.0,
    layout: Layout | None = None,
    resumable: bool = False,
) -> Iterator[StoreWriter]:
    """Be the store's one writer, on top of the newest version.

    Nothing is visible before `StoreWriter.commit`; leaving the block without it discards the changes. An
    object store has no lock: of two writers, the second to commit gets a StoreError, unless the object store
    has no conditional writes either.

    Args:
        location: The store's folder.
        operation: The operation, which the new version's manifest names.
        wait: The number of seconds to wait for another writer.
        layout: The layout of what is written; None for the store's. With another one, all of the store's rows
            must be rewritten.
        resumable: Whether finished fragments stay, unseen, if the block is left without a commit. The next
            resumable writer can take over what is in them.

    Yields:
        The writer.

    Raises:
        LockedError: If another process still writes after `wait` seconds.
        StoreError: If there is no store, the disk is full, or another writer was faster in an object store.
    """
    folder = open_folder(location)
    # Opened before the lock is taken, so that no folder and no lock file are made where there is no store.
    found = LatentStore.open(folder)
    found.close()
    if not (folder / UNCOMMITTED).only_writer():
        _log.warning(
            "%s has no conditional writes: make sure that nobody else writes to it now.", folder
        )
    with disk_full_as(lambda: _no_room(folder, found.version)), _alone(found, wait, resumable):
        # The newest version is opened with the lock held: no other writer can commit on top of it now.
        writer = StoreWriter(LatentStore.open(folder), operation, layout, resumable)
        try:
            with disk_full_as(lambda: _no_room(folder, writer.base.version)):
                yield writer
        finally:
            writer.abandon()


@contextmanager
def _alone(newest: LatentStore, wait: float, resumable: bool) -> Iterator[None]:
    """Be the one writer, or, in an object store, one of which `vacuum` knows."""
    folder = newest.folder
    if folder.local is not None:
        with write_lock(folder.local, wait):
            yield
        return
    # What an earlier run has left may be too old for `vacuum` to keep it without a mark.
    takes_over = resumable and bool((folder / UNCOMMITTED).files())
    with marked(folder / UNCOMMITTED, newest.version, at_once=takes_over):
        yield


@dataclass(frozen=True)
class Packing:
    """Fragments that no version names, which are to become larger ones.

    Attributes:
        fragments: The fragments, each with the rows that are left out.
    """

    fragments: tuple[tuple[FragmentEntry, frozenset[int]], ...]


class StoreWriter:
    """Changes on top of the newest version. Use `writing` to get one.

    Args:
        base: The newest version.
        operation: The operation, which the new version's manifest names.
        layout: The layout of what is written; None for that of `base`.
        resumable: Whether finished fragments are kept for the next writer if there is no commit.
    """

    def __init__(
        self, base: LatentStore, operation: Operation, layout: Layout | None, resumable: bool
    ) -> None:
        self.base = base
        self.layout = layout or base.layout
        self._folder = base.folder
        self._operation = operation
        self.resumable = resumable
        uncommitted = uncommitted_entries(base.folder, base.layout) if resumable else []
        self.compressed = Compressed(base, uncommitted)
        self._taken_over: dict[str, set[int]] = {}
        self._rows: list[StoredPassage] = []
        self._bytes = 0
        self._tokens = 0
        self._new: dict[str, FragmentEntry] = {}
        self._dropped: dict[str, set[int]] = {}
        self._deleted: dict[int, set[int]] = {}
        self._replaced: set[int] = set()
        self._merged_into: list[str] = []
        self._loaded: list[FragmentEntry] = []
        self._files: list[StoreFile] = []  # For the manifest, which names them.
        self._totals = base.manifest.totals
        self._done = False
        self._process = this_process()

    def add(self, row: StoredPassage) -> None:
        """Add a passage.

        Args:
            row: The passage. Its key must be new, or this writer must have deleted it before.

        Raises:
            StoreError: If the writer belongs to the process that this one was forked from.
        """
        self._totals += row_totals(row)
        self._append(row)

    def delete_document(self, document_id: str) -> int:
        """Delete all passages of a stored document.

        Args:
            document_id: The document's id.

        Returns:
            The number of passages deleted, 0 if the document is not stored.
        """
        gone = 0
        for place in self.base.document_places(document_id):
            rows = self._deleted.setdefault(self.base.number_of(place), set())
            if place[1] not in rows:
                rows.add(place[1])
                gone += 1
                self._totals -= totals_at(self.base, place)
        return gone

    def take_over(self, document_id: str, document_hash: bytes) -> int:
        """Add the passages of a document that an earlier writer had finished and not committed.

        Args:
            document_id: The document's id.
            document_hash: The hash of the document's content, which the passages must come from.

        Returns:
            The number of passages added: all of the document's, or 0.
        """
        places = self.compressed.finished(document_id, document_hash)
        for name, row in places:
            self._taken_over.setdefault(name, set()).add(row)
            self._totals += totals_at(self.compressed.uncommitted, (name, row))
        return len(places)

    def adopt(self, entry: FragmentEntry, totals: Totals) -> None:
        """Add a fragment that another process has written with `write_uncommitted` for this writer.

        Args:
            entry: The fragment. The keys of its rows must be new, as for `add`.
            totals: The totals of its rows that are not deleted.
        """
        self._new[entry.name] = entry
        self._totals += totals

    def drop_adopted(self, places: Iterable[Place]) -> None:
        """Delete rows of fragments that were adopted.

        Args:
            places: The rows' places.
        """
        for name, row in places:
            self._dropped.setdefault(name, set()).add(row)
            self._totals -= totals_at(self.base, (name, row))

    def to_pack(self) -> list[Packing]:
        """What should become fragments of about 1 GiB of those that were adopted, once all are."""
        groups: list[list[FragmentEntry]] = [[]]
        for entry in self._new.values():
            groups[-1].append(entry)
            if sum(each.bytes for each in groups[-1]) >= MERGED_BYTES:
                groups.append([])
        return [
            Packing(tuple((entry, frozenset(self._dropped.get(entry.name, ()))) for entry in group))
            for group in groups[:-1]
            if len(group) > 1
        ]

    def packed(self, packing: Packing, into: Iterable[FragmentEntry]) -> None:
        """Name fragments of `pack_uncommitted` instead of those that they were made of.

        Args:
            packing: What was packed, from `to_pack`.
            into: What it has become.
        """
        self._new |= {entry.name: entry for entry in into}
        # Notes before fragments: as long as a note is there, another process may look for its fragment.
        for part, ending in ((UNCOMMITTED, ".json"), (FRAGMENTS, "")):
            for entry, _ in packing.fragments:
                (self._folder / part).remove(f"{entry.name}{ending}")
        for entry, _ in packing.fragments:
            del self._new[entry.name]
            self._dropped.pop(entry.name, None)

    def rewrite(
        self,
        entries: Iterable[FragmentEntry],
        on_row: Callable[[], None] = lambda: None,
    ) -> None:
        """Replace fragments by new ones with the same visible rows, in this writer's layout.

        Args:
            entries: Fragments of `base`.
            on_row: Called after each row.

        Raises:
            DamagedError: If a row is damaged. The message names the row.
            StoreError: If the codec of the writer's layout cannot hold a row's latents.
        """
        self._refuse_in_child()
        entries = list(entries)
        if not entries:
            return

        def rows() -> Iterator[StoredPassage]:
            for entry in entries:
                fragment = self.base.fragment(entry.name)
                for row in self.base.rows(entry):
                    yield _in_layout(fragment.read(row), self.layout)
                    on_row()

        for new in _packed(self._folder, rows(), entries, self.layout, noted=False):
            self._new[new.name] = new
        self._replaced |= {entry.number for entry in entries}

    def commit(self, *, merge_keys: bool = False) -> LatentStore:
        """Make the changes the newest version, atomically.

        Args:
            merge_keys: Whether to make one key run of all.

        Returns:
            The newest version, opened. Without changes it is the one before.

        Raises:
            StoreError: If the writer belongs to the process that this one was forked from; in an object store
                also if another writer was faster, or a vacuum has removed files of this writer.
            DamagedError: If what the store notes about its fragments or keys is damaged.
            OSError: If a file cannot be written. `writing` turns the error of a full disk into a StoreError.
        """
        self._refuse_in_child()
        # 1. The last rows become a fragment. From here on every fragment of this writer is synced and has its
        #    name, so a power cut cannot damage or remove what a list below names.
        self._flush()
        # 2. The new version's fragments: those of the previous version without what was deleted, those taken
        #    over from an earlier writer without what was not asked for, and this writer's own.
        visible = {number: self._left(number) for number in {*self._deleted, *self._replaced}}
        added: list[Added] = [
            (entry, _only(entry, self._taken_over[entry.name]))
            for entry in self.compressed.uncommitted.table
            if entry.name in self._taken_over
        ]
        for entry in self._new.values():
            added.append((entry, ~_only(entry, self._dropped.get(entry.name, ()))))
        added = [(entry, shown) for entry, shown in added if shown.any()]
        merge_keys = merge_keys and (bool(visible) or len(self.base.manifest.keys) > 1)
        if not (visible or added or merge_keys) and self.layout == self.base.layout:
            self._finish(set())
            return LatentStore.open(self._folder)
        # 3. Small fragments are merged before the lists are written, because these must name the new one.
        added = self._merged(visible, added)
        # 4. Lists, bitmaps and keys: what the manifest names must be there before it is.
        try:
            manifest = draft_version(
                self.base,
                self._operation,
                visible=visible,
                added=added,
                totals=self._totals,
                layout=self.layout,
                keys="merge" if merge_keys else "add",
                files=self._files,
            )
            # 5. Checked right before the manifest is written, to leave a vacuum by another process as little
            #    time as possible to remove a fragment in between.
            self._check_there([entry for entry, _ in added])
        except FileNotFoundError as error:
            raise StoreError(
                f"Another process has vacuumed {self._folder} meanwhile, and removed what was not "
                "committed; run the same command again."
            ) from error
        # 6. The manifest, whole and under a new number. Before this step readers see the old version, after
        #    it the new one, and there is nothing in between.
        try:
            write_manifest(self._folder / MANIFESTS, manifest)
        except OSError:
            # An object store may have committed the manifest although its answer was lost. So `abandon` must
            # not remove the fragments.
            self._done = self._folder.local is None
            raise
        # 7. Cleaning comes last: until the commit, a next writer would need notes and unused fragments to
        #    resume. If this process is killed here, only files that no version needs are left over.
        self._finish({entry.name for entry, _ in added})
        return LatentStore.open(self._folder)

    def abandon(self) -> None:
        """End without a commit: keep finished fragments for the next writer if `resumable`, else remove them.

        After a commit, and in a forked child, this does nothing.
        """
        if self._done or self._process != this_process():
            return
        self._done = True
        self.base.close()
        # First see whether the commit took place after all, because Ctrl-C may come in the middle of it: what
        # the newest manifest names must stay.
        if newest_version(self._folder) != self.base.version:
            return
        if self.resumable:
            # If the disk is full, or the codec cannot hold what was computed, the last rows are lost.
            with suppress(OSError, StoreError):
                self._flush()
        for part, name in self._files:
            (self._folder / part).remove(name)
        for name in (*self._merged_into, *(() if self.resumable else self._new)):
            (self._folder / FRAGMENTS).remove(name)

    def _refuse_in_child(self) -> None:
        if self._process != this_process():
            raise StoreError(
                f"Only the process that began to write to {self._folder} can go on with it, and this one was "
                "forked from it since; begin anew here once it is done."
            )

    def _append(self, row: StoredPassage) -> None:
        self._refuse_in_child()
        self._rows.append(row)
        self._bytes += row.bytes
        self._tokens += row.tokens
        worth_keeping = self.resumable and self._tokens >= FRAGMENT_TOKENS
        if worth_keeping or self._bytes >= FRAGMENT_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        entry = write_uncommitted(self._folder, self._rows, noted=self.resumable)
        self._new[entry.name] = entry
        self._rows, self._bytes, self._tokens = [], 0, 0
        if self.resumable:
            self._loaded.append(entry)
            if sum(loaded.bytes for loaded in self._loaded) >= MERGED_BYTES:
                self._pack_loaded()

    def _pack_loaded(self) -> None:
        """Make one fragment of those that this writer has finished. At any moment, all rows have a note."""
        packing = Packing(tuple((entry, frozenset()) for entry in self._loaded))
        self._loaded = []
        # Damaged ones stay as they are: it shows when the row is read, or by verify.
        with suppress(DamagedError):
            self.packed(packing, pack_uncommitted(self.base, packing, self.layout, noted=True))

    def _left(self, number: int) -> np.ndarray:
        """Which rows of a fragment of the previous version the next one shows, bool [rows]."""
        entry = self.base.table[number]
        if number in self._replaced:
            return np.zeros(entry.rows, bool)
        left: np.ndarray = self.base.table.visible(entry) & ~_only(entry, self._deleted[number])
        return left

    def _merged(self, visible: dict[int, np.ndarray], added: list[Added]) -> list[Added]:
        """The added fragments; if many of the last ones are small, these are merged into new ones.

        Args:
            visible: The rows that the next version shows of fragments of the previous one, by their numbers.
                For those that are merged it becomes none.
            added: The fragments that come to it.
        """
        table = self.base.table
        last = chain.from_iterable(map(table.read, table.lists[-_LAST_LISTS:]))
        there = [(e, visible.get(e.number, table.visible(e))) for e in last if _is_small(e)]
        there = [(entry, shown) for entry, shown in there if shown.any()]
        new = [(entry, shown) for entry, shown in added if _is_small(entry)]
        if len(there) + len(new) < _SMALL_FRAGMENTS:
            return added
        view = LatentStore.of(self.base, (), self.layout)
        try:
            rows = [
                view.fragment(entry.name).read(row)
                for entry, shown in (*there, *new)
                for row in np.flatnonzero(shown).tolist()
            ]
        except DamagedError:
            # No reason to refuse this commit: the damage shows when the row is read, or by verify.
            return added
        kept = [(entry, shown) for entry, shown in added if not _is_small(entry)]
        for part in _parts(rows):
            entry = _write(self._folder, [part])
            kept.append((entry, np.ones(entry.rows, bool)))
            self._merged_into.append(entry.name)
        visible |= {entry.number: np.zeros(entry.rows, bool) for entry, _ in there}
        return kept

    def _check_there(self, entries: list[FragmentEntry]) -> None:
        """FileNotFoundError if fragments are missing.

        In an object store, where nothing locks it out, `vacuum` may have removed uncommitted fragments that
        are older than a day.
        """
        if self._folder.local is not None or not entries:
            return
        fragments = self._folder / FRAGMENTS
        if len(entries) > _SMALL_FRAGMENTS:
            missing = {entry.name for entry in entries} - {
                facts.name for facts in fragments.files()
            }
            if missing:
                raise FileNotFoundError(str(fragments / min(missing)))
        else:
            fragments.read_ranges([(entry.name, 0, 8) for entry in entries], anew=True)

    def _finish(self, committed: set[str]) -> None:
        """Remove, after a commit, finished fragments that the version does not name, and all notes.

        In an object store, what another writer may still need is left to `vacuum`.

        Args:
            committed: The fragments that came to the new version.
        """
        self._done = True
        self.base.close()
        finished = set(self._new)
        if self.resumable:
            notes = [facts.name for facts in (self._folder / UNCOMMITTED).files()]
            if self._folder.local is None:
                finished |= self._taken_over.keys()
            elif {f"{name}.json" for name in self._new} < set(notes):
                # Also what killed writers left, and what workers wrote that were killed and started again.
                finished |= {entry.name for entry in uncommitted_entries(self._folder)}
            # Notes before fragments: as long as a note is there, another process may look for its fragment.
            for note in notes:
                if self._folder.local is not None or note.removesuffix(".json") in finished:
                    (self._folder / UNCOMMITTED).remove(note)
        for name in finished - committed:
            (self._folder / FRAGMENTS).remove(name)


def write_uncommitted(folder: Folder, rows: list[StoredPassage], *, noted: bool) -> FragmentEntry:
    """Write rows to a new fragment, which no version names yet.

    Args:
        folder: The store's folder.
        rows: Rows of one layout, at least one.
        noted: Whether to leave a note, so that another writer can take the fragment over if this one is
            killed.

    Returns:
        The fragment's entry for a manifest.
    """
    # The fragment first: a note must name a file that is whole.
    entry = _write(folder, [rows])
    if noted:
        note_uncommitted(folder, entry, rows[0].layout)
    return entry


def pack_uncommitted(
    base: LatentStore, packing: Packing, layout: Layout, *, noted: bool
) -> list[FragmentEntry]:
    """Write the rows of fragments to larger ones, which no version names yet.

    Args:
        base: The version that the writer builds on.
        packing: From `StoreWriter.to_pack`.
        layout: The layout of the fragments.
        noted: See `write_uncommitted`.

    Returns:
        The new fragments, for `StoreWriter.packed`.

    Raises:
        DamagedError: If a row is damaged. The message names the row.
    """
    entries = [entry for entry, _ in packing.fragments]
    view = LatentStore.of(base, entries, layout)
    rows = (
        view.fragment(entry.name).read(row)
        for entry, left_out in packing.fragments
        for row in range(entry.rows)
        if row not in left_out
    )
    return list(_packed(base.folder, rows, entries, layout, noted=noted))


def note_uncommitted(folder: Folder, entry: FragmentEntry, layout: Layout) -> None:
    """Leave a note for the next writer on a fragment that no version names.

    Args:
        folder: The store's folder.
        entry: The fragment.
        layout: The fragment's layout.
    """
    note = {"layout": asdict(layout), "entry": pack_entry(entry)}
    (folder / UNCOMMITTED).replace(f"{entry.name}.json", seal(note))


def uncommitted_entries(folder: Folder, layout: Layout | None = None) -> list[FragmentEntry]:
    """The fragments that writers have finished, noted and not committed.

    Args:
        folder: The store's folder.
        layout: If given, only fragments of this layout.

    Returns:
        The fragments whose files have the noted size and that no version names.
    """
    notes = [facts.name for facts in (folder / UNCOMMITTED).files() if facts.name.endswith(".json")]
    # In parallel, because each read may wait for an object store.
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        read = list(pool.map(partial(_noted, folder / UNCOMMITTED), notes))
    found = [note for note in read if note is not None]
    if not found:
        return []
    entries = [entry for entry, noted in found if layout is None or noted == layout]
    # A writer that is killed just after its commit leaves notes on fragments that a version needs.
    named = named_fragments(folder) if entries else set()
    there = {(facts.name, facts.size) for facts in (folder / FRAGMENTS).files()}
    return [e for e in entries if e.name not in named and (e.name, e.bytes) in there]


def _noted(folder: Folder, name: str) -> tuple[FragmentEntry, Layout] | None:
    try:
        note = unseal(folder.read(name))
        return unpack_entry(note["entry"]), unpack_layout(note["layout"])
    except (ValueError, TypeError, KeyError, FileNotFoundError):
        # A damaged note costs only time: its passages are compressed again. A missing one belongs to a
        # fragment that a writer has just committed.
        return None


def named_fragments(folder: Folder) -> set[str]:
    """The names of the fragments of all versions, except those of unreadable manifests and lists.

    Args:
        folder: The store's folder.
    """
    lists: dict[str, ListEntry] = {}
    for version in committed_versions(folder / MANIFESTS):
        with suppress(StoreError):
            manifest = read_manifest(folder / MANIFESTS, version)
            lists |= {listed.name: listed for listed in manifest.lists}
    named = set()
    for listed in lists.values():
        with suppress(DamagedError):
            named |= {entry.name for entry in FragmentTable(folder).read(listed)}
    return named


def _write(folder: Folder, batches: Iterable[Sequence[StoredPassage]]) -> FragmentEntry:
    name = f"{uuid.uuid4().hex}.arrow"
    return FragmentEntry(name=name, **vars(write_fragment(folder / FRAGMENTS, name, batches)))


def _packed(
    folder: Folder,
    rows: Iterator[StoredPassage],
    of: Sequence[FragmentEntry],
    layout: Layout,
    *,
    noted: bool,
) -> Iterator[FragmentEntry]:
    """Write rows to new fragments of about `MERGED_BYTES`.

    Args:
        folder: The store's folder.
        rows: The rows.
        of: The fragments that they are from.
        layout: The rows' layout.
        noted: See `write_uncommitted`.

    Yields:
        The fragments.
    """
    each = sum(entry.bytes for entry in of) // sum(entry.rows for entry in of)
    batches = iter(lambda: list(islice(rows, max(1, FRAGMENT_BYTES // _BATCHES // each))), [])
    for first in batches:
        entry = _write(folder, _up_to(MERGED_BYTES, first, batches))
        if noted:
            note_uncommitted(folder, entry, layout)
        yield entry


def _up_to(
    size: int, first: list[StoredPassage], others: Iterator[list[StoredPassage]]
) -> Iterator[list[StoredPassage]]:
    """Batches until they reach a size in bytes."""
    batch: list[StoredPassage] | None = first
    while batch is not None:
        yield batch
        size -= sum(row.bytes for row in batch)
        batch = next(others, None) if size > 0 else None


def _only(entry: FragmentEntry, rows: Iterable[int]) -> np.ndarray:
    """Which rows of a fragment are among these, bool [rows]."""
    found = np.zeros(entry.rows, bool)
    found[list(rows)] = True
    return found


def _is_small(entry: FragmentEntry) -> bool:
    return entry.bytes < _SMALL_BYTES


def _parts(rows: list[StoredPassage]) -> Iterator[list[StoredPassage]]:
    """The rows in order, in parts of about `FRAGMENT_BYTES`."""
    part: list[StoredPassage] = []
    size = 0
    for row in rows:
        part.append(row)
        size += row.bytes
        if size >= FRAGMENT_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _in_layout(row: StoredPassage, layout: Layout) -> StoredPassage:
    if row.layout == layout:
        return row
    return StoredPassage.encode(
        row.passage, row.tokens, row.document_hash, row.last, row.latents, layout
    )


def _no_room(folder: Folder, version: int) -> StoreError:
    newest = newest_version(folder)
    done = f"nothing was committed to {folder}, version {version} still stands"
    if newest != version:
        done = f"version {newest} was committed to {folder}, but not all that follows was done"
    return StoreError(f"The disk is full: {done}. Free some space and run the same command again.")
