"""Files and folders to read: of this machine (`pathlib.Path`), or in an object store (`ObjectPath`)."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lclm_rag.storage.object_store import ObjectStore
from lclm_rag.storage.urls import path_or_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["COMPRESSIONS", "Location", "ObjectPath", "locate", "open_unpacked"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

# Fetched at once from an object store, where a request costs about as much as a quarter of a MiB.
_FETCH_BYTES = 4 << 20
_UNPACKED_BYTES = 1 << 20


@dataclass(frozen=True)
class ObjectPath:
    """A file or folder in an object store, with what readers need of `pathlib.Path`.

    path: as fsspec's file system names it, "bucket/folder/name". is_folder: as a listing has it; None where
    the store must be asked. Methods raise OSError.
    """

    url: str
    path: str
    store: ObjectStore = field(compare=False, repr=False)
    is_folder: bool | None = field(default=None, compare=False)

    @classmethod
    def of_url(cls, url: str) -> ObjectPath:
        """Raises ImportError and ValueError as `ObjectStore` does."""
        store = ObjectStore(url)
        return cls(url.rstrip("/"), store.root.rstrip("/"), store)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectPath:
        return self._below(name, None)

    def _below(self, name: str, is_folder: bool | None) -> ObjectPath:
        return ObjectPath(f"{self.url}/{name}", f"{self.path}/{name}", self.store, is_folder)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.path.split("/"))

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.url.rpartition("/")[0], self.path.rpartition("/")[0], self.store)

    def exists(self) -> bool:
        return self._kind() is not None

    def is_dir(self) -> bool:
        return self._kind() == "directory" if self.is_folder is None else self.is_folder

    def is_file(self) -> bool:
        return self._kind() == "file" if self.is_folder is None else not self.is_folder

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies in the folder; a folder without a name among them ("a//b"), which cannot be listed."""
        with self._errors():
            if not self.name:
                raise OSError("a folder without a name cannot be listed")
            entries = self.store.filesystem.ls(self.path, detail=True)
        for entry in entries:
            path = str(entry["name"]).rstrip("/")
            name = "" if path == self.path else path.rpartition("/")[2]
            is_folder = entry["type"] == "directory"
            if name or is_folder:  # An object that ends in "/" only shows that there is a folder.
                yield self._below(name, is_folder)

    def read_bytes(self) -> bytes:
        with self._errors():
            return bytes(self.store.filesystem.cat_file(self.path))

    def read_range(self, start: int, stop: int) -> bytes:
        with self._errors():
            piece = bytes(self.store.filesystem.cat_file(self.path, start=start, end=stop))
            if len(piece) != stop - start:
                raise OSError(f"{len(piece):,} of {stop - start:,} bytes came at {start:,}")
        return piece

    def open(self, mode: str = "rb", buffering: int = _FETCH_BYTES) -> BinaryIO:
        """For reading, at any place. buffering: how many bytes are fetched at once, at least."""
        size = int(self._info()["size"])
        return cast(BinaryIO, io.BufferedReader(_ObjectFile(self, size), buffering))

    def _kind(self) -> str | None:
        """ "file" or "directory"; None where there is nothing."""
        try:
            return str(self._info()["type"])
        except FileNotFoundError:
            return None

    def _info(self) -> dict[str, Any]:
        with self._errors():
            return dict(self.store.filesystem.info(self.path))

    def _errors(self) -> AbstractContextManager[None]:
        return self.store.errors(self.url)


class _ObjectFile(io.RawIOBase):
    """An object's bytes, of which each read fetches a range."""

    def __init__(self, path: ObjectPath, size: int) -> None:
        self._path = path
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        piece = self._read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        return self._read(self._size)

    def _read(self, count: int) -> bytes:
        stop = min(self._position + count, self._size)
        if stop <= self._position:
            return b""
        piece = self._path.read_range(self._position, stop)
        self._position = stop
        return piece


Location = Path | ObjectPath


def locate(location: str | Path) -> Location:
    """The file or folder that a path or a URL names, by the rules of `open_folder`. Raises as that does, and
    ValueError for an address of the web, which has no folders."""
    place = path_or_url(location)
    if isinstance(place, Path):
        return place
    if place.lower().startswith(("http://", "https://")):
        raise ValueError(f"{place}: nothing is read from the web; download it and name the file.")
    return ObjectPath.of_url(place)


def open_unpacked(location: Location) -> BinaryIO:
    """The file's bytes from front to back, unpacked where its name ends in .gz or .zst.

    OSError, where it is opened or read, also for a packed file that is damaged or not whole.
    """
    packed = location.open("rb")
    compression = COMPRESSIONS.get(location.suffix.lower())
    if compression is None:
        return packed
    import pyarrow as pa

    # Takes files of several members (as of `cat a.gz b.gz`), and notices one that was cut off.
    stream = pa.CompressedInputStream(packed, compression)
    return cast(BinaryIO, io.BufferedReader(stream, _UNPACKED_BYTES))
