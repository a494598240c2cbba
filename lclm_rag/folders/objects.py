"""A folder in an object store, through fsspec: files are read by the byte ranges that are needed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lclm_rag.folders.local import FileFacts, MappedFile

if TYPE_CHECKING:
    from lclm_rag.folders.range_cache import RangeCache

__all__ = ["ObjectFolder", "cache_folder"]

# Stores whose fsspec file system puts an object in place only if there is none of that name.
_CONDITIONAL = ("s3", "s3a", "gs", "gcs")

_CACHE_GB = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectFolder:
    """A folder named by a URL. An object appears whole or not at all, which is the store's promise.

    filesystem: of fsspec. root: as `filesystem` names the folder, "bucket/folder". Methods raise OSError.
    """

    url: str
    filesystem: Any
    root: str

    @classmethod
    def of_url(cls, url: str) -> ObjectFolder:
        """Raises ImportError where fsspec, or its part for this scheme, is not installed."""
        try:
            from fsspec.core import url_to_fs

            filesystem, root = url_to_fs(url)
        except ImportError as error:
            raise ImportError(
                f"{url} lies in an object store: pip install 'lclm-rag[object-stores]' ({error})"
            ) from error
        return cls(url.rstrip("/"), filesystem, root.rstrip("/"))

    local = None

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectFolder:
        return ObjectFolder(f"{self.url}/{name}", self.filesystem, f"{self.root}/{name}")

    @property
    def only_writer(self) -> bool:
        """Whether `create` decides between two writers who want the same name."""
        protocol = self.filesystem.protocol
        names = (protocol,) if isinstance(protocol, str) else protocol
        return any(name in _CONDITIONAL for name in names)

    def make(self) -> None:
        """Object stores have no empty folders."""

    def files(self) -> list[FileFacts]:
        """The files in this folder, by name; none where there is no folder. Not those below it."""
        try:
            found = self.filesystem.ls(self.root, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        facts = [
            FileFacts(str(entry["name"]).rpartition("/")[2], int(entry["size"]), _modified(entry))
            for entry in found
            if entry["type"] == "file" and str(entry["name"]).rstrip("/") != self.root
        ]
        return sorted(facts, key=lambda entry: entry.name)

    def read(self, name: str) -> bytes:
        return bytes(self.filesystem.cat_file(f"{self.root}/{name}"))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes start to stop of each named file; fetched side by side, and kept on disk."""
        cache = cache_folder() / "ranges"
        cache.mkdir(parents=True, exist_ok=True)
        paths = [cache / _range_name(f"{self.url}/{n}", start, stop) for n, start, stop in ranges]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        fetched = self.filesystem.cat_ranges(
            [f"{self.root}/{ranges[i][0]}" for i in missing],
            [ranges[i][1] for i in missing],
            [ranges[i][2] for i in missing],
            on_error="raise",
        )
        for i, piece in zip(missing, fetched, strict=True):
            _put_aside(paths[i], bytes(piece))
        return [path.read_bytes() for path in paths]

    def map(self, name: str) -> MappedFile:
        path = f"{self.root}/{name}"
        size = int(self.filesystem.info(path)["size"])
        return self._cache().map(
            f"{self.url}/{name}",
            size,
            lambda start, stop: bytes(self.filesystem.cat_file(path, start, stop)),
        )

    def create(self, name: str, data: bytes) -> None:
        """Put a whole new object in place. FileExistsError where there is one of that name; where the store
        has no conditional writes (`only_writer` is False), only if it was there a moment before."""
        self.filesystem.pipe_file(f"{self.root}/{name}", data, mode="create")

    def replace(self, name: str, data: bytes) -> None:
        self.filesystem.pipe_file(f"{self.root}/{name}", data)

    def write(self, name: str, fill: Callable[[Path], T]) -> T:
        """Let `fill` write a local file, and upload it."""
        with tempfile.TemporaryDirectory(prefix="lclm-rag-") as folder:
            path = Path(folder) / name
            result = fill(path)
            self.filesystem.put_file(str(path), f"{self.root}/{name}")
        return result

    def remove(self, name: str) -> None:
        """Remove an object; nothing where there is none."""
        with suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{self.root}/{name}")

    def sync(self) -> None:
        """An object that was put is there."""

    @staticmethod
    def _cache() -> RangeCache:
        from lclm_rag.folders.range_cache import RangeCache

        limit = float(os.environ.get("LCLM_RAG_CACHE_GB", _CACHE_GB)) * 1e9
        return RangeCache(cache_folder() / "files", int(limit))


def cache_folder() -> Path:
    """Where what was fetched from object stores is kept: LCLM_RAG_CACHE, or lclm-rag in the user's cache."""
    named = os.environ.get("LCLM_RAG_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lclm-rag"


def _modified(entry: dict[str, Any]) -> float:
    when = entry.get("LastModified") or entry.get("mtime") or entry.get("created") or 0.0
    return float(when.timestamp()) if hasattr(when, "timestamp") else 0.0


def _range_name(url: str, start: int, stop: int) -> str:
    import hashlib

    return hashlib.sha256(f"{url}\n{start}\n{stop}".encode()).hexdigest()[:32]


def _put_aside(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as f:
        f.write(data)
    Path(temporary).replace(path)
