"""Pieces of files in an object store, kept on disk: fetched once, in blocks, up to a size limit.

Each file has two of its own in the cache's folder: `<key>.data`, as large as the file but sparse, with the
blocks that were fetched where they belong, and `<key>.blocks`, a byte for each block, 1 where it is there.
Files in the store never change, so processes may share the folder: whoever fetches a block writes the same
bytes, and its mark after them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from lclm_rag.folders.local import MappedFile

__all__ = ["BLOCK_BYTES", "RangeCache"]

BLOCK_BYTES = 256 * 1024
"""What is fetched at once, at least: in an object store a request costs about as much as this many bytes."""

Fetch = Callable[[int, int], bytes]
"""start, stop → the bytes between them."""


class RangeCache:
    """A folder of at most `limit` bytes on disk; those files go first that were opened longest ago."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        folder.mkdir(parents=True, exist_ok=True)

    def map(self, url: str, size: int, fetch: Fetch) -> MappedFile:
        """A file as a buffer whose bytes are there once they were asked for with `need`."""
        data = self._folder / f"{_key(url, size)}.data"
        marks = data.with_suffix(".blocks")
        count = -(-size // BLOCK_BYTES)
        contents, present = _open_sized(data, size), _open_sized(marks, count)
        os.utime(data)
        file = pa.memory_map(str(data)).read_buffer()
        have = np.frombuffer(mmap.mmap(present, count), np.uint8)
        os.close(present)
        # The descriptor lives as long as the function that writes through it.
        out = os.fdopen(contents, "r+b", buffering=0)

        def need(start: int, stop: int) -> None:
            first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
            missing = first + np.flatnonzero(have[first:last] == 0)
            if not len(missing):
                return
            for run in np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1):
                begin = int(run[0]) * BLOCK_BYTES
                piece = fetch(begin, min(size, (int(run[-1]) + 1) * BLOCK_BYTES))
                os.pwrite(out.fileno(), piece, begin)
                have[run[0] : run[-1] + 1] = 1
            self._evict(keep=data)

        return MappedFile(file, need)

    def forget(self, url: str, size: int) -> None:
        """Fetch a file anew when it is next opened."""
        for suffix in (".blocks", ".data"):
            (self._folder / f"{_key(url, size)}{suffix}").unlink(missing_ok=True)

    def _evict(self, keep: Path) -> None:
        """Remove files until the rest is within the limit. Who has one open can go on reading it."""
        found = []
        for path in self._folder.glob("*.data"):
            try:
                facts = path.stat()
            except FileNotFoundError:  # Another process was faster.
                continue
            found.append((facts.st_mtime, facts.st_blocks * 512, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= self._limit:
                return
            if path != keep:
                path.with_suffix(".blocks").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                used -= size


def _key(url: str, size: int) -> str:
    return hashlib.sha256(f"{url}\n{size}".encode()).hexdigest()[:32]


def _open_sized(path: Path, size: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if os.fstat(descriptor).st_size != size:
        os.ftruncate(descriptor, size)
    return descriptor
