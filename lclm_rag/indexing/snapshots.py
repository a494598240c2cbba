"""Snapshots of the embedded passage index, which any number of processes read at once.

The engine allows one process per folder, so every process has a private folder. It starts as a view of a
published snapshot, made of hard links: the engine writes no byte of a file that it only searches. If passages
have to be added or deleted, it is a copy. A snapshot is published whole, by renaming a folder, and never
changed afterwards.

```
index/published/<version>-<id>/index.json, edge/…   a snapshot: what it shows, and the engine's files
index/<version>-<id>.tar.zst                        the same, packed, if `index` is in an object store
index/private/<pid>-<id>/edge/…                     the private folder of a process
index/private/<pid>-<id>.lock                       locked as long as this process lives
```

`<version>` is the store's version, 10 digits. `<id>` of a snapshot is the time of its publication, in
nanoseconds since 1970, 16 hexadecimal digits. So names sort by version, and those of one version by time.

If `index` is in an object store, or may only be read, `published` and `private` are in the user's cache,
where snapshots are brought from `index`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lclm_rag.cache import writable_cache
from lclm_rag.indexing.files import copy_tree, disk_bytes, sync_tree
from lclm_rag.indexing.private import PrivateFolder, remove_leftovers
from lclm_rag.indexing.snapshot import UNREADABLE, Snapshot, read_snapshot, seal_snapshot
from lclm_rag.indexing.transfer import PACKED, bring, remove_tree, upload
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.retrieval.edge import settle
from lclm_rag.storage import Folder, LocalFolder, ObjectFolder
from lclm_rag.storage.locks import GATE

__all__ = ["SnapshotFolder", "published_versions"]

_NAME = re.compile(rf"(\d+)-[0-9a-f]+({re.escape(PACKED)})?")
_TRIES = 5

_USED = "used"
_UNUSED_SECONDS = 30 * 24 * 3600.0

_log = logging.getLogger(__name__)


class SnapshotFolder:
    """The folders where snapshots are published and private folders are made.

    Both are in the knowledge base's own `index` folder, or, if that is in an object store or nothing may be
    written into it, in the user's cache.

    Args:
        folder: The folder of the knowledge base's index.
        owner: The knowledge base's id. One that is removed and made again at the same place has another, so
            that it does not use what was cached of the old one.
    """

    def __init__(self, folder: Folder, owner: str = "") -> None:
        self.folder = folder
        in_place = folder.local is not None and _may_be_written(folder.local)
        self.home = folder.local if folder.local and in_place else _cached(folder, owner)
        self.published, self.private = self.home / "published", self.home / "private"

    @property
    def originals(self) -> Path:
        """Where the knowledge base itself has its snapshots; for one in an object store, their copies."""
        return self.published if self.folder.local is None else self.folder.local / "published"

    def nearest(self, version: int, *, originals: bool = False) -> list[Snapshot]:
        """All readable snapshots, the nearest to a version first.

        If they have to be brought to this user's cache, the nearest one is, unless it is there already.

        Args:
            version: The store's version.
            originals: Whether to look at those in `originals` instead of the copies.

        Returns:
            The snapshots of this version and earlier ones, newest first, then those of later versions, oldest
            first.
        """
        if self.folder.local is None or not originals:
            self._bring(version)
        found = list(_read(_paths(self.originals if originals else self.published)))
        before = [snapshot for snapshot in found if snapshot.version <= version]
        return [*reversed(before), *(s for s in found if s.version > version)]

    def snapshots(self) -> Iterator[Snapshot]:
        """All published snapshots that can be read, oldest version first."""
        return _read(_paths(self.published))

    def unreadable(self) -> list[Path]:
        """The published snapshots that cannot be read."""
        # The paths are listed first, and those that are gone at the end are left out: other processes may
        # publish and remove snapshots meanwhile, and these are not damaged.
        paths = sorted({*_paths(self.originals), *_paths(self.published)})
        sound = {snapshot.path for snapshot in _read(paths)}
        return [path for path in paths if path not in sound and path.exists()]

    def remove_superseded(self) -> int:
        """Remove what killed processes left, and all snapshots older than the newest readable one.

        Returns:
            The bytes freed on disk.
        """
        freed = remove_leftovers(self.private)
        newest = max((snapshot.path.name for snapshot in self.snapshots()), default="")
        own = PrivateFolder(self.private)
        try:
            for path in _paths(self.published):
                if path.name < newest:
                    freed += disk_bytes(path)
                    remove_tree(path, own.path)
        finally:
            own.close()
        return freed

    def publish(
        self,
        own: PrivateFolder,
        version: int,
        manifest: str,
        bm25: Bm25Settings,
        embedder: str | None,
    ) -> None:
        """Publish a copy of a flushed index, and remove earlier snapshots.

        Args:
            own: The private folder that holds the index.
            version: The number of the store's version that the index shows.
            manifest: The digest of that version's manifest.
            bm25: The BM25 settings of the index.
            embedder: The name of the embedder; None for BM25 alone.

        Raises:
            OSError: If the snapshot cannot be written. Earlier ones are still there then.
        """
        # 1. A copy in the private folder, where no other process sees it before it is complete. This process
        #    goes on with the original, which may change.
        copy = own.path / "publish"
        shutil.rmtree(copy, ignore_errors=True)
        copy_tree(own.path / "edge", copy / "edge")
        # 2. The engine tidies up files when it opens a folder. It does so here, before checksums are taken:
        #    afterwards, opening a view of the snapshot must not change a file.
        settle(copy / "edge")
        # 3. The checksums, in `index.json`: a folder without it is no snapshot.
        seal_snapshot(copy, version, manifest, bm25, embedder)
        # 4. Every file is synced before the folder gets its published name: after a power cut, a published
        #    snapshot must not be one of empty files.
        sync_tree(copy)
        # A version is published again after its index was optimized: the time makes the later one sort last.
        name = f"{version:010d}-{time.time_ns():016x}"
        # 5. The rename publishes the snapshot: other processes see all of it or nothing. Then its name is
        #    synced.
        copy.rename(self.published / name)
        LocalFolder(self.published).sync()
        # 6. In an object store others find it only there; what was published above is in this user's cache.
        if isinstance(self.folder, ObjectFolder):
            upload(self.folder, self.published / name, own.path)
        # 7. Earlier snapshots go last, so that at any time there is one to start from.
        for path in _paths(self.published):
            if path.name < name:
                remove_tree(path, own.path)

    def remove_all(self) -> None:
        """Remove all snapshots, also those in the object store."""
        for path in _paths(self.published):
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(self.folder, ObjectFolder):
            for facts in self.folder.files():
                self.folder.remove(facts.name)

    def _bring(self, version: int) -> None:
        """Copy the nearest snapshot to this user's cache, if they are published elsewhere."""
        if self.home == self.folder.local:
            return
        for _ in range(_TRIES):
            names = self._names_elsewhere()
            before = [name for name in names if _version(name) <= version]
            name = next(reversed(before or names), None)
            if name is None or self._has(name, version):
                return
            try:
                bring(self.folder, name, self.published, self.private)
            except FileNotFoundError:
                continue  # It was removed because a newer one was published.
            except (tarfile.TarError, *UNREADABLE) as error:
                _log.warning(
                    "The passage index %s cannot be used (%s); it is built anew.",
                    self.folder / name,
                    error,
                )
                return

    def _names_elsewhere(self) -> list[str]:
        if self.folder.local is not None:
            return [path.name for path in _paths(self.originals) if _NAME.fullmatch(path.name)]
        matches = [_NAME.fullmatch(facts.name) for facts in self.folder.files()]
        return [match[0].removesuffix(PACKED) for match in matches if match and match[2]]

    def _has(self, name: str, version: int) -> bool:
        """Whether a snapshot is here, or one nearer to a version, which this user has made."""
        until = f"{max(version, _version(name)):010d}-g"  # "g" comes after all hexadecimal digits.
        return any(name <= path.name < until for path in _paths(self.published))


def _may_be_written(index: Path) -> bool:
    """Whether this user may publish snapshots and make private folders in the folder of an index."""
    places = (index / "published", index / "private")
    try:
        # Not its parents: a knowledge base that was moved is not to appear again where it was.
        for place in (index, *places):
            place.mkdir(exist_ok=True)
        gate = index / "private" / GATE
        needed = [*places, *([gate] if gate.exists() else [])]
    except OSError:
        return False
    return all(os.access(place, os.W_OK) for place in needed)


def _cached(folder: Folder, owner: str) -> Path:
    """The folder in the user's cache that stands for the folder of an index."""
    named = f"{folder} {owner}" if owner else str(folder)
    home = writable_cache("index") / hashlib.sha256(named.encode()).hexdigest()[:16]
    is_new = not home.exists()
    for place in ("published", "private"):
        (home / place).mkdir(parents=True, exist_ok=True)
    (home / _USED).touch()
    if is_new:
        _remove_unused(home.parent)
    return home


def _remove_unused(cache: Path) -> None:
    """Remove what was cached of knowledge bases that this user has not opened for a month."""
    for home in cache.iterdir():
        with suppress(OSError):
            if time.time() - (home / _USED).stat().st_mtime > _UNUSED_SECONDS:
                remove_leftovers(home / "private")
                # A process that runs for longer than that still has its lock.
                if not any((home / "private").glob("*.lock")):
                    shutil.rmtree(home, ignore_errors=True)


def _paths(published: Path) -> list[Path]:
    return sorted(published.iterdir()) if published.is_dir() else []


def _read(paths: Iterable[Path]) -> Iterator[Snapshot]:
    for path in paths:
        try:
            snapshot = read_snapshot(path)
        except UNREADABLE:
            continue  # The index is derived: it is built from the store instead, and verify reports this.
        yield snapshot


def _version(name: str) -> int:
    return int(name.partition("-")[0])


def published_versions(folder: Folder) -> list[int]:
    """The versions that have a snapshot, readable or not.

    Args:
        folder: The folder of the knowledge base's index, which need not exist.
    """
    names = [facts.name for facts in folder.files()]
    if folder.local is not None and (folder.local / "published").is_dir():
        names = [path.name for path in (folder.local / "published").iterdir()]
    return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]
