"""Files and folders for reading, on this machine (`pathlib.Path`) or in an object store (`ObjectPath`)."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from lclm_rag.storage.object_store import ObjectStore, whole_range
from lclm_rag.storage.urls import path_or_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["COMPRESSIONS", "Location", "ObjectPath", "locate", "open_unpacked"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

# Fetched at once from an object store, where a request costs about as much as fetching a quarter of a MiB.
_FETCH_BYTES = 4 << 20
_UNPACKED_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectPath:
    """A file or folder in an object store, with the part of `pathlib.Path` that readers need.

    Methods raise OSError.

    Attributes:
        url: The URL of the file or folder.
        path: The file system's name for it, such as "bucket/folder/name".
        store: The connection.
        is_folder: What a listing says it is; None if the store must be asked.
    """

    url: str
    path: str
    store: ObjectStore = field(compare=False, repr=False)
    is_folder: bool | None = field(default=None, compare=False)

    @classmethod
    def of_url(cls, url: str) -> ObjectPath:
        """The file or folder that a URL names.

        Args:
            url: The URL of the file or folder.

        Raises:
            ImportError: If fsspec, or its part for this scheme, is not installed.
            ValueError: If the scheme is unknown.
        """
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
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot; "" if it has none."""
        return Path(self.name).suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the path, the bucket first."""
        return tuple(self.path.split("/"))

    @property
    def parent(self) -> ObjectPath:
        """The folder that it is in."""
        return ObjectPath(self.url.rpartition("/")[0], self.path.rpartition("/")[0], self.store)

    def exists(self) -> bool:
        """Whether the store has a file or folder of this name."""
        return self._kind() is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self._kind() == "directory" if self.is_folder is None else self.is_folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self._kind() == "file" if self.is_folder is None else not self.is_folder

    def is_symlink(self) -> bool:
        """False: object stores have no links."""
        return False

    def iterdir(self) -> Iterator[ObjectPath]:
        """The files and folders in this folder.

        Yields:
            Each of them; also a folder without a name, as in "a//b", which itself cannot be listed.
        """
        entries = self._call(self._list)
        for entry in entries:
            path = str(entry["name"]).rstrip("/")
            name = "" if path == self.path else path.rpartition("/")[2]
            is_folder = entry["type"] == "directory"
            if name or is_folder:  # An object whose name ends in "/" only marks this folder.
                yield self._below(name, is_folder)

    def read_bytes(self) -> bytes:
        """All bytes of the file."""
        return bytes(self._call(lambda files: files.cat_file(self.path)))

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop; OSError if the file ends before."""
        return self._call(lambda files: whole_range(files, self.path, start, stop))

    def open(self, mode: str = "rb", buffering: int = _FETCH_BYTES) -> BinaryIO:
        """Open the file for reading; the stream can seek.

        Args:
            mode: Not used; the file is always opened for reading bytes.
            buffering: The number of bytes that are fetched at once, at least.
        """
        size = int(self._info()["size"])
        return cast(BinaryIO, io.BufferedReader(_ObjectFile(self, size), buffering))

    def _kind(self) -> str | None:
        """What the store has here, "file" or "directory"; None if it has nothing."""
        try:
            return str(self._info()["type"])
        except FileNotFoundError:
            return None

    def _info(self) -> dict[str, Any]:
        return dict(self._call(lambda files: files.info(self.path)))

    def _list(self, filesystem: Any) -> list[dict[str, Any]]:
        if not self.name:
            raise OSError("a folder without a name cannot be listed")
        return list(filesystem.ls(self.path, detail=True))

    def _call(self, make: Callable[[Any], T]) -> T:
        return self.store.call(self.url, make)


class _ObjectFile(io.RawIOBase):
    """An object's bytes; each read fetches a range of them."""

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
    """The file or folder that a path or a URL names.

    Args:
        location: A path, or a URL with a scheme that `open_folder` takes.

    Returns:
        A `Path` for a place on this machine, otherwise an `ObjectPath`. It need not exist.

    Raises:
        ImportError: If the object store's library is not installed.
        ValueError: If the scheme is unknown, the URL holds secrets or options, or it is a web address
            (http:// or https://), which has no folders.
    """
    place = path_or_url(location)
    if isinstance(place, Path):
        return place
    if place.lower().startswith(("http://", "https://")):
        raise ValueError(f"{place}: nothing is read from the web; download it and name the file.")
    return ObjectPath.of_url(place)


def open_unpacked(location: Location) -> BinaryIO:
    """Open a file for reading from start to end, and unpack it if its name ends in .gz or .zst.

    Args:
        location: The file.

    Returns:
        The stream of unpacked bytes. Reading from it raises OSError, too, if the packed file is damaged or
        cut off.

    Raises:
        OSError: If the file cannot be opened.
    """
    packed = location.open("rb")
    compression = COMPRESSIONS.get(location.suffix.lower())
    if compression is None:
        return packed
    import pyarrow as pa

    # Reads files of several members (as `cat a.gz b.gz` makes), and notices one that is cut off.
    stream = pa.CompressedInputStream(packed, compression)
    return cast(BinaryIO, io.BufferedReader(stream, _UNPACKED_BYTES))
