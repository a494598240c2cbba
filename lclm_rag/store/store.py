"""The latent store: passages and their latents in Arrow fragments, as committed versions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np

from lclm_rag.errors import DamagedError
from lclm_rag.forking import watch
from lclm_rag.storage import Folder, open_folder
from lclm_rag.store.fragment import Fragment, Layout, StoredPassage, key_hash, keys_checksum
from lclm_rag.store.keys import KeyRun, SortedKeys
from lclm_rag.store.lists import FragmentEntry, FragmentTable
from lclm_rag.store.locks import Lease, reading
from lclm_rag.store.manifest import (
    Manifest,
    Totals,
    committed_versions,
    read_manifest,
    write_manifest,
)
from lclm_rag.store.missing import no_store, not_there
from lclm_rag.store.parts import (
    FILES,
    FRAGMENTS,
    KEYS,
    LEASES,
    MANIFESTS,
)
from lclm_rag.types import Passage, PassageKey, RowPlace

__all__ = [
    "LatentStore",
    "Place",
    "key_records",
    "newest_version",
    "read_versions",
    "row_totals",
    "totals_at",
]

T = TypeVar("T")

_READS_AT_ONCE = 8
_FRAGMENTS_AT_ONCE = 256

Place = tuple[str, int]
"""A fragment's name and the number of a row in it."""


class LatentStore:
    """One version of a store, for reading. Later writes do not change it.

    Use `create` or `open` to get one. The folder of a store contains:

    - `manifests/<version>.json`: the versions; see `lclm_rag.store.manifest`.
    - `fragments/*.arrow`: passages and latents; see `lclm_rag.store.fragment`.
    - `lists/*.list`, `deletions/*.bits`: what a version consists of; see `lclm_rag.store.lists`.
    - `keys/*.run`: where the passage with a key lies; see `lclm_rag.store.keys`.
    - `uncommitted/<fragment>.json`: notes on fragments that a writer has finished and not committed.
    - `uncommitted/*.alive`: in an object store, which writers live; see `lclm_rag.store.marks`.
    - `readers/`: which versions are being read; see `lclm_rag.store.locks`.
    - `lock`: the lock of the one writer.

    Args:
        folder: The store's folder.
        manifest: The version.
        lease: Keeps `vacuum` from removing the version; None if nothing does.
        given: Instead of those of the manifest: the fragments, which then are looked up in a table in memory.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        lease: Lease | None = None,
        given: Sequence[FragmentEntry] | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.table = FragmentTable(folder, manifest.lists, given)
        self._lease = lease
        self._given = given
        self._folder = folder / FRAGMENTS
        self._fragments: dict[str, Fragment] = {}
        self._known = {entry.name: entry for entry in given or ()}
        self._opening: dict[str, Lock] = {}
        self._keys: list[KeyRun | SortedKeys] | None = None
        watch(self)

    @classmethod
    def of(
        cls, base: LatentStore, entries: Iterable[FragmentEntry], layout: Layout | None = None
    ) -> LatentStore:
        """Fragments, as if they made up a version.

        Args:
            base: The store.
            entries: The fragments, committed or not.
            layout: Their layout; None for that of `base`.
        """
        given = [replace(entry, number=at) for at, entry in enumerate(entries)]
        manifest = replace(base.manifest, layout=layout or base.layout, lists=(), keys=())
        return cls(base.folder, manifest, given=given)

    @classmethod
    def create(cls, location: str | Path | Folder, layout: Layout) -> LatentStore:
        """Create an empty store, committed as version 0.

        Args:
            location: The store's folder, which need not exist.
            layout: The codec and the encoder of the store's latents.

        Raises:
            StoreError: If there is a store already.
        """
        folder = open_folder(location)
        for name in (*FILES, LEASES):
            (folder / name).make()
        write_manifest(folder / MANIFESTS, Manifest.first(layout))
        return cls.open(folder)

    @classmethod
    def open(cls, location: str | Path | Folder, version: int | None = None) -> LatentStore:
        """Open a version of a store for reading.

        Args:
            location: The store's folder.
            version: The version's number; None for the newest.

        Raises:
            StoreError: If there is no store or no such version, or it has another format.
            DamagedError: If the version's manifest is damaged.
        """
        folder = open_folder(location)
        if folder.local is None:
            store = cls(folder, _manifest(folder, version))
            store.table.read_ahead()
            return store
        if not (folder.local / MANIFESTS).is_dir():
            raise no_store(folder)
        # The version is chosen and leased with the gate held: `vacuum` cannot remove it between the two.
        with reading(folder.local / LEASES) as gate:
            manifest = _manifest(folder, version)
            return cls(folder, manifest, gate.lease(manifest.version) if gate else None)

    @classmethod
    def open_for_worker(cls, location: str, version: int) -> LatentStore:
        """Open a version without a lease, in a worker of a process that keeps the version open.

        An idle worker then does not keep `vacuum` from removing a version.

        Args:
            location: The store's folder.
            version: The version's number.

        Raises:
            StoreError: If there is no such version, it is damaged, or it has another format.
        """
        folder = open_folder(location)
        return cls(folder, read_manifest(folder / MANIFESTS, version))

    def close(self) -> None:
        """Let `vacuum` remove the version; from then on, reading what was not read before may fail."""
        if self._lease is not None:
            self._lease.release()

    def after_fork(self) -> None:
        """Forget open files and their locks: in the parent, another thread may have held one."""
        self._fragments, self._opening, self._keys = {}, {}, None

    @property
    def closed(self) -> bool:
        """Whether `close` was called on a version with a lease."""
        return self._lease is not None and not self._lease.release.alive

    @property
    def version(self) -> int:
        """The version's number."""
        return self.manifest.version

    @property
    def layout(self) -> Layout:
        """What all fragments of this version have in common."""
        return self.manifest.layout

    def __len__(self) -> int:
        """The number of passages in this version."""
        return self.manifest.totals.passages

    def count_documents(self) -> int:
        """The number of documents in this version."""
        return self.manifest.totals.documents

    def __contains__(self, key: PassageKey) -> bool:
        return self.place(key) is not None

    def read(
        self, keys: Iterable[PassageKey], hints: Mapping[PassageKey, RowPlace] | None = None
    ) -> list[StoredPassage]:
        """Read passages with their latents.

        Args:
            keys: The passages' keys.
            hints: Where passages were once. A passage that is still there is not looked up.

        Returns:
            The passages in the order of `keys`.

        Raises:
            KeyError: If this version does not hold a passage. The message names its key.
            DamagedError: If a row is damaged. The message names the row.
        """
        return self._each(keys, hints, Fragment.read)

    def _each(
        self,
        keys: Iterable[PassageKey],
        hints: Mapping[PassageKey, RowPlace] | None,
        read: Callable[[Fragment, int], T],
    ) -> list[T]:
        def find(key: PassageKey) -> Place:
            hint = hints.get(key) if hints else None
            return (hint and self._still_at(key, hint)) or self.required_place(key)

        def read_at(place: Place) -> T:
            return read(self.fragment(place[0]), place[1])

        keys = list(keys)
        unknown = [key for key in keys if key not in (hints or {})]
        latents = read is Fragment.read
        if self.folder.local is not None:
            # A disk that is asked for all at once is done sooner than one that is asked again and again.
            if len(unknown) > 1:
                for run in self._runs():
                    for key in unknown:
                        run.expect(key_hash(key))
            places = list(map(find, keys))
            for name, row in places if len(places) > 1 else ():
                self.fragment(name).expect(row, latents=latents)
            return list(map(read_at, places))
        if unknown:
            self._runs()  # Opened once, before several threads need them.
        # In parallel, because each step waits for the object store.
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            places = list(pool.map(find, keys))
            rows: dict[str, list[int]] = defaultdict(list)
            for name, row in places:
                rows[name].append(row)

            def fetch(name: str) -> None:
                self.fragment(name).fetch(rows[name], latents=latents)

            list(pool.map(fetch, rows))
        return list(map(read_at, places))

    def _still_at(self, key: PassageKey, hint: RowPlace) -> Place | None:
        """The place that a hint names, if this version shows the passage there."""
        entry = self._showing(hint.fragment, hint.row)
        if entry is None or self.fragment(entry.name).key(hint.row) != key:
            return None
        return entry.name, hint.row

    def _showing(self, number: int, row: int) -> FragmentEntry | None:
        """The fragment with a number, if this version shows a row of it."""
        entry = self.table.get(number)
        if entry is None or not self.table.shows(entry, row):
            return None
        self._known[entry.name] = entry
        return entry

    def read_texts(
        self, keys: Iterable[PassageKey], hints: Mapping[PassageKey, RowPlace] | None = None
    ) -> list[Passage]:
        """Read passages without their latents; see `Fragment.passage`.

        Args:
            keys: The passages' keys.
            hints: See `read`.

        Returns:
            The passages in the order of `keys`.

        Raises:
            KeyError: If this version does not hold a passage. The message names its key.
            DamagedError: If a row makes no sense.
        """
        return self._each(keys, hints, Fragment.passage)

    def document_hash(self, document_id: str) -> bytes | None:
        """`Document.content_hash()` of a stored document; None if it is not stored."""
        place = self.place(PassageKey(document_id, 0))
        return None if place is None else self.fragment(place[0]).document_hash(place[1])

    def document_keys(self, document_id: str) -> list[PassageKey]:
        """The keys of all passages of a document, in order; empty if it is not stored."""
        return [PassageKey(document_id, i) for i, _ in enumerate(self.document_places(document_id))]

    def document_places(self, document_id: str) -> list[Place]:
        """The places of all passages of a document, in order; empty if it is not stored."""
        places: list[Place] = []
        while (place := self.place(PassageKey(document_id, len(places)))) is not None:
            places.append(place)
        return places

    def passages(self) -> Iterator[StoredPassage]:
        """Every passage of this version, in the order of its fragments."""
        for entry in self.entries():
            fragment = self.fragment(entry.name)
            yield from (fragment.read(row) for row in self.rows(entry))

    def texts(self) -> Iterator[Passage]:
        """Every passage of this version, without latents, which are not read."""
        for entry in self.entries():
            fragment = self.fragment(entry.name)
            yield from (fragment.passage(row) for row in self.rows(entry))

    def document_ids(self, except_hashes: np.ndarray) -> Iterator[str]:
        """The ids of all documents except some.

        Args:
            except_hashes: The key hashes (uint64) of the first passages of the documents to leave out.
        """
        entries = self.entries()
        # Many at once, because each may be a request to an object store.
        while some := list(islice(entries, _FRAGMENTS_AT_ONCE)):
            for entry, hashes in zip(some, self.key_hashes(some), strict=True):
                wanted = self.table.visible(entry) & ~np.isin(hashes, except_hashes)
                if wanted.any():
                    fragment = self.fragment(entry.name)
                    wanted &= fragment.ordinals() == 0
                    yield from (
                        fragment.key(row).document_id for row in np.flatnonzero(wanted).tolist()
                    )

    def entries(self) -> Iterator[FragmentEntry]:
        """All fragments of this version, in order."""
        for entry in self.table:
            self._known[entry.name] = entry
            yield entry

    def entries_unlike(self, other: LatentStore | None) -> Iterator[FragmentEntry]:
        """The fragments of this version, except those of lists that another version has, too.

        Args:
            other: The other version; None for none.
        """
        shared = set() if other is None else {listed.name for listed in other.manifest.lists}
        if self._given is not None or not shared:
            yield from self.entries()
            return
        for listed in self.manifest.lists:
            if listed.name not in shared:
                for entry in self.table.read(listed):
                    self._known[entry.name] = entry
                    yield entry

    def rows(self, entry: FragmentEntry) -> list[int]:
        """The rows of a fragment that this version shows, ascending."""
        found: list[int] = np.flatnonzero(self.table.visible(entry)).tolist()
        return found

    def fragment(self, name: str) -> Fragment:
        """A fragment of this version, opened if it is not open yet.

        Args:
            name: The fragment's name.

        Raises:
            DamagedError: If the file cannot be read or has another layout.
        """
        with self._opening.setdefault(name, Lock()):
            fragment = self._fragments.get(name)
            if fragment is None or fragment.evicted():
                entry = self._known.get(name)
                size = entry.bytes if entry else None
                number = entry.number if entry and self._given is None else None
                try:
                    mapped = self._folder.map(name, size)
                except FileNotFoundError as error:
                    raise not_there(self.folder, error) from error
                fragment = Fragment(mapped, f"{self._folder}/{name}", self.layout, entry, number)
                self._fragments[name] = fragment
            return fragment

    def number_of(self, place: Place) -> int:
        """The number of the fragment of a place that this version has named."""
        return self._known[place[0]].number

    def place(self, key: PassageKey) -> Place | None:
        """The place of a passage; None if this version does not hold it."""
        return next(self.places(key), None)

    def required_place(self, key: PassageKey) -> Place:
        """The place of a passage.

        Raises:
            KeyError: If this version does not hold it. The message names its key.
        """
        if (place := self.place(key)) is None:
            raise KeyError(f"The store holds no passage {key} in version {self.version}.")
        return place

    def places(self, key: PassageKey) -> Iterator[Place]:
        """The places of all rows with a key; a committed version has at most one.

        Args:
            key: The key.

        Raises:
            DamagedError: If a row that has the key's hash holds a key with another hash.
        """
        wanted = key_hash(key)
        for entry, row in self.noted(wanted):
            fragment = self.fragment(entry.name)
            found = fragment.key(row)
            if found == key:
                yield entry.name, row
            elif key_hash(found) != wanted:
                # No collision of two keys but damage: if this row were skipped, the key would seem missing.
                raise fragment.damaged(row, "its key is not that of its hash")

    def noted(self, wanted: int) -> Iterator[tuple[FragmentEntry, int]]:
        """The fragments and rows that the key runs name for a hash, and that this version shows.

        Args:
            wanted: The hash of a key.

        Raises:
            DamagedError: If a key run, a list or a bitmap is damaged.
        """
        first = self._keys is None
        runs = self._runs()
        if first:
            # Nothing of them is in memory yet, perhaps: a disk reads for all runs at the same time.
            for run in runs:
                run.expect(wanted)
        for run in runs:
            for number, row in run.find(wanted):
                # Runs also hold what other versions show.
                if (entry := self._showing(number, row)) is not None:
                    yield entry, row

    def _runs(self) -> list[KeyRun | SortedKeys]:
        """What keys are looked up in, the largest first: most passages are there."""
        if self._keys is None:
            if self._given is not None:
                hashes = zip(self._given, self.key_hashes(self._given), strict=True)
                records = [key_records(entry, found) for entry, found in hashes]
                self._keys = [SortedKeys(np.concatenate(records))] if records else []
            else:
                runs = sorted(self.manifest.keys, key=lambda run: -run.rows)
                self._keys = [KeyRun(self.folder / KEYS, run) for run in runs]
        for at, run in enumerate(self._keys):
            if isinstance(run, KeyRun) and run.evicted():
                self._keys[at] = KeyRun(self.folder / KEYS, run.entry)
        return self._keys

    def key_hashes(self, entries: Sequence[FragmentEntry]) -> list[np.ndarray]:
        """Read the key hashes of fragments, and check them against their checksums.

        Args:
            entries: The fragments.

        Returns:
            The key hashes of each fragment, uint64 [rows], including those of deleted rows.

        Raises:
            DamagedError: If they are not what was written. A passage with a wrong hash would seem missing,
                and would be added a second time.
        """
        together = [entry for entry in entries if entry.keys_offset]
        ranges = [(e.name, e.keys_offset, e.keys_offset + 8 * e.rows) for e in together]
        try:
            pieces = dict(zip(ranges, self._folder.read_ranges(ranges), strict=True))
        except FileNotFoundError as error:
            raise not_there(self.folder, error) from error
        found = []
        for entry in entries:
            if not entry.keys_offset:
                self._known[entry.name] = entry
                hashes = self.fragment(entry.name).key_hashes()
            else:
                wanted = (entry.name, entry.keys_offset, entry.keys_offset + 8 * entry.rows)
                piece = pieces[wanted]
                if keys_checksum(piece) != entry.keys_checksum and self._folder.local is None:
                    # The object may have been repaired since the cache fetched it.
                    (piece,) = self._folder.read_ranges([wanted], anew=True)
                hashes = np.frombuffer(piece[: len(piece) - len(piece) % 8], np.uint64)
            if len(hashes) != entry.rows or keys_checksum(hashes.data) != entry.keys_checksum:
                raise DamagedError(
                    f"Fragment {self._folder / entry.name} is damaged: the keys of its passages are not what "
                    "was written. lclm-rag verify lists what is, and verify --repair makes room for adding "
                    "it again."
                )
            found.append(hashes)
        return found


def key_records(entry: FragmentEntry, hashes: np.ndarray) -> np.ndarray:
    """The records of a key run for all rows of a fragment; see `SortedKeys`.

    Args:
        entry: The fragment, with its number.
        hashes: The hashes of its rows' keys, uint64 [rows].
    """
    places = np.arange(len(hashes), dtype=np.uint64) + np.uint64(entry.number << 32)
    return np.stack([hashes, places], axis=1)


def row_totals(row: StoredPassage) -> Totals:
    """What a row adds to the totals of a version."""
    return Totals(int(row.passage.key.ordinal == 0), 1, row.tokens, len(row.encoded))


def totals_at(store: LatentStore, place: Place) -> Totals:
    """What the row at a place adds to the totals of a version; neither its text nor its latents are read."""
    fragment, row = store.fragment(place[0]), place[1]
    first = fragment.key(row).ordinal == 0
    return Totals(int(first), 1, fragment.tokens(row), fragment.latent_count(row))


def _manifest(folder: Folder, version: int | None) -> Manifest:
    if version is None:
        found = committed_versions(folder / MANIFESTS)
        if not found:
            raise no_store(folder)
        version = found[-1]
    return read_manifest(folder / MANIFESTS, version)


def read_versions(location: str | Path | Folder) -> list[Manifest]:
    """Read the manifests of all versions.

    Args:
        location: The store's folder.

    Returns:
        The manifests, oldest first; none if there is no store.

    Raises:
        StoreError: If a manifest has another format.
        DamagedError: If a manifest is damaged.
    """
    manifests = open_folder(location) / MANIFESTS
    return [read_manifest(manifests, version) for version in committed_versions(manifests)]


def newest_version(folder: Folder) -> int:
    """The number of the newest committed version of a store.

    Args:
        folder: The store's folder.

    Raises:
        StoreError: If there is no version.
    """
    versions = committed_versions(folder / MANIFESTS)
    if not versions:
        raise no_store(folder)
    return versions[-1]
