"""Pieces of files in an object store, kept on disk: fetched once, in blocks, up to a size limit.

`<key>.data` is as large as its file, but sparse, with the blocks that were fetched where they belong; behind
them, on a page of their own, the blocks' checksums (uint64; 0 where a block was not fetched). So a block that
was damaged here, or half written when the power failed, is fetched again. `<key>.range` is one stretch of a
file and its checksum. Files in the store never change, so processes may share the folder: whoever fetches a
block writes the same bytes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import xxhash

from lclm_rag.storage.local import TEMPORARY, MappedFile

__all__ = ["BLOCK_BYTES", "RangeCache"]

BLOCK_BYTES = 256 * 1024
"""What is fetched at once, at least: in an object store a request costs about as much as this many bytes."""

_PAGE = 1 << 16
_SPARE_BYTES = 1 << 26
_DAY = 24 * 3600

Fetch = Callable[[int, int], bytes]
"""start, stop → the bytes between them."""


class RangeCache:
    """A folder of at most `limit` bytes on disk, or a hundredth more; those files go first that were opened
    or added to longest ago."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        self._new = 0
        folder.mkdir(parents=True, exist_ok=True)

    def map(self, url: str, size: int, fetch: Fetch) -> MappedFile:
        """A file as a buffer whose bytes are there once they were asked for with `need`."""
        path = self._path(url, size)
        inode = _open_sized(path, size)
        file = pa.memory_map(str(path), "r+").read_buffer()
        # Arrow shows a map that may be written to as one that may not.
        memory = np.frombuffer((ctypes.c_ubyte * file.size).from_address(file.address), np.uint8)
        marks = memory[_marks_at(size) :].view(np.uint64)
        sound = np.zeros(len(marks), bool)

        fetching = Lock()

        def need(start: int, stop: int) -> None:
            first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
            if not sound[first:last].all():
                with fetching:
                    bring(first, last)

        def bring(first: int, last: int) -> None:
            unknown = first + np.flatnonzero(~sound[first:last])
            missing = [
                i for i in map(int, unknown) if marks[i] != _checksum(_block(memory, i, size))
            ]
            for begin, end in _runs(missing):
                offset = begin * BLOCK_BYTES
                piece = _fetched(url, fetch, offset, min(size, end * BLOCK_BYTES))
                self._put(path, inode, memory, offset, piece)
                for i in range(begin, end):
                    marks[i] = _checksum(_block(memory, i, size))
                self._evict(len(piece), keep=path)
            sound[unknown] = True

        def forget() -> bool:
            with fetching:
                marks[:] = 0
                sound[:] = False
            return True

        return MappedFile(file.slice(0, size), need, forget, lambda: _inode(path) != inode)

    def keep(self, url: str, written: Path) -> None:
        """Move a whole file in, which has just been put into the store; it lies in the cache's folder."""
        size = written.stat().st_size
        with written.open("r+b") as f:
            marks = [_checksum(block) for block in iter(lambda: f.read(BLOCK_BYTES), b"")]
            f.seek(_marks_at(size))
            f.write(np.array(marks, np.uint64).tobytes())
        path = self._path(url, size)
        written.replace(path)
        self._evict(size, keep=path)

    def range(self, url: str, start: int, stop: int) -> bytes | None:
        """A stretch of a file; None where it is not here."""
        path = self.folder / f"{_key(url, start, stop)}.range"
        try:
            found = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        piece, mark = found[:-8], found[-8:]
        return piece if _checksum(piece).to_bytes(8, "little") == mark else None

    def keep_range(self, url: str, start: int, stop: int, piece: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(TEMPORARY, dir=self.folder)
        with os.fdopen(descriptor, "wb") as f:
            f.write(piece + _checksum(piece).to_bytes(8, "little"))
        path = self.folder / f"{_key(url, start, stop)}.range"
        Path(temporary).replace(path)
        self._evict(len(piece), keep=path)

    def _path(self, url: str, size: int) -> Path:
        return self.folder / f"{_key(url, size)}.data"

    def _put(self, path: Path, inode: int, memory: np.ndarray, start: int, piece: bytes) -> None:
        """Write a piece where it belongs. Through the file, because on a full disk that is an error, and
        through the map the end of the process; but a file that was evicted has only its map."""
        with suppress(FileNotFoundError), path.open("r+b", buffering=0) as f:
            if os.fstat(f.fileno()).st_ino == inode:
                view = memoryview(piece)
                while view:
                    done = os.pwrite(f.fileno(), view, start)
                    view, start = view[done:], start + done
                return
        if shutil.disk_usage(self.folder).free < len(piece) + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        memory[start : start + len(piece)] = np.frombuffer(piece, np.uint8)

    def _evict(self, new: int, keep: Path) -> None:
        """Remove files until the rest is within the limit. Who has one open can go on reading it."""
        self._new += new
        if self._new < self._limit / 100:
            return
        self._new = 0
        found = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # Another process was faster.
                facts = path.stat()
                if path.suffix == TEMPORARY and time.time() - facts.st_mtime < _DAY:
                    continue
                found.append((facts.st_mtime, facts.st_blocks * 512, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= self._limit:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                used -= size


def _key(url: str, *numbers: int) -> str:
    return hashlib.sha256("\n".join((url, *map(str, numbers))).encode()).hexdigest()[:32]


def _marks_at(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _open_sized(path: Path, size: int) -> int:
    """Make a file with room for `size` bytes and their blocks' checksums, where there is none; its inode."""
    marks = bytes(8 * -(-size // BLOCK_BYTES))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size != _marks_at(size) + len(marks):
            # Written, not only made longer: a full disk is found here.
            os.pwrite(descriptor, marks, _marks_at(size))
        os.utime(descriptor)
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _block(memory: np.ndarray, number: int, size: int) -> memoryview:
    return memory[number * BLOCK_BYTES : min(size, (number + 1) * BLOCK_BYTES)].data


def _checksum(block: memoryview | bytes) -> int:
    """Never 0."""
    return xxhash.xxh3_64_intdigest(block) or 1


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Stretches of numbers that follow each other: first, one after the last."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return runs


def _fetched(url: str, fetch: Fetch, start: int, stop: int) -> bytes:
    piece = fetch(start, stop)
    if len(piece) != stop - start:
        raise OSError(f"{url} ends early: {len(piece):,} of {stop - start:,} bytes at {start:,}.")
    return piece
