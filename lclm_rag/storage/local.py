"""A folder of this machine: durable, atomic writes; files are read by memory map."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "TEMPORARY",
    "FileFacts",
    "LocalFolder",
    "MappedFile",
    "disk_full_as",
    "is_disk_full",
    "nothing_needed",
]

TEMPORARY = ".tmp"
"""How names end that are only written to; a crash leaves them behind, and nothing reads them."""

T = TypeVar("T")


@dataclass(frozen=True)
class FileFacts:
    """name: within the folder. size: bytes. modified: seconds since 1970."""

    name: str
    size: int
    modified: float


@dataclass(frozen=True)
class MappedFile:
    """A whole file as one buffer.

    need: to be called with start and stop (bytes) before they are looked at: where the file lies in an
    object store, that is when they are fetched. forget: to be called where they are damaged: they are fetched
    again when they are needed again; False where they were not fetched. evicted: whether it is better mapped
    again before more of it is read.
    """

    buffer: pa.Buffer
    need: Callable[[int, int], None] = lambda start, stop: None
    forget: Callable[[], bool] = lambda: False
    evicted: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class LocalFolder:
    """Names are relative, with "/" between folders; a file's folder must be there. Methods raise OSError."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    @property
    def local(self) -> Path:
        return self.path

    def only_writer(self) -> bool:
        """Whether `create` decides between two writers who want the same name."""
        return True

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def files(self) -> list[FileFacts]:
        """The files in this folder, by name; none where there is no folder. Not those below it."""
        try:
            entries = list(os.scandir(self.path))
        except FileNotFoundError:
            return []
        files = []
        for entry in entries:
            try:
                if entry.is_file():
                    facts = entry.stat()
                    files.append(FileFacts(entry.name, facts.st_size, facts.st_mtime))
            except FileNotFoundError:  # Gone meanwhile, as other processes' temporary files do.
                continue
        return sorted(files, key=lambda facts: facts.name)

    def read(self, name: str) -> bytes:
        with open(_open_file(self.path / name), "rb") as f:
            return f.read()

    def read_ranges(
        self, ranges: Sequence[tuple[str, int, int]], *, anew: bool = False
    ) -> list[bytes]:
        """Bytes start to stop of each named file; fewer where it ends before."""
        pieces = []
        for name, start, stop in ranges:
            descriptor = _open_file(self.path / name)
            try:
                length = min(stop, os.fstat(descriptor).st_size) - start
                pieces.append(os.pread(descriptor, max(0, length), start))
            finally:
                os.close(descriptor)
        return pieces

    def map(self, name: str) -> MappedFile:
        import pyarrow as pa  # Here, because corpora of text alone do without it.

        # Not pyarrow's memory_map: it asks for the whole file to be read ahead, whatever is looked at.
        with open(_open_file(self.path / name), "rb") as f:
            mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        return MappedFile(pa.py_buffer(mapped), nothing_needed)

    def create(self, name: str, data: bytes) -> None:
        """Put a whole new file in place, durably. FileExistsError where there is one of that name."""
        temporary = self._temporary(name)
        try:
            _write_synced(temporary, data)
            os.link(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)
        self.sync()

    def replace(self, name: str, data: bytes) -> None:
        """Put a whole file in place of the one there may be, durably."""
        temporary = self._temporary(name)
        try:
            _write_synced(temporary, data)
            temporary.replace(self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.sync()

    def write(self, name: str, fill: Callable[[Path], T]) -> T:
        """Let `fill` write a file that is put in place whole, durably, once it returns."""
        temporary = self._temporary(name)
        try:
            result = fill(temporary)
            with temporary.open("rb+") as f:
                os.fsync(f.fileno())
            temporary.rename(self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.sync()
        return result

    def remove(self, name: str) -> None:
        """Remove a file; nothing where there is none."""
        (self.path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make new and changed names in this folder survive a power cut."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _temporary(self, name: str) -> Path:
        descriptor, path = tempfile.mkstemp(TEMPORARY, f"{name}-", self.path)
        os.close(descriptor)
        return Path(path)


def is_disk_full(error: OSError) -> bool:
    """Or a quota reached."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_full_as(error: Callable[[], Exception]) -> Iterator[None]:
    """Raise `error()`, which says what that means here, where the disk is full; other errors pass."""
    try:
        yield
    except OSError as cause:
        if not is_disk_full(cause):
            raise
        raise error() from cause


def _open_file(path: Path) -> int:
    """A descriptor for reading. OSError for anything but a plain file: a pipe would be waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return descriptor


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def nothing_needed(start: int, stop: int) -> None:
    """A local file is there as a whole."""
