"""The latent store: passages with their latents in Arrow fragments, in committed versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.forking import watch
from lclm_rag.storage import Folder, open_folder
from lclm_rag.store.fragment import Fragment, Layout, StoredPassage, key_hash, keys_checksum
from lclm_rag.store.locks import Lease, reading
from lclm_rag.store.manifest import (
    FragmentEntry,
    Manifest,
    Totals,
    committed_versions,
    read_manifest,
    write_manifest,
)
from lclm_rag.types import Passage, PassageKey

__all__ = [
    "FRAGMENTS",
    "LEASES",
    "MANIFESTS",
    "UNCOMMITTED",
    "LatentStore",
    "Place",
    "newest_version",
    "read_versions",
    "row_totals",
    "totals_at",
    "visible_rows",
]

FRAGMENTS, MANIFESTS, LEASES, UNCOMMITTED = "fragments", "manifests", "readers", "uncommitted"

_READS_AT_ONCE = 8

Place = tuple[str, int]
"""Fragment name and row."""


class LatentStore:
    """One version of a store, for reading; it stays as it is, whatever is written meanwhile.

    Folder: `fragments/*.arrow`, `manifests/<version>.json`; `uncommitted/`, what a writer has finished and
    not committed; `readers/`, who reads which version; `lock`.
    """

    def __init__(self, folder: Folder, manifest: Manifest, lease: Lease | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lease = lease
        self._fragments: dict[str, Fragment] = {}
        self._opening: dict[str, Lock] = {}
        self._lookup: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        watch(self)

    @classmethod
    def create(cls, location: str | Path | Folder, layout: Layout) -> LatentStore:
        """An empty store, committed as version 0. StoreError where there is one already."""
        folder = open_folder(location)
        for name in (FRAGMENTS, MANIFESTS, UNCOMMITTED, LEASES):
            (folder / name).make()
        write_manifest(folder / MANIFESTS, Manifest.first(layout))
        return cls.open(folder)

    @classmethod
    def open(cls, location: str | Path | Folder, version: int | None = None) -> LatentStore:
        """The newest version, or the one asked for. StoreError where there is none."""
        folder = open_folder(location)
        if folder.local is None:
            return cls(folder, _manifest(folder, version))
        if not (folder.local / MANIFESTS).is_dir():
            raise StoreError(f"There is no latent store in {folder}.")
        with reading(folder.local / LEASES) as gate:
            manifest = _manifest(folder, version)
            return cls(folder, manifest, gate.lease(manifest.version) if gate else None)

    @classmethod
    def open_for_worker(cls, location: str, version: int) -> LatentStore:
        """A version that another process keeps open meanwhile: `vacuum` does not wait for idle workers."""
        folder = open_folder(location)
        return cls(folder, read_manifest(folder / MANIFESTS, version))

    def close(self) -> None:
        """Give the version free for `vacuum`; reading what was not read before may fail from then on."""
        if self._lease is not None:
            self._lease.release()

    def after_fork(self) -> None:
        """Another thread may have been opening one."""
        self._fragments, self._opening = {}, {}

    @property
    def closed(self) -> bool:
        """Whether the version was given free."""
        return self._lease is not None and not self._lease.release.alive

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def layout(self) -> Layout:
        return self.manifest.layout

    def __len__(self) -> int:
        """Passages in this version."""
        return self.manifest.totals.passages

    def count_documents(self) -> int:
        """Documents in this version."""
        return self.manifest.totals.documents

    def __contains__(self, key: PassageKey) -> bool:
        return self.place(key) is not None

    def read(self, keys: Iterable[PassageKey]) -> list[StoredPassage]:
        """Passages in the order of `keys`. KeyError names a key that this version does not hold; StoreError
        a damaged row."""
        if self.folder.local is not None:
            return [self._read(key) for key in keys]
        self._sorted_hashes()
        # Side by side, because each waits for the object store.
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            return list(pool.map(self._read, keys))

    def _read(self, key: PassageKey) -> StoredPassage:
        place = self.place(key)
        if place is None:
            raise KeyError(f"The store holds no passage {key} in version {self.version}.")
        return self.fragment(place[0]).read(place[1])

    def document_hash(self, document_id: str) -> bytes | None:
        """`Document.content_hash()` of a stored document; None where it is not stored."""
        place = self.place(PassageKey(document_id, 0))
        return None if place is None else self.fragment(place[0]).document_hash(place[1])

    def document_keys(self, document_id: str) -> list[PassageKey]:
        """Keys of all passages of a document, in order; empty where it is not stored."""
        return [PassageKey(document_id, i) for i, _ in enumerate(self.document_places(document_id))]

    def document_places(self, document_id: str) -> list[Place]:
        """Where the passages of a document are, in order; empty where it is not stored."""
        places: list[Place] = []
        while (place := self.place(PassageKey(document_id, len(places)))) is not None:
            places.append(place)
        return places

    def passages(self) -> Iterator[StoredPassage]:
        """Every passage of this version."""
        for entry in self.manifest.fragments:
            fragment = self.fragment(entry.name)
            yield from (fragment.read(int(row)) for row in np.flatnonzero(visible_rows(entry)))

    def texts(self) -> Iterator[Passage]:
        """Every passage of this version without its latents, which are not read."""
        for entry in self.manifest.fragments:
            fragment = self.fragment(entry.name)
            yield from (fragment.passage(int(row)) for row in np.flatnonzero(visible_rows(entry)))

    def document_ids(self, except_hashes: np.ndarray) -> Iterator[str]:
        """Ids of all documents but those whose first passage's key hash is in `except_hashes` (uint64)."""
        hashes, numbers, rows = self._sorted_hashes()
        for at in np.flatnonzero(~np.isin(hashes, except_hashes)):
            fragment = self.fragment(self.manifest.fragments[numbers[at]].name)
            key = fragment.key(int(rows[at]))
            if key.ordinal == 0:
                yield key.document_id

    def fragment(self, name: str) -> Fragment:
        """An open fragment of this version."""
        with self._opening.setdefault(name, Lock()):
            fragment = self._fragments.get(name)
            if fragment is None or fragment.evicted():
                folder = self.folder / FRAGMENTS
                fragment = Fragment(folder.map(name), str(folder / name), self.layout)
                self._fragments[name] = fragment
            return fragment

    def place(self, key: PassageKey) -> Place | None:
        """Where a passage is; None where this version does not hold it."""
        return next(self.places(key), None)

    def places(self, key: PassageKey) -> Iterator[Place]:
        """Every row of this key; a committed version has one at most."""
        hashes, fragments, rows = self._sorted_hashes()
        wanted = np.uint64(key_hash(key))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            name, row = self.manifest.fragments[fragments[at]].name, int(rows[at])
            found = self.fragment(name).key(row)
            if found == key:
                yield name, row
            elif key_hash(found) != wanted:
                # Not another key of the same hash: passed over, this one would be taken for missing.
                raise self.fragment(name).damaged(row, "its key is not that of its hash")
            at += 1

    def _sorted_hashes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes of all visible keys, sorted, with fragment number and row of each.

        Read as one stretch of each fragment, and not through its memory map: the pages around would count
        as this process's memory.
        """
        if self._lookup is None:
            entries = self.manifest.fragments
            hashes = np.concatenate([np.empty(0, np.uint64), *self.key_hashes(entries)])
            numbers = np.repeat(np.arange(len(entries), dtype=np.int32), [e.rows for e in entries])
            rows = np.concatenate(
                [np.empty(0, np.int32), *(np.arange(e.rows, dtype=np.int32) for e in entries)]
            )
            visible = np.concatenate([np.empty(0, bool), *map(visible_rows, entries)])
            order = np.argsort(hashes, kind="stable")
            order = order[visible[order]]
            self._lookup = hashes[order], numbers[order], rows[order]
        return self._lookup

    def key_hashes(self, entries: Iterable[FragmentEntry]) -> list[np.ndarray]:
        """uint64 [rows] for each fragment, deleted rows included.

        Raises DamagedError where they are not what was written: a passage whose hash is wrong would not be
        found, and be added a second time.
        """
        entries = list(entries)
        fragments = self.folder / FRAGMENTS
        ranges = [(e.name, e.keys_offset, e.keys_offset + 8 * e.rows) for e in entries]
        pieces = fragments.read_ranges(ranges)
        for i, entry in enumerate(entries):
            if keys_checksum(pieces[i]) != entry.keys_checksum and fragments.local is None:
                # It may have been mended in the object store since it was fetched.
                (pieces[i],) = fragments.read_ranges([ranges[i]], anew=True)
            if keys_checksum(pieces[i]) != entry.keys_checksum:
                raise DamagedError(
                    f"Fragment {fragments / entry.name} is damaged: the keys of its passages are not what "
                    "was written. lclm-rag verify lists what is, and verify --repair makes room for adding "
                    "it again."
                )
        return [np.frombuffer(piece, np.uint64) for piece in pieces]


def visible_rows(entry: FragmentEntry) -> np.ndarray:
    """bool [rows]: not deleted."""
    visible = np.ones(entry.rows, bool)
    visible[list(entry.deleted)] = False
    return visible


def row_totals(row: StoredPassage) -> Totals:
    """What a row adds to the totals of a version."""
    return Totals(int(row.passage.key.ordinal == 0), 1, row.tokens, len(row.encoded))


def totals_at(store: LatentStore, place: Place) -> Totals:
    """The same for a row in a store; neither its text nor its latents are read."""
    fragment, row = store.fragment(place[0]), place[1]
    first = fragment.key(row).ordinal == 0
    return Totals(int(first), 1, fragment.tokens(row), fragment.latent_count(row))


def _manifest(folder: Folder, version: int | None) -> Manifest:
    if version is None:
        found = committed_versions(folder / MANIFESTS)
        if not found:
            raise StoreError(f"There is no latent store in {folder}.")
        version = found[-1]
    return read_manifest(folder / MANIFESTS, version)


def read_versions(location: str | Path | Folder) -> list[Manifest]:
    """The manifests of all versions, oldest first. StoreError where one is damaged."""
    manifests = open_folder(location) / MANIFESTS
    return [read_manifest(manifests, version) for version in committed_versions(manifests)]


def newest_version(folder: Folder) -> int:
    """The newest committed version of the store in `folder`."""
    return committed_versions(folder / MANIFESTS)[-1]
