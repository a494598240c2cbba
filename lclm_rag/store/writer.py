"""Writing the next version of a store: additions, deletions and rewritten fragments, in one atomic commit.

A commit is durable and atomic because of its order; `StoreWriter.commit` says why each step comes where it
does:

1. Fragments, each synced under a temporary name and then renamed (`LocalFolder.write`).
2. With a writer that can be resumed, a note on each fragment, in `uncommitted/`.
3. The manifest, put in place whole under a name that must be new (`LocalFolder.create`). This is the commit.
4. Only then the notes are removed, and after them the fragments that no version needs.

A writer that is killed before step 3 leaves the previous version as the newest, and files that no version
names.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.forking import this_process
from lclm_rag.storage import Folder, disk_full_as, open_folder
from lclm_rag.store.compressed import Compressed
from lclm_rag.store.fragment import Layout, StoredPassage, write_fragment
from lclm_rag.store.locks import write_lock
from lclm_rag.store.manifest import (
    FragmentEntry,
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
from lclm_rag.store.store import (
    FRAGMENTS,
    MANIFESTS,
    UNCOMMITTED,
    LatentStore,
    Place,
    newest_version,
    row_totals,
    totals_at,
    visible_rows,
)

__all__ = [
    "FRAGMENT_BYTES",
    "FRAGMENT_TOKENS",
    "StoreWriter",
    "named_fragments",
    "note_uncommitted",
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

# A commit that finds this many fragments below this size merges them into one. Otherwise each insert of a
# document would leave a file, and an entry in every later manifest.
_SMALL_BYTES = FRAGMENT_BYTES // 16
_SMALL_FRAGMENTS = 64

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
        self._deleted: dict[str, set[int]] = {}
        self._replaced: set[str] = set()
        self._merged_into: list[str] = []
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
            rows = self._deleted.setdefault(place[0], set())
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
        gone: dict[str, set[int]] = {}
        for name, row in places:
            gone.setdefault(name, set()).add(row)
            self._totals -= totals_at(self.base, (name, row))
        for name, rows in gone.items():
            self._new[name] = self._new[name].without(rows)

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
        for entry in entries:
            fragment = self.base.fragment(entry.name)
            for row in np.flatnonzero(visible_rows(entry)):
                self._append(_in_layout(fragment.read(int(row)), self.layout))
                on_row()
            self._replaced.add(entry.name)

    def commit(self) -> LatentStore:
        """Make the changes the newest version, atomically.

        Returns:
            The newest version, opened. Without changes it is the one before.

        Raises:
            StoreError: If the writer belongs to the process that this one was forked from; in an object store
                also if another writer was faster, or a vacuum has removed files of this writer.
            OSError: If a file cannot be written. `writing` turns the error of a full disk into a StoreError.
        """
        self._refuse_in_child()
        # 1. The last rows become a fragment. From here on every fragment of this writer is synced and has its
        #    name, so a power cut cannot damage or remove what the manifest below names.
        self._flush()
        # 2. The new version's fragments: those of the previous version without what was deleted, those taken
        #    over from an earlier writer without what was not asked for, and this writer's own.
        base = self.base.manifest
        kept = [
            entry.without(self._deleted.get(entry.name, ()))
            for entry in base.fragments
            if entry.name not in self._replaced
        ]
        taken = [
            entry.without(set(range(entry.rows)) - self._taken_over[entry.name])
            for entry in self.compressed.uncommitted.manifest.fragments
            if entry.name in self._taken_over
        ]
        entries = [e for e in (*kept, *taken, *self._new.values()) if len(e.deleted) < e.rows]
        if entries == list(base.fragments) and self.layout == base.layout:
            self._finish(set())
            return LatentStore.open(self._folder)
        # 3. Small fragments are merged before the manifest is written, because it must name the new one.
        entries = self._merged(entries)
        # 4. Checked right before the manifest is written, to leave a vacuum by another process as little
        #    time as possible to remove a fragment in between.
        self._check_there(entries)
        # 5. The manifest, whole and under a new number. Before this step readers see the old version, after
        #    it the new one, and there is nothing in between.
        manifest = base.next(entries, self._totals, self._operation, self.layout)
        try:
            write_manifest(self._folder / MANIFESTS, manifest)
        except OSError:
            # An object store may have committed the manifest although its answer was lost. So `abandon` must
            # not remove the fragments.
            self._done = self._folder.local is None
            raise
        # 6. Cleaning comes last: until the commit, a next writer would need notes and unused fragments to
        #    resume. If this process is killed here, only files that no version needs are left over.
        self._finish({entry.name for entry in entries})
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

    def _merged(self, entries: list[FragmentEntry]) -> list[FragmentEntry]:
        """Fragments with the same rows; if many are small, these are merged."""
        small = [entry for entry in entries if entry.bytes < _SMALL_BYTES]
        if len(small) < _SMALL_FRAGMENTS:
            return entries
        manifest = replace(self.base.manifest, fragments=tuple(small), layout=self.layout)
        view = LatentStore(self._folder, manifest)
        try:
            rows = list(view.passages())
        except DamagedError:
            # No reason to refuse this commit: the damage shows when the row is read, or by verify.
            return entries
        kept = [entry for entry in entries if entry.bytes >= _SMALL_BYTES]
        for part in _parts(rows):
            kept.append(_write(self._folder, part))
            self._merged_into.append(kept[-1].name)
        return kept

    def _check_there(self, entries: list[FragmentEntry]) -> None:
        """StoreError if fragments are missing.

        In an object store, where nothing locks it out, `vacuum` may have removed uncommitted fragments that
        are older than a day.
        """
        if self._folder.local is not None:
            return
        there = {facts.name for facts in (self._folder / FRAGMENTS).files()}
        if any(entry.name not in there for entry in entries):
            raise StoreError(
                f"Another process has vacuumed {self._folder} meanwhile, and removed what was not "
                "committed; run the same command again."
            )

    def _finish(self, committed: set[str]) -> None:
        """Remove, after a commit, finished fragments that the version does not name, and all notes.

        In an object store, what another writer may still need is left to `vacuum`.

        Args:
            committed: The fragments that the new version names.
        """
        self._done = True
        self.base.close()
        finished = set(self._new)
        if self.resumable:
            notes = [facts.name for facts in (self._folder / UNCOMMITTED).files()]
            if self._folder.local is None:
                finished |= self._taken_over.keys()
            else:
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
    entry = _write(folder, rows)
    if noted:
        note_uncommitted(folder, entry, rows[0].layout)
    return entry


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
    """The names of the fragments of all versions, except versions with unreadable manifests.

    Args:
        folder: The store's folder.
    """
    named = set()
    for version in committed_versions(folder / MANIFESTS):
        with suppress(StoreError):
            manifest = read_manifest(folder / MANIFESTS, version)
            named |= {entry.name for entry in manifest.fragments}
    return named


def _write(folder: Folder, rows: list[StoredPassage]) -> FragmentEntry:
    name = f"{uuid.uuid4().hex}.arrow"
    written = write_fragment(folder / FRAGMENTS, name, rows)
    return FragmentEntry(
        name=name,
        rows=len(rows),
        latents=sum(len(row.encoded) for row in rows),
        tokens=sum(row.tokens for row in rows),
        **vars(written),
    )


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
