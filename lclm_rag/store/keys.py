"""Key runs: where the passage with a key lies, sorted by the hash of the key.

A run is an immutable file `keys/<id>.run` of blocks of 4,096 bytes (unsigned, little-endian). A block begins
with its checksum (8 bytes: XXH3 of the rest of the block, seeded with the first 16 hexadecimal digits of the
id, as a number, plus the block's number, modulo 2^64) and its number of records (8 bytes). 255 records
follow, of which only the last block may hold fewer: the hash of a key (8 bytes), the row (4 bytes) and the
number of the fragment (4 bytes). They are sorted by hash.

Hashes are uniform, so that a look-up goes to the right block by interpolation. A version names its runs; a
record whose row it does not show means nothing in it. Runs of like size are merged, so that there are few of
them.
"""

from __future__ import annotations

import math
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from lclm_rag.errors import DamagedError
from lclm_rag.storage import Folder
from lclm_rag.store.missing import require_store
from lclm_rag.store.parts import KEYS, StoreFile

__all__ = [
    "BLOCK_BYTES",
    "KeyRun",
    "RunEntry",
    "SortedKeys",
    "merge_with",
    "merged",
    "run_name",
    "write_run",
]

BLOCK_BYTES = 4096
_WORDS = BLOCK_BYTES // 8
_RECORDS = (BLOCK_BYTES - 16) // 16

_SMALL = 4096
"""Runs of fewer records than this are merged with each new one of their size: that costs 64 KiB at most."""

_TIER = 10
"""So many runs of like size (within this factor) become one."""

_MERGED_AT_ONCE = 1 << 20  # records
_STEPS = 8  # of interpolation, before halves are taken

_NONE = np.empty((0, 2), np.uint64)


@dataclass(frozen=True)
class RunEntry:
    """What a manifest says about a key run.

    Attributes:
        name: The file's id, 32 hexadecimal digits.
        rows: The number of records in it.
    """

    name: str
    rows: int

    @property
    def blocks(self) -> int:
        """The number of blocks in the file."""
        return -(-self.rows // _RECORDS)

    @property
    def bytes(self) -> int:
        """The file's size."""
        return self.blocks * BLOCK_BYTES


class SortedKeys:
    """Records in memory, with the methods of a run.

    Args:
        records: uint64 [rows, 2]: hash, and fragment number × 2^32 + row; in any order.
    """

    def __init__(self, records: np.ndarray) -> None:
        self._records = records[np.argsort(records[:, 0], kind="stable")]
        self._hashes = np.ascontiguousarray(self._records[:, 0])
        self.rows = len(records)

    def expect(self, wanted: int) -> None:
        """See `KeyRun.expect`: all is in memory."""

    def find(self, wanted: int) -> Iterator[tuple[int, int]]:
        """See `KeyRun.find`."""
        at = self.position(wanted)
        while at < self.rows and self._hashes[at] == wanted:
            place = int(self._records[at, 1])
            yield place >> 32, place & 0xFFFFFFFF
            at += 1

    def position(self, wanted: int) -> int:
        """See `KeyRun.position`."""
        return int(np.searchsorted(self._hashes, np.uint64(wanted)))

    def records(self, start: int, stop: int) -> np.ndarray:
        """See `KeyRun.records`."""
        return self._records[start:stop]


class KeyRun:
    """A key run, opened through a memory map. Each block that is looked at is checked.

    Args:
        folder: The folder of the store's key runs.
        entry: What the manifest says about the run.

    Raises:
        DamagedError: If the file is not there, or has another size.
    """

    def __init__(self, folder: Folder, entry: RunEntry) -> None:
        self.entry = entry
        self.rows = entry.rows
        self._where = str(folder / run_name(entry.name))
        self._seed = _seed(entry.name)
        try:
            self._file = folder.map(run_name(entry.name), entry.bytes)
        except (FileNotFoundError, ValueError) as error:
            require_store(folder)
            raise self._damaged("it is not there") from error
        if self._file.buffer.size != entry.bytes:
            raise self._damaged(f"it has {self._file.buffer.size:,} bytes, not {entry.bytes:,}")
        self._bytes = memoryview(self._file.buffer).cast("B")
        self._words = self._bytes.cast("Q")

    def evicted(self) -> bool:
        """Whether the run should be opened again before more of it is read."""
        return self._file.evicted()

    def expect(self, wanted: int) -> None:
        """Have the block read where a hash most likely is.

        Args:
            wanted: The hash.
        """
        start = (wanted * self.entry.blocks >> 64) * BLOCK_BYTES
        self._file.expect(start, start + BLOCK_BYTES)

    def find(self, wanted: int) -> Iterator[tuple[int, int]]:
        """The places that are noted for a hash: fragment number and row.

        Args:
            wanted: The hash.

        Raises:
            DamagedError: If a block is not what was written.
        """
        block, words = self._first_block(wanted), self._words
        while block < self.entry.blocks:
            base = self._checked(block) + 2
            stop = base + 2 * words[base - 1]
            hashes = words[base:stop:2]
            for at in range(bisect_left(hashes, wanted), len(hashes)):
                if hashes[at] != wanted:
                    return
                place = words[base + 2 * at + 1]
                yield place >> 32, place & 0xFFFFFFFF
            block += 1

    def position(self, wanted: int) -> int:
        """The number of records whose hash is smaller.

        Args:
            wanted: The hash.

        Raises:
            DamagedError: If a block is not what was written.
        """
        block = self._first_block(wanted)
        if block == self.entry.blocks:
            return self.rows
        base = self._checked(block) + 2
        hashes = self._words[base : base + 2 * self._words[base - 1] : 2]
        return block * _RECORDS + bisect_left(hashes, wanted)

    def records(self, start: int, stop: int) -> np.ndarray:
        """Records by their positions.

        Args:
            start: The first.
            stop: The one after the last.

        Returns:
            uint64 [stop - start, 2]: hash, and fragment number × 2^32 + row.

        Raises:
            DamagedError: If a block is not what was written.
        """
        if start >= stop:
            return _NONE
        first, last = start // _RECORDS, -(-stop // _RECORDS)
        self._file.need(first * BLOCK_BYTES, last * BLOCK_BYTES)
        for block in range(first, last):
            self._checked(block)
        words = np.frombuffer(self._bytes[first * BLOCK_BYTES : last * BLOCK_BYTES], np.uint64)
        # Only the last block of the file has fewer records than fit, and they end where it ends.
        found = words.reshape(-1, _WORDS)[:, 2:].reshape(-1, 2)
        return found[start - first * _RECORDS : stop - first * _RECORDS]

    def _first_block(self, wanted: int) -> int:
        """The number of the first block whose last hash is not smaller; that of blocks if there is none."""
        words = self._words
        low, high = 0, self.entry.blocks
        below, above = 0, 1 << 64
        steps = 0
        while low < high:
            guess = (low + high) // 2
            if steps < _STEPS:
                guess = low + (wanted - below) * (high - low) // (above - below)
                guess = max(low, min(high - 1, guess))
            steps += 1
            base = self._checked(guess) + 2
            first, last = words[base], words[base + 2 * words[base - 1] - 2]
            if last < wanted:
                low, below = guess + 1, last
            elif first < wanted:
                return guess
            else:
                high, above = guess, max(first, below + 1)
        return low

    def _checked(self, block: int) -> int:
        """Where a block begins, in words of 8 bytes, after it has been fetched and checked."""
        start = block * BLOCK_BYTES
        self._file.need(start, start + BLOCK_BYTES)
        if not self._is_sound(block):
            # The damage may be in the bytes that were fetched, or the object may have been repaired since.
            if self._file.forget():
                self._file.need(start, start + BLOCK_BYTES)
            if not self._is_sound(block):
                raise self._damaged(f"block {block} is not what was written")
        return block * _WORDS

    def _is_sound(self, block: int) -> bool:
        start = block * BLOCK_BYTES
        rest = self._bytes[start + 8 : start + BLOCK_BYTES]
        seed = (self._seed + block) % (1 << 64)
        if xxhash.xxh3_64_intdigest(rest, seed) != self._words[block * _WORDS]:
            return False
        expected = min(_RECORDS, self.rows - block * _RECORDS)
        return self._words[block * _WORDS + 1] == expected

    def _damaged(self, what: str) -> DamagedError:
        return DamagedError(
            f"The keys of the store are damaged ({self._where}): {what}. lclm-rag verify --repair makes them "
            "anew from the passages."
        )


def write_run(
    folder: Folder, pieces: Iterable[np.ndarray], files: list[StoreFile]
) -> RunEntry | None:
    """Write a run, which is whole and durable before it gets its name.

    Args:
        folder: The folder of the store's key runs.
        pieces: Its records, in order; see `SortedKeys`.
        files: Takes what is written.

    Returns:
        What a manifest says about the run; None if there are no records, and so no file.
    """
    pieces = (piece for piece in pieces if len(piece))
    first = next(pieces, None)
    if first is None:
        return None
    name = uuid.uuid4().hex
    files.append((KEYS, run_name(name)))
    folder.make()
    rows = folder.write(run_name(name), partial(_fill, name, first, pieces))
    return RunEntry(name, rows)


def merged(
    sources: Sequence[KeyRun | SortedKeys], keep: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray]:
    """The records of several runs in order, in pieces of about a million.

    Args:
        sources: The runs.
        keep: Tells which records stay, bool [rows], from their places, uint64 [rows].

    Yields:
        Records; see `SortedKeys`.

    Raises:
        DamagedError: If a block is not what was written.
    """
    parts = max(1, sum(source.rows for source in sources) // _MERGED_AT_ONCE)
    starts = [0] * len(sources)
    for part in range(1, parts + 1):
        bound = (part << 64) // parts
        stops = [source.rows if part == parts else source.position(bound) for source in sources]
        found = np.concatenate(
            [s.records(a, b) for s, a, b in zip(sources, starts, stops, strict=True)] or [_NONE]
        )
        found = found[keep(found[:, 1])]
        yield found[np.argsort(found[:, 0], kind="stable")]
        starts = stops


def merge_with(rows: Sequence[int], new: int) -> list[int]:
    """Which runs to merge with new records, so that there are at most some ten of each size.

    Each record is written again once for each tenfold growth of the store.

    Args:
        rows: The numbers of records of the runs that are there.
        new: The number of new records.

    Returns:
        The numbers of the runs, from 0; none if the new records become a run of their own.
    """
    chosen: list[int] = []
    if new < _SMALL:
        chosen = [at for at, count in enumerate(rows) if count < _SMALL]
    while True:
        total = new + sum(rows[at] for at in chosen)
        alike = [at for at, count in enumerate(rows) if _tier(count) <= _tier(total)]
        alike = [at for at in alike if at not in chosen]
        if len(alike) + 1 < _TIER:
            return sorted(chosen)
        chosen += alike


def run_name(name: str) -> str:
    """The name of the file of a run."""
    return f"{name}.run"


def _tier(rows: int) -> int:
    return math.floor(math.log(max(rows, 1) / _SMALL, _TIER)) if rows >= _SMALL else -1


def _seed(name: str) -> int:
    return int(name[:16], 16)


def _fill(name: str, first: np.ndarray, others: Iterable[np.ndarray], path: Path) -> int:
    seed, block, rows = _seed(name), 0, 0
    waiting = first
    with path.open("wb") as f:

        def put(records: np.ndarray) -> None:
            nonlocal block, rows
            count = -(-len(records) // _RECORDS)
            words = np.zeros((count, _WORDS), np.uint64)
            words[:, 1] = _RECORDS
            words[-1, 1] = len(records) - (count - 1) * _RECORDS
            flat = np.zeros((count * _RECORDS, 2), np.uint64)
            flat[: len(records)] = records
            words[:, 2:] = flat.reshape(count, -1)
            for at in range(count):
                rest = words[at, 1:].data
                words[at, 0] = xxhash.xxh3_64_intdigest(rest, (seed + block + at) % (1 << 64))
            f.write(words.data)
            block, rows = block + count, rows + len(records)

        for piece in others:
            whole = len(waiting) - len(waiting) % _RECORDS
            if whole:
                put(waiting[:whole])
            waiting = np.concatenate([waiting[whole:], piece])
        put(waiting)
    return rows
