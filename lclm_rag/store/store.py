"""The latent store: passages with their latents in Arrow fragments, in committed versions."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from lclm_rag.documents import PassageKey
from lclm_rag.errors import LockedError, StoreError
from lclm_rag.store.fragment import Fragment, Layout, StoredPassage, key_hash, write_fragment
from lclm_rag.store.manifest import (
    FragmentEntry,
    Manifest,
    latest_version,
    read_manifest,
    sync_folder,
    write_manifest,
)

__all__ = ["LatentStore", "StoreWriter"]

_FRAGMENT_BYTES = 64 * 2**20
"""A writer starts a new fragment once the latents, texts and metadata it holds reach this size."""

Place = tuple[str, int]
"""Fragment name and row."""


class LatentStore:
    """One version of a store, for reading; `writer()` makes the next version.

    Folder: `fragments/*.arrow`, `manifests/<version>.json`, `lock`.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._fragments: dict[str, Fragment] = {}
        self._lookup: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @classmethod
    def create(cls, path: Path, layout: Layout) -> LatentStore:
        """An empty store, committed as version 0. StoreError where there is one already."""
        for folder in (path / "fragments", path / "manifests"):
            folder.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(0, layout)
        write_manifest(path / "manifests", manifest)
        return cls(path, manifest)

    @classmethod
    def open(cls, path: Path, version: int | None = None) -> LatentStore:
        """The newest version, or the one asked for. StoreError where there is none."""
        found = latest_version(path / "manifests")
        if found is None:
            raise StoreError(f"There is no latent store in {path}.")
        return cls(path, read_manifest(path / "manifests", found if version is None else version))

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def layout(self) -> Layout:
        return self.manifest.layout

    def __len__(self) -> int:
        """Passages in this version."""
        return self.manifest.passages

    def count_documents(self) -> int:
        """Documents in this version."""
        return sum(
            int((self._fragment(e.name).ordinals()[_visible(e)] == 0).sum())
            for e in self.manifest.fragments
        )

    def __contains__(self, key: PassageKey) -> bool:
        return self._find(key) is not None

    def read(self, keys: Iterable[PassageKey]) -> list[StoredPassage]:
        """Passages in the order of `keys`. KeyError names a key that this version does not hold."""
        rows = []
        for key in keys:
            place = self._find(key)
            if place is None:
                raise KeyError(f"The store holds no passage {key} in version {self.version}.")
            rows.append(self._fragment(place[0]).read(place[1]))
        return rows

    def document_hash(self, document_id: str) -> bytes | None:
        """`Document.content_hash()` of a stored document; None where it is not stored."""
        place = self._find(PassageKey(document_id, 0))
        return None if place is None else self._fragment(place[0]).document_hash(place[1])

    def document_keys(self, document_id: str) -> list[PassageKey]:
        """Keys of all passages of a document, in order; empty where it is not stored."""
        keys: list[PassageKey] = []
        while (key := PassageKey(document_id, len(keys))) in self:
            keys.append(key)
        return keys

    def passages(self) -> Iterator[StoredPassage]:
        """Every passage of this version."""
        for entry in self.manifest.fragments:
            yield from self.fragment_passages(entry, set(range(entry.rows)) - entry.deleted)

    def fragment_passages(
        self, entry: FragmentEntry, rows: Iterable[int]
    ) -> Iterator[StoredPassage]:
        fragment = self._fragment(entry.name)
        for row in sorted(rows):
            yield fragment.read(row)

    def places(self, keys: Iterable[PassageKey]) -> list[Place]:
        """Fragment name and row of each key; keys that are not stored are left out."""
        return [place for key in keys if (place := self._find(key)) is not None]

    @contextmanager
    def writer(self) -> Iterator[StoreWriter]:
        """Take the store's write lock and collect changes on top of the newest version.

        Nothing is visible until `commit()`; leaving without it throws the changes away.
        Raises LockedError where another process writes.
        """
        with _write_lock(self.path):
            writer = StoreWriter(LatentStore.open(self.path))
            try:
                with _disk_errors(self.path, writer.base.version):
                    yield writer
            finally:
                writer.abandon()

    def _fragment(self, name: str) -> Fragment:
        if name not in self._fragments:
            self._fragments[name] = Fragment(self.path / "fragments" / name, self.layout)
        return self._fragments[name]

    def _find(self, key: PassageKey) -> Place | None:
        hashes, fragments, rows = self._sorted_hashes()
        wanted = np.uint64(key_hash(key))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            name = self.manifest.fragments[fragments[at]].name
            if self._fragment(name).key(int(rows[at])) == key:
                return name, int(rows[at])
            at += 1
        return None

    def _sorted_hashes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes of all visible keys, sorted, with fragment number and row of each."""
        if self._lookup is None:
            hashes, numbers, rows = [np.empty(0, np.uint64)], [np.empty(0, int)], [np.empty(0, int)]
            for number, entry in enumerate(self.manifest.fragments):
                visible = _visible(entry)
                rows.append(np.flatnonzero(visible))
                hashes.append(self._fragment(entry.name).key_hashes()[visible])
                numbers.append(np.full(len(rows[-1]), number))
            joined = np.concatenate(hashes)
            order = np.argsort(joined, kind="stable")
            self._lookup = (
                joined[order],
                np.concatenate(numbers)[order],
                np.concatenate(rows)[order],
            )
        return self._lookup


class StoreWriter:
    """Changes on top of one version; one writer at a time holds the store's lock."""

    def __init__(self, base: LatentStore) -> None:
        self.base = base
        self._pending: list[StoredPassage] = []
        self._pending_bytes = 0
        self._new: list[FragmentEntry] = []
        self._deleted: dict[str, set[int]] = {}
        self._committed = False
        self._remove_orphans()

    def add(self, row: StoredPassage) -> None:
        """Add a passage; its key must be new, or deleted by this writer before."""
        self._pending.append(row)
        self._pending_bytes += row.latents.nbytes + row.passage.characters
        if self._pending_bytes >= _FRAGMENT_BYTES:
            self._write_pending()

    def delete_document(self, document_id: str) -> int:
        """Delete all passages of a stored document; returns how many."""
        keys = self.base.document_keys(document_id)
        for name, row in self.base.places(keys):
            self._deleted.setdefault(name, set()).add(row)
        return len(keys)

    def commit(self) -> LatentStore:
        """Make the changes the newest version, atomically; without changes the version stays."""
        self._write_pending()
        if not self._new and not self._deleted:
            return self.base
        kept = [
            replace(entry, deleted=entry.deleted | self._deleted.get(entry.name, set()))
            for entry in self.base.manifest.fragments
        ]
        manifest = Manifest(self.base.version + 1, self.base.layout, (*kept, *self._new))
        sync_folder(self.base.path / "fragments")
        write_manifest(self.base.path / "manifests", manifest)
        self._committed = True
        return LatentStore(self.base.path, manifest)

    def abandon(self) -> None:
        """Remove what was written and not committed."""
        if not self._committed:
            for entry in self._new:
                (self.base.path / "fragments" / entry.name).unlink(missing_ok=True)

    def _write_pending(self) -> None:
        if not self._pending:
            return
        name = f"{uuid.uuid4().hex}.arrow"
        path = self.base.path / "fragments" / name
        size, digest = write_fragment(path, self._pending, self.base.layout)
        self._new.append(
            FragmentEntry(
                name=name,
                rows=len(self._pending),
                latents=sum(len(row.latents) for row in self._pending),
                tokens=sum(row.tokens for row in self._pending),
                bytes=size,
                sha256=digest,
            )
        )
        self._pending, self._pending_bytes = [], 0

    def _remove_orphans(self) -> None:
        """What a killed writer left: no committed version names it, and we hold the lock."""
        manifests = self.base.path / "manifests"
        named = {
            entry.name
            for path in manifests.glob("[0-9]*.json")
            for entry in read_manifest(manifests, int(path.stem)).fragments
        }
        for path in (self.base.path / "fragments").iterdir():
            if path.name not in named:
                path.unlink()
        for path in manifests.glob("*.tmp"):
            path.unlink()


def _visible(entry: FragmentEntry) -> np.ndarray:
    """bool [rows]: not deleted."""
    visible = np.ones(entry.rows, bool)
    visible[list(entry.deleted)] = False
    return visible


@contextmanager
def _write_lock(path: Path) -> Iterator[None]:
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LockedError(f"The store in {path} is being written by another process.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(path: Path, version: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(
            f"The disk is full: nothing was committed to {path}, version {version} still stands. "
            "Free some space and run the same command again."
        ) from error
