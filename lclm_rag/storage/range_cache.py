"""A cache on disk for pieces of files in an object store: fetched once, in blocks, up to a size limit.

Two kinds of files lie in the cache's folder:

- `<key>.data` stands for a whole file. It begins with as many bytes as the file has, but is sparse: fetched
  blocks of `BLOCK_BYTES` lie at their own offsets, the rest are holes. After them, at the next multiple of
  65,536 bytes, follow the blocks' checksums (XXH3, 64 bits, as uint64; 0 for a block that was not fetched).
- `<key>.range` is one stretch of a file, followed by its checksum (8 bytes, little-endian).

A block counts as fetched only if its bytes match its checksum. So a block that was damaged on this disk, or
half written when the power failed, is fetched again, and nothing here needs to be synced. Files in the store
never change, so several processes may share the folder: all that fetch a block write the same bytes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import xxhash

from lclm_rag.storage.local import TEMPORARY, MappedFile, temporary_file

__all__ = ["BLOCK_BYTES", "RangeCache"]

BLOCK_BYTES = 256 * 1024
"""The least that is fetched at once: a request to an object store costs about as much as this many bytes."""

_GAP_BLOCKS = 4
"""Stretches no further apart are fetched by one request, with what is between them: it takes no longer."""

_PAGE = 1 << 16
_SPARE_BYTES = 1 << 26
_DAY = 24 * 3600

Fetch = Callable[[Sequence[tuple[int, int]]], Iterable[bytes]]
"""Takes stretches by start and stop, and gives the bytes of each, in this order."""


class RangeCache:
    """A cache folder with a size limit; the files that were opened or added to longest ago go first.

    Args:
        folder: The folder, which is created if it does not exist.
        limit: The most that the files may take on disk, in bytes; they may exceed it by a hundredth.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        self._new = 0
        folder.mkdir(parents=True, exist_ok=True)

    def map(self, url: str, size: int, fetch: Fetch) -> MappedFile:
        """A file as a buffer whose bytes are valid after a call of its `need`.

        Args:
            url: The file's URL, which with `size` is its key in the cache.
            size: The file's size in bytes.
            fetch: Fetches stretches of the file from the store.
        """
        path = self._path(url, size)
        inode = _open_sized(path, size)
        file = pa.memory_map(str(path), "r+").read_buffer()
        # Built on the address, because Arrow shows a writable map as read-only.
        memory = np.frombuffer((ctypes.c_ubyte * file.size).from_address(file.address), np.uint8)
        marks = memory[_marks_at(size) :].view(np.uint64)
        sound = np.zeros(len(marks), bool)

        fetching = Lock()

        def need(start: int, stop: int) -> None:
            need_all([(start, stop)])

        def need_all(stretches: Sequence[tuple[int, int]]) -> None:
            wanted = [(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)) for start, stop in stretches]
            # Looked at without the lock: `sound` is set only after the bytes are in place.
            if not all(sound[first:last].all() for first, last in wanted):
                with fetching:
                    bring(sorted({i for first, last in wanted for i in range(first, last)}))

        def bring(blocks: list[int]) -> None:
            # 1. Check blocks that this process has not used yet against their checksums: another process, or
            #    an earlier one, may have fetched them. What does not match is missing.
            unknown = [i for i in blocks if not sound[i]]
            missing = [i for i in unknown if marks[i] != _checksum(_block(memory, i, size))]
            runs = _runs(missing)
            pieces = fetch([(a * BLOCK_BYTES, min(size, b * BLOCK_BYTES)) for a, b in runs])
            for (begin, end), piece in zip(runs, pieces, strict=True):
                offset, stop = begin * BLOCK_BYTES, min(size, end * BLOCK_BYTES)
                if len(piece) != stop - offset:
                    raise OSError(
                        f"{url} ends early: {len(piece):,} of {stop - offset:,} bytes at {offset:,}."
                    )
                # 2. The bytes before their checksum: after a crash between the two, the old checksum (or 0)
                #    does not match, and the block is fetched again.
                self._put(path, inode, memory, offset, piece)
                for i in range(begin, end):
                    marks[i] = _checksum(_block(memory, i, size))
                # 3. Make room only for what is there; this file itself must stay, it is in use.
                self._evict(len(piece), keep=path)
            # 4. Last, because other threads read without the lock what is marked sound. If a fetch above
            #    fails, nothing is marked, and the next call checks these blocks again.
            sound[unknown] = True

        def forget() -> bool:
            with fetching:
                marks[:] = 0
                sound[:] = False
            return True

        return MappedFile(
            file.slice(0, size), need, need_all, forget, lambda: _inode(path) != inode
        )

    def keep(self, url: str, written: Path) -> None:
        """Take in a whole file that has just been uploaded.

        Args:
            url: The file's URL in the store.
            written: The local file, in the cache's folder; it is moved.
        """
        # The checksums are added under the temporary name, before the rename: what has the real name can be
        # used.
        size = written.stat().st_size
        with written.open("r+b") as f:
            marks = [_checksum(block) for block in iter(lambda: f.read(BLOCK_BYTES), b"")]
            f.seek(_marks_at(size))
            f.write(np.array(marks, np.uint64).tobytes())
        path = self._path(url, size)
        written.replace(path)
        self._evict(size, keep=path)

    def range(self, url: str, start: int, stop: int) -> bytes | None:
        """The bytes from start to stop of a file; None if the cache does not hold this stretch intact."""
        path = self.folder / f"{_key(url, start, stop)}.range"
        try:
            found = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        piece, mark = found[:-8], found[-8:]
        return piece if _checksum(piece).to_bytes(8, "little") == mark else None

    def keep_range(self, url: str, start: int, stop: int, piece: bytes) -> None:
        """Keep the bytes from start to stop of a file, for `range`."""
        temporary = temporary_file(self.folder)
        temporary.write_bytes(piece + _checksum(piece).to_bytes(8, "little"))
        path = self.folder / f"{_key(url, start, stop)}.range"
        temporary.replace(path)
        self._evict(len(piece), keep=path)

    def _path(self, url: str, size: int) -> Path:
        return self.folder / f"{_key(url, size)}.data"

    def _put(self, path: Path, inode: int, memory: np.ndarray, start: int, piece: bytes) -> None:
        """Write a piece at its offset.

        This goes through the file if possible: on a full disk that raises an error, while a write through
        the map ends the process. A file that was evicted can only be reached through its map.
        """
        # The name may belong to a newer file by now, which another process made after an eviction: the inode
        # says whether it is the one that is mapped here.
        with suppress(FileNotFoundError), path.open("r+b", buffering=0) as f:
            if os.fstat(f.fileno()).st_ino == inode:
                view = memoryview(piece)
                while view:
                    done = os.pwrite(f.fileno(), view, start)
                    view, start = view[done:], start + done
                return
        # Through the map, so the room is checked before, with some to spare for other writers.
        if shutil.disk_usage(self.folder).free < len(piece) + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        memory[start : start + len(piece)] = np.frombuffer(piece, np.uint8)

    def _evict(self, new: int, keep: Path) -> None:
        """Remove files until the rest is within the limit. A process that has one open can still read it."""
        # The folder is listed only after each hundredth of the limit: that is how far it may be exceeded.
        self._new += new
        if self._new < self._limit / 100:
            return
        self._new = 0
        found = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # Another process has removed it.
                facts = path.stat()
                # A temporary file may still be in use; one that is older than a day was left by a crash.
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
    """The inode of a file with room for `size` bytes and their blocks' checksums, made if there is none."""
    marks = bytes(8 * -(-size // BLOCK_BYTES))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if os.fstat(descriptor).st_size != _marks_at(size) + len(marks):
            # The checksums are written, not left as a hole: they are later set through the map, and a full
            # disk must show here, as an error.
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
    """XXH3 (64 bits), but never 0, which marks a block that was not fetched."""
    return xxhash.xxh3_64_intdigest(block) or 1


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as runs with small gaps: the first of each run, and one more than its last."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number - runs[-1][1] <= _GAP_BLOCKS:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return runs
