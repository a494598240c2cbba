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
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lclm_rag.cache import cache_folder
from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.forking import this_process
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.retrieval.edge import settle, stored_keys
from lclm_rag.storage import Folder, LocalFolder, ObjectFolder
from lclm_rag.storage.names import is_path_below
from lclm_rag.typed_json import from_json
from lclm_rag.types import PassageKey

__all__ = [
    "PrivateFolder",
    "Snapshot",
    "SnapshotFolder",
    "published_versions",
    "remove_leftovers",
    "snapshot_keys",
]

_PACKED = ".tar.zst"
_NAME = re.compile(rf"(\d+)-[0-9a-f]+({re.escape(_PACKED)})?")
_PIECE = 1 << 23
_HOLE = 1 << 16

# What `_read_snapshot` raises for a snapshot that is damaged or incomplete.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot, as its `index.json` describes it.

    Attributes:
        path: The folder that holds `edge` and `index.json`.
        version: The number of the store's version that the snapshot shows.
        manifest: The digest of that version's manifest.
        bm25: The BM25 settings of the index.
        embedder: The name of the embedder that the index was made with; None for BM25 alone.
        files: The size in bytes and the SHA-256 of each of the engine's files, by its path below `edge`.
    """

    path: Path
    version: int
    manifest: str
    bm25: Bm25Settings
    embedder: str | None
    files: dict[str, tuple[int, str]]

    def damage(self) -> list[str]:
        """The files that are missing, changed or additional, by their paths below `edge`; reads them all."""
        there = dict(_files(self.path / "edge"))
        wrong = [n for n in self.files if n not in there or _facts(there[n]) != self.files[n]]
        return sorted([*wrong, *(there.keys() - self.files.keys())])

    def misfits(self) -> list[str]:
        """The files that are missing or have another size than when they were published.

        From such files the engine may make an index that lacks passages. Unlike `damage`, this reads no file.
        """
        return [name for name, (size, _) in self.files.items() if self._size(name) != size]

    def _size(self, name: str) -> int | None:
        """The size of a file; None if there is no plain file of that name."""
        try:
            facts = (self.path / "edge" / name).lstat()
        except OSError:
            return None
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None


class SnapshotFolder:
    """The folders where snapshots are published and private folders are made.

    Both are in the knowledge base's own `index` folder. If that is in an object store, both are in the user's
    cache; if it is local but nothing may be written into it, only private folders are.

    Args:
        folder: The folder of the knowledge base's index.
        owner: The knowledge base's id. One that is removed and made again at the same place has another, so
            that it does not use what was cached of the old one.
    """

    def __init__(self, folder: Folder, owner: str = "") -> None:
        self.folder = folder
        named = f"{folder} {owner}" if owner else str(folder)
        cached = cache_folder() / "index" / hashlib.sha256(named.encode()).hexdigest()[:16]
        self.home = folder.local or cached
        self.published = self.home / "published"
        try:
            self.published.mkdir(parents=True, exist_ok=True)
            (self.home / "private").mkdir(exist_ok=True)
            self.private = self.home / "private"
        except OSError:
            self.private = cached / "private"
            self.private.mkdir(parents=True, exist_ok=True)
        if not os.access(self.private, os.W_OK):
            self.private = cached / "private"
            self.private.mkdir(parents=True, exist_ok=True)

    def nearest(self, version: int) -> list[Snapshot]:
        """All readable snapshots, the nearest to a version first.

        From an object store, the nearest one is downloaded first.

        Args:
            version: The store's version.

        Returns:
            The snapshots of this version and earlier ones, newest first, then those of later versions, oldest
            first.
        """
        self._fetch(version)
        found = sorted(self.snapshots(), key=lambda snapshot: snapshot.path.name)
        before = [snapshot for snapshot in found if snapshot.version <= version]
        return [*reversed(before), *(s for s in found if s.version > version)]

    def snapshots(self) -> Iterator[Snapshot]:
        """All published snapshots that can be read, oldest version first."""
        for path in self._paths():
            try:
                yield _read_snapshot(path)
            except _UNREADABLE:
                continue  # The index is derived: it is built from the store instead, and verify reports this.

    def unreadable(self) -> list[Path]:
        """The published snapshots that cannot be read."""
        # The paths are listed first, and those that are gone at the end are left out: other processes may
        # publish and remove snapshots meanwhile, and these are not damaged.
        paths = self._paths()
        sound = {snapshot.path for snapshot in self.snapshots()}
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
            for path in self._paths():
                if path.name < newest:
                    freed += _disk_bytes(path)
                    _remove_tree(path, own.path)
        finally:
            own.close()
        return freed

    def _paths(self) -> list[Path]:
        return sorted(self.published.iterdir()) if self.published.is_dir() else []

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
        _copy_tree(own.path / "edge", copy / "edge")
        # 2. The engine tidies up files when it opens a folder. It does so here, before checksums are taken:
        #    afterwards, opening a view of the snapshot must not change a file.
        settle(copy / "edge")
        # 3. The checksums, in `index.json`: a folder without it is no snapshot.
        files = {name: _facts(path) for name, path in _files(copy / "edge")}
        content = {
            "version": version,
            "manifest": manifest,
            "bm25": asdict(bm25),
            "embedder": embedder,
            "files": files,
        }
        (copy / "index.json").write_bytes(seal(content))
        # 4. Every file is synced before the folder gets its published name: after a power cut, a published
        #    snapshot must not be one of empty files.
        _sync(copy)
        # A version is published again after its index was optimized: the time makes the later one sort last.
        name = f"{version:010d}-{time.time_ns():016x}"
        # 5. The rename publishes the snapshot: other processes see all of it or nothing. Then its name is
        #    synced.
        copy.rename(self.published / name)
        LocalFolder(self.published).sync()
        # 6. In an object store others find it only there; what was published above is in this user's cache.
        if isinstance(self.folder, ObjectFolder):
            _upload(self.folder, self.published / name, own.path)
        # 7. Earlier snapshots go last, so that at any time there is one to start from.
        for path in self._paths():
            if path.name < name:
                _remove_tree(path, own.path)

    def remove_all(self) -> None:
        """Remove all snapshots, also those in the object store."""
        for path in self._paths():
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(self.folder, ObjectFolder):
            for facts in self.folder.files():
                self.folder.remove(facts.name)

    def _fetch(self, version: int) -> None:
        """Download the nearest snapshot from the object store, unless it is here already."""
        if not isinstance(self.folder, ObjectFolder):
            return
        matches = [_NAME.fullmatch(facts.name) for facts in self.folder.files()]
        names = [match[0] for match in matches if match and match[2]]
        before = [name for name in names if int(name.partition("-")[0]) <= version]
        for name in (before or names)[-1:]:
            if (self.published / name.removesuffix(_PACKED)).exists():
                continue
            try:
                _download(self.folder, name, self.published, self.private)
            except FileNotFoundError:
                continue  # It was removed because a newer one was published.
            except (tarfile.TarError, *_UNREADABLE) as error:
                _log.warning(
                    "The passage index %s cannot be used (%s); it is built anew.",
                    self.folder / name,
                    error,
                )


class PrivateFolder:
    """A folder of this process alone, until it is closed or the process ends.

    Args:
        private: The folder in which it is made.
    """

    def __init__(self, private: Path) -> None:
        self._process = this_process()
        remove_leftovers(private)
        self.path = private / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        # The lock before the folder: leftovers are found by their lock files, so a folder without one would
        # stay for good if this process were killed in between.
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        with _gate(private):
            self._lock.acquire(timeout=0)
        self.path.mkdir()

    def link(self, snapshot: Snapshot) -> None:
        """Make `edge` a view of a snapshot, for searching only.

        Args:
            snapshot: The snapshot.

        Raises:
            FileNotFoundError: If a file of the snapshot is missing, because it was removed or is damaged.
        """
        _clear(self.path / "edge")
        # The names come from `index.json` and not from a listing: while another process removes the snapshot,
        # a listing may show only some of its files, and the view would lack the others without an error.
        for name in snapshot.files:
            path, target = snapshot.path / "edge" / name, self.path / "edge" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                if name == "edge_config.json":  # The engine rewrites it when it opens a folder.
                    raise OSError
                os.link(path, target)
            except FileNotFoundError:
                raise
            except OSError:  # On another file system, or on one without hard links.
                _copy_file(path, target)

    def copy_links(self) -> None:
        """Copy the view in `edge`, so that `take_copy` can put the copy in its place."""
        try:
            _copy_tree(self.path / "edge", self.path / "copied")
        except BaseException:
            shutil.rmtree(self.path / "copied", ignore_errors=True)
            raise

    def take_copy(self) -> None:
        """Replace the view in `edge` by the copy that `copy_links` made; the index must be closed."""
        (self.path / "edge").rename(self.path / "linked")
        (self.path / "copied").rename(self.path / "edge")
        shutil.rmtree(self.path / "linked")

    def close(self) -> None:
        """Remove the folder; in a forked child, which does not own it, do nothing."""
        if self._process != this_process():
            return
        # The lock file after the folder, because leftovers are found by it; and the lock is released last, so
        # that no other process cleans up here at the same time.
        shutil.rmtree(self.path, ignore_errors=True)
        Path(f"{self.path}.lock").unlink(missing_ok=True)
        self._lock.release()


def _read_snapshot(path: Path) -> Snapshot:
    """The snapshot in a folder; one of `_UNREADABLE` if it is damaged or incomplete."""
    raw = from_json(_Packed, unseal(LocalFolder(path).read("index.json")))
    files = {name: (int(size), str(digest)) for name, (size, digest) in raw.files.items()}
    # Checked, because the files are linked into a folder where the engine writes: a path that leads out of
    # the snapshot may be that of any file.
    if leading_out := [name for name in files if not is_path_below(name)]:
        raise ValueError(f"{leading_out[0]!r} is not the name of a file of an index")
    bm25 = Bm25Settings.from_json(raw.bm25)
    return Snapshot(path, raw.version, raw.manifest, bm25, raw.embedder, files)


@dataclass(frozen=True)
class _Packed:
    """What `index.json` holds; see `Snapshot`. `files` gives the size and the digest of each."""

    version: int
    manifest: str
    bm25: dict[str, Any]
    embedder: str | None
    files: dict[str, Any]


def published_versions(folder: Folder) -> list[int]:
    """The versions that have a snapshot, readable or not.

    Args:
        folder: The folder of the knowledge base's index, which need not exist.
    """
    names = [facts.name for facts in folder.files()]
    if folder.local is not None and (folder.local / "published").is_dir():
        names = [path.name for path in (folder.local / "published").iterdir()]
    return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]


def snapshot_keys(snapshots: SnapshotFolder, snapshot: Snapshot) -> set[PassageKey]:
    """Read the keys of all passages that a snapshot holds.

    Args:
        snapshots: Where a private folder is made for reading.
        snapshot: The snapshot.

    Raises:
        PassageIndexError: If the snapshot is damaged.
    """
    own = PrivateFolder(snapshots.private)
    try:
        own.link(snapshot)
        return stored_keys(own.path / "edge")
    finally:
        own.close()


def remove_leftovers(private: Path) -> int:
    """Remove the private folders of processes that have ended.

    Args:
        private: The folder of the private folders.

    Returns:
        The bytes freed on disk.
    """
    freed = 0
    with _gate(private):
        for path in private.glob("*.lock"):
            lock = FileLock(path, thread_local=False)
            try:
                lock.acquire(timeout=0)
            except OSError:  # In use (`Timeout` is an OSError), or another user's.
                continue
            # The folder before its lock file, and the lock last, as in `PrivateFolder.close`.
            folder = path.with_suffix("")
            freed += _disk_bytes(folder)
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)
            lock.release()
    return freed


def _gate(private: Path) -> FileLock:
    """The lock to hold while a lock file is made and locked, or while leftovers are looked for.

    Between its creation and its locking, a lock file looks like that of a process that has ended.
    """
    return FileLock(private / "gate", thread_local=False)


def _disk_bytes(folder: Path) -> int:
    """The bytes that a folder takes on disk; 0 if it is removed meanwhile."""
    try:
        return sum(path.stat().st_blocks * 512 for _, path in _files(folder))
    except FileNotFoundError:
        return 0


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The relative name and the path of every file below a folder, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def _facts(path: Path) -> tuple[int, str]:
    with path.open("rb") as f:
        return path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest()


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        if path.is_dir():  # Also empty folders, which the engine needs.
            (target / path.relative_to(source)).mkdir(parents=True, exist_ok=True)
    for name, path in _files(source):
        _copy_file(path, target / name)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file; its holes stay holes, which make up most of the engine's files."""
    with source.open("rb", buffering=0) as a, target.open("wb", buffering=0) as b:
        size = os.fstat(a.fileno()).st_size
        b.truncate(size)
        offset = 0
        while offset < size:
            try:
                begin = os.lseek(a.fileno(), offset, os.SEEK_DATA)
            except OSError:  # The rest of the file is a hole.
                return
            end = os.lseek(a.fileno(), begin, os.SEEK_HOLE)
            for start in range(begin, end, _PIECE):
                piece = os.pread(a.fileno(), min(_PIECE, end - start), start)
                # In a loop, because on a nearly full disk only a part is written, without an error.
                while piece:
                    written = os.pwrite(b.fileno(), piece, start)
                    piece, start = piece[written:], start + written
            offset = end


def _sync(folder: Path) -> None:
    """Make every file below a folder survive a power cut."""
    for _, path in _files(folder):
        with path.open("rb+") as f:
            os.fsync(f.fileno())


def _remove_tree(path: Path, aside: Path) -> None:
    """Remove a snapshot: it is first renamed into a private folder, so that others never see a part of it."""
    target = aside / f"removed-{uuid.uuid4().hex[:8]}"
    try:
        path.rename(target)
    except OSError:  # Another process has removed it.
        return
    shutil.rmtree(target, ignore_errors=True)


def _upload(folder: ObjectFolder, snapshot: Path, aside: Path) -> None:
    """Upload a snapshot as one object, and remove earlier ones.

    Args:
        folder: The folder of the knowledge base's index.
        snapshot: The published snapshot.
        aside: A folder for the packed file.
    """
    import pyarrow as pa

    name = f"{snapshot.name}{_PACKED}"
    try:
        with (
            pa.CompressedOutputStream(str(aside / name), "zstd") as packed,
            tarfile.open(fileobj=packed, mode="w|") as tar,
        ):
            tar.add(snapshot, arcname=".")
        folder.upload(name, aside / name)
    finally:
        (aside / name).unlink(missing_ok=True)
    # Only now the earlier ones, so that at any time there is one to start from.
    for facts in folder.files():
        if facts.name.endswith(_PACKED) and facts.name < name:
            folder.remove(facts.name)


def _unpack(tar: tarfile.TarFile, target: Path) -> None:
    """Unpack files; stretches of zeros become holes, as most of them were before packing."""
    for member in tar:
        safe = tarfile.data_filter(member, str(target))
        path = target / safe.name
        if safe.isdir():
            path.mkdir(parents=True, exist_ok=True)
        packed = tar.extractfile(member)
        if packed is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as f:
            f.truncate(safe.size)
            while piece := packed.read(_HOLE):
                if piece.count(0) == len(piece):
                    f.seek(len(piece), os.SEEK_CUR)
                else:
                    f.write(piece)


def _download(folder: ObjectFolder, name: str, published: Path, private: Path) -> None:
    """Download a snapshot to where snapshots are published, and remove earlier ones there."""
    import pyarrow as pa

    aside = Path(tempfile.mkdtemp(dir=private))
    target = published / name.removesuffix(_PACKED)
    try:
        folder.fetch(name, aside / name)
        with (
            pa.CompressedInputStream(str(aside / name), "zstd") as packed,
            tarfile.open(fileobj=packed, mode="r|") as tar,
        ):
            _unpack(tar, aside / "snapshot")
        # Checked in full before it is published: whoever opens a published snapshot compares only sizes.
        found = _read_snapshot(aside / "snapshot")
        if damage := found.damage():
            raise OSError(f"{', '.join(damage[:3])} in it damaged")
        try:
            (aside / "snapshot").rename(target)
        except OSError:  # Another process may have published it first.
            if not target.exists():
                raise
        for path in published.iterdir():
            if path.name < target.name:
                _remove_tree(path, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
