"""A folder on this machine: writes are atomic and durable, files are read through memory maps."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import uuid
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
    "is_read_only",
    "nothing_needed",
    "temporary_file",
]

TEMPORARY = ".tmp"
"""The ending of the names of unfinished files. A crash may leave such files behind; nothing reads them."""

T = TypeVar("T")


@dataclass(frozen=True)
class FileFacts:
    """What a folder's listing says about a file.

    Attributes:
        name: The name within the folder.
        size: The size in bytes.
        modified: When the file was last changed, in seconds since 1970.
    """

    name: str
    size: int
    modified: float


@dataclass(frozen=True)
class MappedFile:
    """A whole file as one buffer.

    Attributes:
        buffer: The file's bytes. Those of a file in an object store are only valid after `need`.
        need: Call it with start and stop (bytes) before looking at these bytes. For a file in an object
            store, this is what fetches them.
        need_all: The same for several stretches, which are fetched at the same time.
        forget: Call it if the bytes are damaged: they are fetched again the next time they are needed.
            Returns False if nothing can be fetched again, because the file is local.
        evicted: Whether the file should be mapped again before more of it is read.
        expect: Call it with start and stop of bytes that are looked at soon: a disk begins to read them, and
            meanwhile more can be asked for.
    """

    buffer: pa.Buffer
    need: Callable[[int, int], None] = lambda start, stop: None
    need_all: Callable[[Sequence[tuple[int, int]]], None] = lambda stretches: None
    forget: Callable[[], bool] = lambda: False
    evicted: Callable[[], bool] = lambda: False
    expect: Callable[[int, int], None] = lambda start, stop: None


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine.

    Names are relative, with "/" between folders; the folder that a file is in must exist. Methods raise
    OSError.

    Attributes:
        path: The folder.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    @property
    def local(self) -> Path:
        """The folder as a path; None for a folder in an object store."""
        return self.path

    def only_writer(self) -> bool:
        """Whether `create` lets only one of two writers have a name."""
        return True

    def make(self) -> None:
        """Create the folder and its parents; a folder that exists stays as it is."""
        self.path.mkdir(parents=True, exist_ok=True)

    def files(self) -> list[FileFacts]:
        """The files in this folder but not in its subfolders, sorted by name; none if there is no folder."""
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
            except FileNotFoundError:  # Removed meanwhile, as other processes' temporary files are.
                continue
        return sorted(files, key=lambda facts: facts.name)

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        with open(_open_file(self.path / name), "rb") as f:
            return f.read()

    def read_ranges(
        self, ranges: Sequence[tuple[str, int, int]], *, anew: bool = False
    ) -> list[bytes]:
        """Read stretches of files.

        Args:
            ranges: Name, start and stop (bytes) of each stretch.
            anew: Makes no difference here; see `ObjectFolder.read_ranges`.

        Returns:
            The bytes of each stretch, fewer if the file ends before its stop.
        """
        pieces = []
        for name, start, stop in ranges:
            descriptor = _open_file(self.path / name)
            try:
                length = min(stop, os.fstat(descriptor).st_size) - start
                pieces.append(os.pread(descriptor, max(0, length), start))
            finally:
                os.close(descriptor)
        return pieces

    def map(self, name: str, size: int | None = None) -> MappedFile:
        """Map a file into memory, for reading.

        Args:
            name: The file's name.
            size: Makes no difference here; see `ObjectFolder.map`.
        """
        import pyarrow as pa  # Imported here, because corpora of plain text do not need it.

        # Not pyarrow's memory_map, which asks the system to read the whole file ahead.
        descriptor = _open_file(self.path / name)
        try:
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

        def expect(start: int, stop: int) -> None:
            if start < stop and hasattr(mapped, "madvise"):
                begin = start - start % mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, begin, stop - begin)

        return MappedFile(pa.py_buffer(mapped), nothing_needed, expect=expect)

    def create(self, name: str, data: bytes) -> None:
        """Put a new file in place, whole and durable.

        Args:
            name: The file's name, which must not exist yet.
            data: The file's bytes.

        Raises:
            FileExistsError: If there is a file of that name.
        """
        temporary = self._temporary(name)
        try:
            # 1. The bytes, synced, under a temporary name: whoever sees the real name, also after a power
            #    cut, must find the whole file behind it.
            _write_synced(temporary, data)
            # 2. The real name. A link and not a rename, because a link fails if the name exists: of two
            #    writers only one gets it.
            os.link(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)
        # 3. The folder, so that the name survives a power cut as well. Only then may the caller rely on it.
        self.sync()

    def replace(self, name: str, data: bytes) -> None:
        """Put a file in place, whole and durable, over any file of that name.

        Args:
            name: The file's name.
            data: The file's bytes.
        """
        temporary = self._temporary(name)
        try:
            # The order is that of `create`, for the same reasons; here a rename, which replaces.
            _write_synced(temporary, data)
            temporary.replace(self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.sync()

    def write(self, name: str, fill: Callable[[Path], T]) -> T:
        """Let a function write a file, and put the file in place, whole and durable.

        Args:
            name: The file's name. A file of that name is replaced.
            fill: Writes the file at the path that it is given, a temporary one.

        Returns:
            What `fill` returned.
        """
        temporary = self._temporary(name)
        try:
            # The order is that of `create`: bytes, sync, name, folder.
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
        """Remove a file; do nothing if it does not exist."""
        (self.path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make new and changed names in this folder survive a power cut."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _temporary(self, name: str) -> Path:
        return temporary_file(self.path, f"{name}-")


def temporary_file(folder: Path, begins: str = "") -> Path:
    """Make an empty file whose name nobody else has and ends in `TEMPORARY`.

    The umask decides who may read it. Not made by `tempfile`, whose files are for their owner alone, under
    whatever name they get.

    Args:
        folder: The folder of the file.
        begins: What its name begins with.
    """
    path = folder / f"{begins}{uuid.uuid4().hex}{TEMPORARY}"
    path.touch(exist_ok=False)
    return path


def is_disk_full(error: OSError) -> bool:
    """Whether the error says that the disk is full or a quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_read_only(error: OSError) -> bool:
    """Whether the error says that this user may not write, or nobody may: the file system is read-only."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_full_as(error: Callable[[], Exception]) -> Iterator[None]:
    """Replace the error of a full disk that is raised within this block; other errors pass unchanged.

    Args:
        error: Makes the error to raise, which says what a full disk means to the caller.
    """
    try:
        yield
    except OSError as cause:
        if not is_disk_full(cause):
            raise
        raise error() from cause


def _open_file(path: Path) -> int:
    """A descriptor for reading. OSError for anything but a plain file: a pipe would wait for a writer."""
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
    """Do nothing: all bytes of a local file can be read at any time."""
