"""Fragment lists: which fragments a version consists of, and what is deleted in them.

A list is an immutable file `lists/<id>.list` of records (`RECORD`, little-endian, 128 bytes), one for each
fragment, by ascending fragment number. A version's manifest names its lists with their SHA-256. Versions
share the lists that did not change between them.

Deleted rows are bitmaps, in Arrow's layout: bit `row % 8` of byte `row // 8`, 1 for a row that is deleted.
Those that a commit changes lie one after the other in one immutable file `deletions/<id>.bits`; the record of
the fragment says where in which file, with the checksum.
"""

from __future__ import annotations

import hashlib
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash

from lclm_rag.errors import DamagedError
from lclm_rag.storage import Folder
from lclm_rag.store.fragment import WrittenFragment
from lclm_rag.store.missing import require_store
from lclm_rag.store.parts import DELETIONS, LISTS, StoreFile

__all__ = [
    "LIST_FRAGMENTS",
    "RECORD",
    "Deletions",
    "FragmentEntry",
    "FragmentTable",
    "ListEntry",
    "deletions_name",
    "list_name",
    "next_lists",
    "with_deletions",
]

RECORD = np.dtype(
    [
        ("number", "<u4"),
        ("rows", "<u4"),
        ("name", "V16"),
        ("latents", "<u8"),
        ("tokens", "<u8"),
        ("bytes", "<u8"),
        ("sha256", "V32"),
        ("keys_checksum", "<u8"),
        ("keys_offset", "<u4"),
        ("deleted", "<u4"),
        ("deletions", "V16"),
        ("deletions_offset", "<u8"),
        ("deletions_checksum", "<u8"),
    ]
)

LIST_FRAGMENTS = 512
"""The most fragments in a list: a commit that changes one of them writes the list anew, 64 KiB."""

_MOST = 1 << 53
_NO_FILE = bytes(16)


@dataclass(frozen=True)
class Deletions:
    """Where the bitmap of a fragment's deleted rows lies.

    Attributes:
        file: The id of the file, hexadecimal.
        offset: Where in the file the bitmap begins, in bytes.
        checksum: XXH3 (64 bits) of the bitmap.
        count: The number of rows that are deleted.
    """

    file: str
    offset: int
    checksum: int
    count: int


@dataclass(frozen=True)
class FragmentEntry(WrittenFragment):
    """One fragment of a version. Counts are those of its file, deleted rows included.

    Attributes:
        name: The file's name.
        deletions: The rows that this version does not show; None if it shows all.
        number: The number by which key runs name the fragment, in every version of the store that has it; 0
            before it is committed.
    """

    name: str
    deletions: Deletions | None = None
    number: int = 0

    @property
    def deleted(self) -> int:
        """The number of rows that this version does not show."""
        return self.deletions.count if self.deletions else 0


@dataclass(frozen=True)
class ListEntry:
    """What a manifest says about a fragment list.

    Attributes:
        name: The file's id, 32 hexadecimal digits.
        sha256: The SHA-256 of the file, hexadecimal.
        fragments: The number of fragments in it.
        first: The number of its first fragment. Those of the next list are all larger than those of this one.
    """

    name: str
    sha256: str
    fragments: int
    first: int


class FragmentTable:
    """The fragments of a version. Lists and bitmaps are read when they are needed.

    Args:
        folder: The store's folder.
        lists: The version's lists.
        given: Instead of lists: the fragments themselves, by ascending number.
    """

    def __init__(
        self,
        folder: Folder,
        lists: Sequence[ListEntry] = (),
        given: Sequence[FragmentEntry] | None = None,
    ) -> None:
        self._folder = folder
        self.lists = tuple(lists)
        self._firsts = [each.first for each in lists]
        self._given = None if given is None else {entry.number: entry for entry in given}
        self._read: dict[str, np.ndarray] = {}
        self._entries: dict[int, FragmentEntry] = {}
        self._visible: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[FragmentEntry]:
        if self._given is not None:
            yield from self._given.values()
        for each in self.lists:
            yield from self.read(each)

    def read(self, listed: ListEntry) -> list[FragmentEntry]:
        """The fragments of one of the lists; nothing of it is kept in memory.

        Raises:
            DamagedError: If the list is not there, or is not what was written.
        """
        return [_entry(record) for record in self._records(listed).tolist()]

    def get(self, number: int) -> FragmentEntry | None:
        """The fragment with a number; None if this version does not have it.

        Raises:
            DamagedError: As for `read`.
        """
        if self._given is not None:
            return self._given.get(number)
        found = self._entries.get(number)
        if found is None:
            at = self.list_of(number)
            if at < 0:
                return None
            listed = self.lists[at]
            records = self._kept(listed)
            at = int(np.searchsorted(records["number"], number))
            if at == len(records) or records["number"][at] != number:
                return None
            found = self._entries[number] = _entry(records[at].item())
        return found

    def read_ahead(self) -> None:
        """Read the list that will be needed, if there is but one.

        Raises:
            DamagedError: As for `read`.
        """
        if len(self.lists) == 1:
            self._kept(self.lists[0])

    def _kept(self, listed: ListEntry) -> np.ndarray:
        """The records of a list, kept in memory."""
        records = self._read.get(listed.name)
        if records is None:
            records = self._read[listed.name] = self._records(listed)
        return records

    def list_of(self, number: int) -> int:
        """Which of the lists has the fragment with a number, if one does; -1 for one before all of them."""
        return bisect_right(self._firsts, number) - 1

    def __getitem__(self, number: int) -> FragmentEntry:
        """The fragment with a number, which this version has."""
        entry = self.get(number)
        assert entry is not None
        return entry

    def visible(self, entry: FragmentEntry) -> np.ndarray:
        """Which rows of a fragment are not deleted, bool [rows]. It must not be changed.

        Raises:
            DamagedError: If the bitmap is not there, or is not what was written.
        """
        if entry.deletions is None:
            return np.ones(entry.rows, bool)
        found = self._visible.get(entry.number)
        if found is None:
            found = self._visible[entry.number] = read_visible(self._folder, entry)
        return found

    def shows(self, entry: FragmentEntry, row: int) -> bool:
        """Whether the version shows a row of a fragment.

        Raises:
            DamagedError: As for `visible`.
        """
        if entry.deletions is None:
            return row < entry.rows
        return row < entry.rows and bool(self.visible(entry)[row])

    def _records(self, listed: ListEntry) -> np.ndarray:
        """The records of a list, checked, because the file may not have been written by this library."""
        folder, name = self._folder / LISTS, list_name(listed.name)
        piece = _read(folder, name, 0, listed.fragments * RECORD.itemsize, _sha256, listed.sha256)
        if piece is None:
            raise DamagedError(
                f"Fragment list {folder / name} is damaged: it is not what was written. lclm-rag verify "
                "--repair makes a version without it."
            )
        records = np.frombuffer(piece, RECORD)
        numbers = records["number"].astype(np.int64)
        room = records["rows"].astype(np.uint64) * 8 + records["keys_offset"]
        sound = (
            (records["rows"] > 0)
            & (records["deleted"] <= records["rows"])
            & (records["bytes"] <= _MOST)
            & (room <= records["bytes"])
            & (records["latents"] <= _MOST)
            & (records["tokens"] <= _MOST)
            & (records["deletions_offset"] <= _MOST)
        )
        if numbers[0] != listed.first or (np.diff(numbers) <= 0).any() or not sound.all():
            raise DamagedError(f"Fragment list {folder / name} is damaged: its numbers cannot be.")
        return records


def read_visible(folder: Folder, entry: FragmentEntry) -> np.ndarray:
    """Read which rows of a fragment are not deleted; see `FragmentTable.visible`."""
    found = entry.deletions
    if found is None:
        return np.ones(entry.rows, bool)
    there, name = folder / DELETIONS, deletions_name(found.file)
    stop = found.offset + -(-entry.rows // 8)
    piece = _read(there, name, found.offset, stop, xxhash.xxh3_64_intdigest, found.checksum)
    bits = np.frombuffer(piece or b"", np.uint8)
    deleted = np.unpackbits(bits, count=entry.rows if piece else 0, bitorder="little")
    if piece is None or int(deleted.sum()) != found.count:
        raise DamagedError(
            f"The deleted rows of fragment {entry.name} ({there / name}) are damaged: they are not what was "
            "written. lclm-rag verify --repair makes a version without the fragment."
        )
    visible: np.ndarray = deleted == 0
    visible.flags.writeable = False
    return visible


def with_deletions(
    folder: Folder,
    changed: Sequence[tuple[FragmentEntry, np.ndarray]],
    files: list[StoreFile],
) -> list[FragmentEntry]:
    """Write which rows of fragments are not deleted any longer.

    Args:
        folder: The store's folder.
        changed: Fragments, each with its visible rows, bool [rows].
        files: Takes what is written.

    Returns:
        The fragments with their new deletions.
    """
    if not changed:
        return []
    file, offset = uuid.uuid4().hex, 0
    entries, pieces = [], []
    for entry, visible in changed:
        piece = np.packbits(~visible, bitorder="little").tobytes()
        checksum, count = xxhash.xxh3_64_intdigest(piece), int(entry.rows - visible.sum())
        entries.append(replace(entry, deletions=Deletions(file, offset, checksum, count)))
        pieces.append(piece)
        offset += len(piece)
    files.append((DELETIONS, deletions_name(file)))
    (folder / DELETIONS).make()
    (folder / DELETIONS).replace(deletions_name(file), b"".join(pieces))
    return entries


def next_lists(
    table: FragmentTable,
    folder: Folder,
    changed: dict[int, FragmentEntry | None],
    added: Sequence[FragmentEntry],
    files: list[StoreFile],
) -> list[ListEntry]:
    """Write the lists of a version that follows another one; those that did not change stay as they are.

    Args:
        table: The fragments of the version before.
        folder: The store's folder.
        changed: What became of fragments of that version, by number: None for those that the next one does
            not have.
        added: The fragments that come to them, by ascending numbers, all larger than those that are there.
        files: Takes what is written.

    Returns:
        The lists of the next version.
    """
    holding = {table.list_of(number) for number in changed}
    if added and table.lists and table.lists[-1].fragments < LIST_FRAGMENTS:
        holding.add(len(table.lists) - 1)
    lists: list[ListEntry] = []
    pending: list[FragmentEntry] = []

    def write() -> None:
        for start in range(0, len(pending), LIST_FRAGMENTS):
            lists.append(_write(folder, pending[start : start + LIST_FRAGMENTS], files))
        pending.clear()

    for at, listed in enumerate(table.lists):
        if at not in holding:
            write()
            lists.append(listed)
            continue
        now = (changed.get(entry.number, entry) for entry in table.read(listed))
        pending += [entry for entry in now if entry is not None]
    pending += added
    write()
    return lists


def list_name(name: str) -> str:
    """The name of the file of a list."""
    return f"{name}.list"


def deletions_name(name: str) -> str:
    """The name of the file of bitmaps."""
    return f"{name}.bits"


def _write(folder: Folder, entries: Iterable[FragmentEntry], files: list[StoreFile]) -> ListEntry:
    records = np.array([_record(entry) for entry in entries], RECORD)
    data, name = records.tobytes(), uuid.uuid4().hex
    files.append((LISTS, list_name(name)))
    (folder / LISTS).make()
    (folder / LISTS).replace(list_name(name), data)
    return ListEntry(name, _sha256(data), len(records), int(records[0]["number"]))


def _record(entry: FragmentEntry) -> tuple[Any, ...]:
    found = entry.deletions
    return (
        entry.number,
        entry.rows,
        bytes.fromhex(entry.name.removesuffix(".arrow")),
        entry.latents,
        entry.tokens,
        entry.bytes,
        bytes.fromhex(entry.sha256),
        int(entry.keys_checksum, 16),
        entry.keys_offset,
        entry.deleted,
        bytes.fromhex(found.file) if found else _NO_FILE,
        found.offset if found else 0,
        found.checksum if found else 0,
    )


def _entry(record: Any) -> FragmentEntry:
    number, rows, name, latents, tokens, size, sha256, keys_checksum, keys_offset, *rest = record
    deleted, file, offset, checksum = rest
    return FragmentEntry(
        name=f"{name.hex()}.arrow",
        rows=rows,
        latents=latents,
        tokens=tokens,
        bytes=size,
        sha256=sha256.hex(),
        keys_offset=keys_offset,
        keys_checksum=f"{keys_checksum:016x}",
        deletions=Deletions(file.hex(), offset, checksum, deleted) if deleted else None,
        number=number,
    )


def _read(
    folder: Folder,
    name: str,
    start: int,
    stop: int,
    checksum: Callable[[bytes], str | int],
    expected: str | int,
) -> bytes | None:
    """A stretch of a file; None if it is not what was written."""
    for anew in (False, True):
        # The object may have been repaired since the cache fetched it.
        try:
            (piece,) = folder.read_ranges([(name, start, stop)], anew=anew)
        except (FileNotFoundError, IsADirectoryError):
            require_store(folder)
            return None
        if len(piece) == stop - start and checksum(piece) == expected:
            return piece
        if folder.local is not None:
            return None
    return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
