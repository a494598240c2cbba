"""A folder in an object store, through fsspec: of each file only the byte ranges needed are read."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lclm_rag.cache import writable_cache
from lclm_rag.storage.faults import pause_after
from lclm_rag.storage.local import TEMPORARY, FileFacts, MappedFile, temporary_file
from lclm_rag.storage.object_store import ObjectStore, whole_range

if TYPE_CHECKING:
    from lclm_rag.storage.range_cache import RangeCache

__all__ = ["ObjectFolder"]

# Schemes whose fsspec file system can create an object only if none of that name exists.
_CONDITIONAL = ("s3", "s3a", "gs", "gcs")

_CACHE_GB = 10.0

_FETCHES_AT_ONCE = 16

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectFolder:
    """A folder in an object store, with the methods of `LocalFolder`.

    An object appears whole or not at all: object stores promise that. Calls that fail because the store is
    busy, or the connection breaks, are made again; then methods raise OSError, which names the object.

    Attributes:
        url: The folder's URL.
        root: The file system's name for the folder, such as "bucket/folder".
        store: The connection.
    """

    url: str
    root: str
    store: ObjectStore = field(compare=False)

    @classmethod
    def of_url(cls, url: str) -> ObjectFolder:
        """The folder that a URL names.

        Args:
            url: The folder's URL.

        Raises:
            ImportError: If fsspec, or its part for this scheme, is not installed.
            ValueError: If the scheme is unknown.
        """
        store = ObjectStore(url)
        return cls(url.rstrip("/"), store.root.rstrip("/"), store)

    local = None

    @property
    def filesystem(self) -> Any:
        """The fsspec file system."""
        return self.store.filesystem

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectFolder:
        return ObjectFolder(f"{self.url}/{name}", f"{self.root}/{name}", self.store)

    def only_writer(self) -> bool:
        """Whether `create` lets only one of two writers have a name.

        This is tried out, because stores that speak the protocol of S3 may not do all that S3 does.

        Raises:
            OSError: If nothing can be written.
        """
        name = f"only-writer-{os.getpid()}-{time.time_ns()}{TEMPORARY}"
        self.replace(name, b"1")
        try:
            self._create(name, b"1")
            return False
        except OSError as error:
            if pause_after(error) is not None:
                raise
            return self._is_conditional() and not _is_not_implemented(error)
        finally:
            self.remove(name)

    def _is_conditional(self) -> bool:
        protocol = self.filesystem.protocol
        names = (protocol,) if isinstance(protocol, str) else protocol
        return any(name in _CONDITIONAL for name in names)

    def make(self) -> None:
        """Do nothing: object stores have no empty folders."""

    def files(self) -> list[FileFacts]:
        """The files in this folder but not in its subfolders, sorted by name; none if there is no folder."""
        try:
            entries = self._call("", lambda files: files.ls(self.root, detail=True))
        except FileNotFoundError:
            return []
        facts = [
            FileFacts(str(entry["name"]).rpartition("/")[2], int(entry["size"]), _modified(entry))
            for entry in entries
            if entry["type"] == "file" and str(entry["name"]).rstrip("/") != self.root
        ]
        return sorted(facts, key=lambda entry: entry.name)

    def read(self, name: str) -> bytes:
        """All bytes of an object."""
        return bytes(self._call(name, lambda files: files.cat_file(f"{self.root}/{name}")))

    def read_ranges(
        self, ranges: Sequence[tuple[str, int, int]], *, anew: bool = False
    ) -> list[bytes]:
        """Read stretches of objects: fetched in parallel, and kept in the cache on disk.

        Args:
            ranges: Name, start and stop (bytes) of each stretch.
            anew: Whether to fetch also what the cache holds.

        Returns:
            The bytes of each stretch, fewer if the object ends before its stop.
        """
        kept = self._cache()
        pieces = [
            None if anew else kept.range(f"{self.url}/{name}", start, stop)
            for name, start, stop in ranges
        ]
        missing = [i for i, piece in enumerate(pieces) if piece is None]
        for i, piece in self._fetched({i: ranges[i] for i in missing}).items():
            name, start, stop = ranges[i]
            pieces[i] = piece
            if len(piece) == stop - start:
                kept.keep_range(f"{self.url}/{name}", start, stop, piece)
        return [piece for piece in pieces if piece is not None]

    def _fetched(self, ranges: dict[int, tuple[str, int, int]]) -> dict[int, bytes]:
        """Fetch stretches in parallel; those that came are not fetched again when another one fails."""
        there: dict[int, bytes] = {}

        def fetch(files: Any) -> None:
            wanted = [i for i in ranges if i not in there]
            names, starts, stops = zip(*(ranges[i] for i in wanted), strict=True)
            paths = [f"{self.root}/{name}" for name in names]
            found = files.cat_ranges(paths, list(starts), list(stops), on_error="return")
            errors = [piece for piece in found if isinstance(piece, Exception)]
            for i, piece in zip(wanted, found, strict=True):
                if not isinstance(piece, Exception):
                    there[i] = bytes(piece)
            if errors:
                # One that stays before one that passes: waiting would be for nothing.
                raise next((e for e in errors if pause_after(e) is None), errors[0])

        if ranges:
            self._call("", fetch)
        return there

    def map(self, name: str, size: int | None = None) -> MappedFile:
        """An object as a buffer; its bytes are fetched as they are needed, and kept in the cache on disk.

        Args:
            name: The object's name.
            size: Its size in bytes, if that is known; otherwise the store is asked.
        """
        path = f"{self.root}/{name}"
        if size is None:
            size = int(self._call(name, lambda files: files.info(path)["size"]))

        def fetch_one(stretch: tuple[int, int]) -> bytes:
            return self._call(name, lambda files: whole_range(files, path, *stretch))

        def fetch(stretches: Sequence[tuple[int, int]]) -> Iterable[bytes]:
            if len(stretches) < 2:
                return map(fetch_one, stretches)
            with ThreadPoolExecutor(_FETCHES_AT_ONCE) as pool:
                return list(pool.map(fetch_one, stretches))

        return self._cache().map(f"{self.url}/{name}", size, fetch)

    def create(self, name: str, data: bytes) -> None:
        """Put a new object in place.

        If the store has no conditional writes (`only_writer` is False), two writers who create the same
        object at the same moment both succeed, and the later one's object stays.

        Args:
            name: The object's name, which must not exist yet.
            data: The object's bytes.

        Raises:
            FileExistsError: If there is an object of that name with other bytes.
        """
        # 1. Ask the store for the object only if there is none: it alone can decide between two writers.
        try:
            self._create(name, data)
        except OSError as error:
            # 2. On any error look at what is there, because stores report an existing object in many ways.
            try:
                there = self.read(name)
            except FileNotFoundError:
                # 3. Nothing: either the write failed, or the store has no conditional writes and refused.
                #    Only then write without a condition; looking first makes an overwrite unlikely.
                if not _is_not_implemented(error):
                    raise error from None
                self.replace(name, data)
                return
            # The same bytes are our own: the first answer was lost, and the request was sent again.
            if there != data:
                raise FileExistsError(f"{self.url}/{name} is there already.") from error

    def _create(self, name: str, data: bytes) -> None:
        path = f"{self.root}/{name}"
        self._call(name, lambda files: files.pipe_file(path, data, mode="create"))

    def replace(self, name: str, data: bytes) -> None:
        """Put an object in place, over any object of that name."""
        self._call(name, lambda files: files.pipe_file(f"{self.root}/{name}", data))

    def write(self, name: str, fill: Callable[[Path], T]) -> T:
        """Let a function write a local file, upload it, and keep it in the cache.

        Args:
            name: The object's name.
            fill: Writes the file at the path that it is given, a temporary one.

        Returns:
            What `fill` returned.
        """
        kept = self._cache()
        path = temporary_file(kept.folder)
        try:
            result = fill(path)
            # Uploaded first: the cache must never hold a file that the store does not have.
            self.upload(name, path)
            kept.keep(f"{self.url}/{name}", path)
        finally:
            path.unlink(missing_ok=True)
        return result

    def upload(self, name: str, path: Path) -> None:
        """Upload a local file as one object, which appears whole."""
        self._call(name, lambda files: files.put_file(str(path), f"{self.root}/{name}"))

    def fetch(self, name: str, path: Path) -> None:
        """Copy a whole object to a local file."""
        self._call(name, lambda files: files.get_file(f"{self.root}/{name}", str(path)))

    def remove(self, name: str) -> None:
        """Remove an object; do nothing if it does not exist."""
        with suppress(FileNotFoundError):
            self._call(name, lambda files: files.rm_file(f"{self.root}/{name}"))

    def sync(self) -> None:
        """Do nothing: an object is durable once it has been put."""

    @staticmethod
    def _cache() -> RangeCache:
        return _range_cache(writable_cache("files"), _cache_bytes())

    def _call(self, name: str, make: Callable[[Any], T]) -> T:
        return self.store.call(f"{self.url}/{name}".rstrip("/"), make)


@cache
def _range_cache(folder: Path, limit: int) -> RangeCache:
    from lclm_rag.storage.range_cache import RangeCache

    return RangeCache(folder, limit)


def _cache_bytes() -> int:
    named = os.environ.get("LCLM_RAG_CACHE_GB") or _CACHE_GB
    try:
        return int(float(named) * 1e9)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"LCLM_RAG_CACHE_GB must be a number, not {named!r}.") from error


def _is_not_implemented(error: OSError) -> bool:
    """Whether the error says that the store has no conditional writes."""
    cause = error.__cause__
    return isinstance(cause, NotImplementedError) or getattr(cause, "errno", None) == errno.ENOSYS


def _modified(entry: dict[str, Any]) -> float:
    """When an object was last changed, in seconds since 1970; the current time if the store does not say."""
    when = entry.get("LastModified") or entry.get("mtime") or entry.get("created")
    if isinstance(when, datetime):
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return float(when) if isinstance(when, int | float) else time.time()
