"""Making the next version of a store: additions, deletions, fragments written anew; one atomic commit."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
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
    write_manifest,
)
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
"""Or, where a killed writer's work is to be gone on with, once so many source tokens are in it: they are what
would be compressed again."""

# A commit that finds so many fragments below this size makes one of them: else each insert of a document
# would leave a file, and every later manifest a line about it.
_SMALL_BYTES = FRAGMENT_BYTES // 16
_SMALL_FRAGMENTS = 64

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

    Nothing is visible until `commit()`; leaving without it throws the changes away. resumable: fragments that
    were finished stay, unseen, for the next writer that asks for what is in them. layout: of what is written,
    where it is not the store's (then all of its rows must be written anew).
    Raises LockedError where another process still writes after `wait` seconds, StoreError where the disk is
    full. An object store has no lock: of two writers the second to commit gets a StoreError, unless it has no
    conditional writes either.
    """
    folder = open_folder(location)
    # No folder and no lock file where there is no store.
    found = LatentStore.open(folder)
    found.close()
    if not (folder / UNCOMMITTED).only_writer():
        _log.warning(
            "%s has no conditional writes: make sure that nobody else writes to it now.", folder
        )
    lock = nullcontext() if folder.local is None else write_lock(folder.local, wait)
    with disk_full_as(lambda: _no_room(folder, found.version)), lock:
        writer = StoreWriter(LatentStore.open(folder), operation, layout, resumable)
        try:
            with disk_full_as(lambda: _no_room(folder, writer.base.version)):
                yield writer
        finally:
            writer.abandon()


class StoreWriter:
    """Changes on top of `base`, the newest version. Made by `writing`."""

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
        self._new: list[FragmentEntry] = []
        self._deleted: dict[str, set[int]] = {}
        self._replaced: set[str] = set()
        self._merged_into: list[str] = []
        self._totals = base.manifest.totals
        self._done = False
        self._process = this_process()

    def add(self, row: StoredPassage) -> None:
        """Add a passage; its key must be new, or deleted by this writer before."""
        self._totals += row_totals(row)
        self._append(row)

    def delete_document(self, document_id: str) -> int:
        """Delete all passages of a stored document; returns how many."""
        gone = 0
        for place in self.base.document_places(document_id):
            rows = self._deleted.setdefault(place[0], set())
            if place[1] not in rows:
                rows.add(place[1])
                gone += 1
                self._totals -= totals_at(self.base, place)
        return gone

    def take_over(self, document_id: str, document_hash: bytes) -> int:
        """Add a document's passages that a writer before had finished and not committed; returns how many:
        all of them, or 0."""
        places = self.compressed.finished(document_id, document_hash)
        for name, row in places:
            self._taken_over.setdefault(name, set()).add(row)
            self._totals += totals_at(self.compressed.uncommitted, (name, row))
        return len(places)

    def adopt(self, entry: FragmentEntry, totals: Totals) -> None:
        """Add a fragment that another process has written with `write_uncommitted` for this writer.
        totals: of its rows that are not deleted, whose keys must be new, as for `add`."""
        self._new.append(entry)
        self._totals += totals

    def drop_adopted(self, places: Iterable[Place]) -> None:
        """Take rows out of the fragments that were adopted."""
        view = LatentStore(self._folder, replace(self.base.manifest, fragments=tuple(self._new)))
        gone: dict[str, set[int]] = {}
        for name, row in places:
            gone.setdefault(name, set()).add(row)
            self._totals -= totals_at(view, (name, row))
        self._new = [entry.without(gone.get(entry.name, ())) for entry in self._new]

    def adopted_places(self, document_ids: Collection[str]) -> list[Place]:
        """Where in the adopted fragments the passages of some documents are; looks at every row."""
        view = LatentStore(self._folder, replace(self.base.manifest, fragments=tuple(self._new)))
        return [
            (entry.name, int(row))
            for entry in self._new
            for row in np.flatnonzero(visible_rows(entry))
            if view.fragment(entry.name).key(int(row)).document_id in document_ids
        ]

    def rewrite(
        self,
        entries: Iterable[FragmentEntry],
        on_row: Callable[[], None] = lambda: None,
    ) -> None:
        """Write what these fragments of `base` show anew, in this writer's layout, in place of them.

        Raises DamagedError, which names the row.
        """
        for entry in entries:
            fragment = self.base.fragment(entry.name)
            for row in np.flatnonzero(visible_rows(entry)):
                self._append(_in_layout(fragment.read(int(row)), self.layout))
                on_row()
            self._replaced.add(entry.name)

    def commit(self) -> LatentStore:
        """Make the changes the newest version, atomically; without changes the version stays."""
        self._refuse_in_child()
        self._flush()
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
        entries = [e for e in (*kept, *taken, *self._new) if len(e.deleted) < e.rows]
        if entries == list(base.fragments) and self.layout == base.layout:
            self._finish(set())
            return LatentStore.open(self._folder)
        entries = self._merged(entries)
        self._check_there(entries)
        manifest = base.next(entries, self._totals, self._operation, self.layout)
        try:
            write_manifest(self._folder / MANIFESTS, manifest)
        except OSError:
            # An object store may have committed it all the same: what it names must stay.
            self._done = self._folder.local is None
            raise
        self._finish({entry.name for entry in entries})
        return LatentStore.open(self._folder)

    def abandon(self) -> None:
        """Without a commit: keep what was finished for the next writer, or remove it."""
        if self._done or self._process != this_process():
            return
        self._done = True
        self.base.close()
        # Ctrl-C may come in the very moment of the commit: what a manifest names must stay.
        if newest_version(self._folder) != self.base.version:
            return
        if self.resumable:
            # On a full disk, or where a codec cannot hold what was computed, there is nothing to keep.
            with suppress(OSError, StoreError):
                self._flush()
        for name in (*self._merged_into, *(() if self.resumable else (e.name for e in self._new))):
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
        self._new.append(entry)
        self._rows, self._bytes, self._tokens = [], 0, 0

    def _merged(self, entries: list[FragmentEntry]) -> list[FragmentEntry]:
        """The same rows, with one fragment in place of many small ones."""
        small = [entry for entry in entries if entry.bytes < _SMALL_BYTES]
        if len(small) < _SMALL_FRAGMENTS:
            return entries
        manifest = replace(self.base.manifest, fragments=tuple(small), layout=self.layout)
        view = LatentStore(self._folder, manifest)
        try:
            rows = list(view.passages())
        except DamagedError:
            return entries  # It is found when it is read, or by verify: no reason to refuse this commit.
        kept = [entry for entry in entries if entry.bytes >= _SMALL_BYTES]
        for part in _parts(rows):
            kept.append(_write(self._folder, part))
            self._merged_into.append(kept[-1].name)
        return kept

    def _check_there(self, entries: list[FragmentEntry]) -> None:
        """In an object store `vacuum` may have run meanwhile, and taken what is old for left behind."""
        if self._folder.local is not None:
            return
        there = {facts.name for facts in (self._folder / FRAGMENTS).files()}
        if any(entry.name not in there for entry in entries):
            raise StoreError(
                f"Another process has vacuumed {self._folder} meanwhile, and removed what was not "
                "committed; run the same command again."
            )

    def _finish(self, committed: set[str]) -> None:
        """After a commit nothing is left behind of what was finished before it; in an object store, what
        another writer may still want is left to `vacuum`. committed: the fragments that it names."""
        self._done = True
        self.base.close()
        finished = {entry.name for entry in self._new}
        if self.resumable:
            notes = [facts.name for facts in (self._folder / UNCOMMITTED).files()]
            if self._folder.local is None:
                finished |= self._taken_over.keys()
            else:
                # What was left behind, and what workers wrote that were killed and ran again.
                finished |= {entry.name for entry in uncommitted_entries(self._folder)}
            # Before the fragments: without a note nobody looks for one.
            for note in notes:
                if self._folder.local is not None or note.removesuffix(".json") in finished:
                    (self._folder / UNCOMMITTED).remove(note)
        for name in finished - committed:
            (self._folder / FRAGMENTS).remove(name)


def write_uncommitted(folder: Folder, rows: list[StoredPassage], *, noted: bool) -> FragmentEntry:
    """Write rows to a new fragment, which no version names yet. noted: so that another writer can take it
    over, should this one be killed."""
    entry = _write(folder, rows)
    if noted:
        note_uncommitted(folder, entry, rows[0].layout)
    return entry


def note_uncommitted(folder: Folder, entry: FragmentEntry, layout: Layout) -> None:
    """Let the next writer know of a fragment that no version names."""
    note = {"layout": asdict(layout), "entry": pack_entry(entry)}
    (folder / UNCOMMITTED).replace(f"{entry.name}.json", seal(note))


def uncommitted_entries(folder: Folder, layout: Layout | None = None) -> list[FragmentEntry]:
    """What writers have finished and not committed; only in `layout`, where one is given."""
    entries = []
    for facts in (folder / UNCOMMITTED).files():
        if not facts.name.endswith(".json"):
            continue
        try:
            note = unseal((folder / UNCOMMITTED).read(facts.name))
            entry, noted = unpack_entry(note["entry"]), Layout(**note["layout"])
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            continue  # Nobody's loss but time: it is compressed anew. Or a writer has committed it now.
        if layout is None or noted == layout:
            entries.append(entry)
    # A writer that is killed just after its commit leaves notes of what some version needs.
    named = named_fragments(folder) if entries else set()
    there = {(facts.name, facts.size) for facts in (folder / FRAGMENTS).files()}
    return [e for e in entries if e.name not in named and (e.name, e.bytes) in there]


def named_fragments(folder: Folder) -> set[str]:
    """The fragments of all versions, less damaged ones, which nobody can open."""
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
    """The rows in order, a fragment's worth at a time."""
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
