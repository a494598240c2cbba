"""Snapshots of the embedded passage index, which any number of processes read at once.

The engine knows one process per folder, so every process has a private one. It begins as a view of a
published snapshot (hard links: the engine writes no byte of a file that it only searches) or, where passages
have to be added or removed, as a copy. A snapshot is published whole, by renaming a folder, and never
changed.

```
index/published/<version>-<id>/index.json, edge/…     index/<version>-<id>.tar.zst in an object store
index/private/<pid>-<id>/edge/…                       gone with its process: <pid>-<id>.lock is free then
```
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

from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.forking import this_process
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.retrieval.edge import settle, stored_keys
from lclm_rag.storage import Folder, LocalFolder, ObjectFolder
from lclm_rag.storage.names import is_path_below
from lclm_rag.storage.objects import cache_folder
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

# What `_read_snapshot` raises of one that is not whole.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """version, manifest: number and digest of the store's version that it shows. path: the folder that holds
    `edge` and `index.json`. files: size and SHA-256 of each, by its path below `edge`."""

    path: Path
    version: int
    manifest: str
    bm25: Bm25Settings
    embedder: str | None
    files: dict[str, tuple[int, str]]

    def damage(self) -> list[str]:
        """The files that are not as they were published."""
        there = dict(_files(self.path / "edge"))
        wrong = [n for n in self.files if n not in there or _facts(there[n]) != self.files[n]]
        return sorted([*wrong, *(there.keys() - self.files.keys())])

    def misfits(self) -> list[str]:
        """The files that are not there, or not of the size with which they were published: what the engine
        makes of these may be an index that knows fewer passages. Costs little, where `damage` reads all."""
        return [name for name, (size, _) in self.files.items() if self._size(name) != size]

    def _size(self, name: str) -> int | None:
        """None where it is no plain file."""
        try:
            facts = (self.path / "edge" / name).lstat()
        except OSError:
            return None
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None


class SnapshotFolder:
    """Where snapshots are published, and private folders made: in the knowledge base's own `index` folder,
    or, where that is in an object store or nothing may be written, in the user's cache."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        cached = cache_folder() / "index" / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
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
        """All snapshots, the nearest to a version first: the newest up to it, then older ones, then later
        ones."""
        self._fetch(version)
        found = sorted(self.snapshots(), key=lambda snapshot: snapshot.path.name)
        before = [snapshot for snapshot in found if snapshot.version <= version]
        return [*reversed(before), *(s for s in found if s.version > version)]

    def snapshots(self) -> Iterator[Snapshot]:
        """All that are published here and can be read."""
        for path in self._paths():
            try:
                yield _read_snapshot(path)
            except _UNREADABLE:
                continue  # Derived: what cannot be read is built anew, and verify tells of it.

    def unreadable(self) -> list[Path]:
        """What is published here and is no snapshot."""
        # The paths first, and those only that are still there: others may publish and remove meanwhile.
        paths = self._paths()
        sound = {snapshot.path for snapshot in self.snapshots()}
        return [path for path in paths if path not in sound and path.exists()]

    def remove_superseded(self) -> int:
        """Remove what killed processes left, and every snapshot but the newest; returns the bytes on disk."""
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
        """Copy the flushed index in a private folder to where others find it; earlier ones are removed."""
        copy = own.path / "publish"
        shutil.rmtree(copy, ignore_errors=True)
        _copy_tree(own.path / "edge", copy / "edge")
        settle(copy / "edge")
        files = {name: _facts(path) for name, path in _files(copy / "edge")}
        content = {
            "version": version,
            "manifest": manifest,
            "bm25": asdict(bm25),
            "embedder": embedder,
            "files": files,
        }
        (copy / "index.json").write_bytes(seal(content))
        _sync(copy)
        # A version is published again once its index is optimized: the later one sorts behind.
        name = f"{version:010d}-{time.time_ns():016x}"
        copy.rename(self.published / name)
        LocalFolder(self.published).sync()
        if isinstance(self.folder, ObjectFolder):
            _upload(self.folder, self.published / name, own.path)
        for path in self._paths():
            if path.name < name:
                _remove_tree(path, own.path)

    def remove_all(self) -> None:
        for path in self._paths():
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(self.folder, ObjectFolder):
            for facts in self.folder.files():
                self.folder.remove(facts.name)

    def _fetch(self, version: int) -> None:
        """Bring the nearest snapshot from the object store."""
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
                continue  # A newer one took its place meanwhile.
            except (tarfile.TarError, *_UNREADABLE) as error:
                _log.warning(
                    "The passage index %s cannot be used (%s); it is built anew.",
                    self.folder / name,
                    error,
                )


class PrivateFolder:
    """A folder of this process alone, until it is closed or the process ends."""

    def __init__(self, private: Path) -> None:
        self._process = this_process()
        remove_leftovers(private)
        self.path = private / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        with _gate(private):
            self._lock.acquire(timeout=0)
        self.path.mkdir()

    def link(self, snapshot: Snapshot) -> None:
        """Show a snapshot, for searching only."""
        _clear(self.path / "edge")
        # By the names that it was published with: what is listed while it is removed may be a part of it.
        for name in snapshot.files:
            path, target = snapshot.path / "edge" / name, self.path / "edge" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                if name == "edge_config.json":  # The engine writes it anew when it opens a folder.
                    raise OSError
                os.link(path, target)
            except FileNotFoundError:
                raise
            except OSError:  # Another file system, or one without links.
                _copy_file(path, target)

    def copy_links(self) -> None:
        """Copy what is linked, so that `take_copy` can make it this folder's own."""
        try:
            _copy_tree(self.path / "edge", self.path / "copied")
        except BaseException:
            shutil.rmtree(self.path / "copied", ignore_errors=True)
            raise

    def take_copy(self) -> None:
        (self.path / "edge").rename(self.path / "linked")
        (self.path / "copied").rename(self.path / "edge")
        shutil.rmtree(self.path / "linked")

    def close(self) -> None:
        if self._process != this_process():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        Path(f"{self.path}.lock").unlink(missing_ok=True)
        self._lock.release()


def _read_snapshot(path: Path) -> Snapshot:
    """Raises OSError, ValueError, KeyError, TypeError or AttributeError where it is not whole."""
    raw: dict[str, Any] = unseal(LocalFolder(path).read("index.json"))
    files = {name: (int(size), digest) for name, (size, digest) in raw["files"].items()}
    # They are linked into a folder where the engine writes: a path that leads out of it is somebody's file.
    if leading_out := [name for name in files if not is_path_below(name)]:
        raise ValueError(f"{leading_out[0]!r} is not the name of a file of an index")
    bm25 = Bm25Settings(**raw["bm25"])
    return Snapshot(path, int(raw["version"]), raw["manifest"], bm25, raw["embedder"], files)


def published_versions(folder: Folder) -> list[int]:
    """The versions of which there are snapshots, whole or not. folder: of the index; it need not be there."""
    names = [facts.name for facts in folder.files()]
    if folder.local is not None and (folder.local / "published").is_dir():
        names = [path.name for path in (folder.local / "published").iterdir()]
    return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]


def snapshot_keys(snapshots: SnapshotFolder, snapshot: Snapshot) -> set[PassageKey]:
    """The keys of all passages that a snapshot holds."""
    own = PrivateFolder(snapshots.private)
    try:
        own.link(snapshot)
        return stored_keys(own.path / "edge")
    finally:
        own.close()


def remove_leftovers(private: Path) -> int:
    """Remove the private folders of processes that have ended; returns the bytes that they took."""
    freed = 0
    with _gate(private):
        for path in private.glob("*.lock"):
            lock = FileLock(path, thread_local=False)
            try:
                lock.acquire(timeout=0)
            except OSError:  # In use (Timeout is one), or another user's.
                continue
            folder = path.with_suffix("")
            freed += _disk_bytes(folder)
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)
            lock.release()
    return freed


def _gate(private: Path) -> FileLock:
    """Held while a lock file is made, or found to be nobody's: between its making and its locking it would
    seem to be."""
    return FileLock(private / "gate", thread_local=False)


def _disk_bytes(folder: Path) -> int:
    """0 where it goes away meanwhile."""
    try:
        return sum(path.stat().st_blocks * 512 for _, path in _files(folder))
    except FileNotFoundError:
        return 0


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Relative name and path of every file below a folder."""
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
        if path.is_dir():  # Some are empty, and missed by the engine where they are not there.
            (target / path.relative_to(source)).mkdir(parents=True, exist_ok=True)
    for name, path in _files(source):
        _copy_file(path, target / name)


def _copy_file(source: Path, target: Path) -> None:
    """Copy what is written; holes, of which the engine's files mostly consist, stay holes."""
    with source.open("rb", buffering=0) as a, target.open("wb", buffering=0) as b:
        size = os.fstat(a.fileno()).st_size
        b.truncate(size)
        offset = 0
        while offset < size:
            try:
                begin = os.lseek(a.fileno(), offset, os.SEEK_DATA)
            except OSError:  # Nothing but a hole follows.
                return
            end = os.lseek(a.fileno(), begin, os.SEEK_HOLE)
            for start in range(begin, end, _PIECE):
                piece = os.pread(a.fileno(), min(_PIECE, end - start), start)
                # On a disk that is nearly full a part is written, and no error raised.
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
    """In one step for whoever looks: a half-removed snapshot is never seen."""
    target = aside / f"removed-{uuid.uuid4().hex[:8]}"
    try:
        path.rename(target)
    except OSError:  # Another process was faster.
        return
    shutil.rmtree(target, ignore_errors=True)


def _upload(folder: ObjectFolder, snapshot: Path, aside: Path) -> None:
    """As one object, which appears whole; earlier ones are removed. aside: a folder for the packed file."""
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
    for facts in folder.files():
        if facts.name.endswith(_PACKED) and facts.name < name:
            folder.remove(facts.name)


def _unpack(tar: tarfile.TarFile, target: Path) -> None:
    """Write what is packed; zeros become holes, which they mostly were."""
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
    """Earlier ones are removed."""
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
        found = _read_snapshot(aside / "snapshot")
        if damage := found.damage():
            raise OSError(f"{', '.join(damage[:3])} in it damaged")
        try:
            (aside / "snapshot").rename(target)
        except OSError:  # Another process was faster.
            if not target.exists():
                raise
        for path in published.iterdir():
            if path.name < target.name:
                _remove_tree(path, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
