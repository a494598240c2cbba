"""Checks that rows and documents are consistent: keys, spans, latents, texts, nothing missing or twice."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from lclm_rag.errors import DamagedError
from lclm_rag.problem import Problem
from lclm_rag.store.codecs import decode
from lclm_rag.store.fragment import Fragment, StoredPassage, key_hash
from lclm_rag.store.manifest import Totals
from lclm_rag.store.store import LatentStore, Place, row_totals
from lclm_rag.types import Document

__all__ = ["SoundPassages", "checked_rows", "row_problem", "surviving_id"]

_ROWS_AT_ONCE = 64


# --- rows -----------------------------------------------------------------------------------------------


def checked_rows(
    fragment: Fragment, rows: Sequence[int]
) -> Iterator[tuple[int, StoredPassage | None, str | None]]:
    """Read and check rows of a fragment.

    Args:
        fragment: The fragment.
        rows: Numbers of its rows.

    Yields:
        The row's number, what it holds (None if it cannot be read or its checksum does not match), and what
        is wrong with it (None if it is sound).
    """
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        checked = [(row, *_checked(fragment, row)) for row in rows[start : start + _ROWS_AT_ONCE]]
        # Decoded all at once; one by one only if something is wrong.
        finite = _are_finite([stored for _, stored, _ in checked if stored])
        for row, stored, wrong in checked:
            if stored and not finite and not _are_finite([stored]):
                wrong = wrong or "its latents are not finite"
            yield row, stored, wrong


def _checked(fragment: Fragment, row: int) -> tuple[StoredPassage | None, str | None]:
    try:
        stored = fragment.read(row)
    except DamagedError as error:
        return None, str(error)
    return stored, row_problem(stored, fragment.key_hash(row))


def row_problem(row: StoredPassage, noted_hash: int) -> str | None:
    """What contradicts itself in a row whose checksum matches; None if nothing does.

    Args:
        row: The row.
        noted_hash: The key hash that its fragment has for the row, by which it is looked up.
    """
    p = row.passage
    if noted_hash != key_hash(p.key):
        return f"passage {p.key} lies under the hash of another key"
    if p.end - p.start != len(p.text):
        return f"passage {p.key} has a span of {p.end - p.start}, but {len(p.text)} characters"
    if len(row.encoded) != max(1, -(-row.tokens // row.layout.compression_ratio)):
        return f"passage {p.key} has {len(row.encoded)} latents for {row.tokens} tokens"
    return None


def _are_finite(rows: Sequence[StoredPassage]) -> bool:
    import torch

    encoded = [row.encoded for row in rows if len(row.encoded)]
    if not encoded:
        return True
    layout = rows[0].layout
    latents = decode(np.concatenate(encoded), layout.codec, layout.width)
    # NaN passes through both min and max, which together take a tenth of the time of isfinite.
    return bool(torch.isfinite(torch.stack([latents.min(), latents.max()])).all())


def surviving_id(fragment: Fragment, row: int) -> str | None:
    """The document id in a damaged row; None if the row's key no longer matches its hash."""
    try:
        key = fragment.key(row)
        return key.document_id if key_hash(key) == fragment.key_hash(row) else None
    except DamagedError:
        return None


# --- documents ------------------------------------------------------------------------------------------


class SoundPassages:
    """Takes the sound rows of a version in the order of its files, and checks them as documents.

    It keeps 16 bytes for each row: its key hash and its place. A document whose passages follow one another
    is checked as they come. Passages of other documents are noted, and read again at the end. `totals` counts
    all rows added.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self._hashes, self._rows, self._fragments = array("Q"), array("i"), array("i")
        self._names: list[str] = []
        self._numbers: list[int] = []
        self._open: list[tuple[Place, StoredPassage]] = []
        self._scattered: list[tuple[str, Place]] = []  # document id, place of the row

    def add(self, place: Place, number: int, row: StoredPassage) -> None:
        """Take the next sound row.

        Args:
            place: Its place.
            number: The number of its fragment.
            row: The row.
        """
        key = row.passage.key
        if self._names[-1:] != [place[0]]:
            self._names.append(place[0])
            self._numbers.append(number)
        self._hashes.append(key_hash(key))
        self._rows.append(place[1])
        self._fragments.append(len(self._names) - 1)
        self.totals += row_totals(row)
        if self._open:
            before = self._open[-1][1].passage.key
            if key != (before.document_id, before.ordinal + 1):
                self._close()
        self._open.append((place, row))
        if row.last:
            self._close()

    def hashes(self) -> np.ndarray:
        """The key hashes of all rows added, uint64, sorted."""
        return np.sort(np.array(self._hashes, np.uint64))

    def records(self) -> np.ndarray:
        """What a key run holds of all rows added, uint64 [rows, 2]; see `SortedKeys`."""
        numbers = np.array(self._numbers, np.uint64)[np.array(self._fragments, np.int64)]
        places = (numbers << np.uint64(32)) + np.array(self._rows, np.uint64)
        return np.stack([np.array(self._hashes, np.uint64), places], axis=1)

    def repeated(self, store: LatentStore) -> Iterator[Problem]:
        """A problem for each row whose passage an earlier row holds already."""
        hashes, seen = self.hashes(), set()
        twice = hashes[1:][hashes[1:] == hashes[:-1]]
        for at in np.flatnonzero(np.isin(np.array(self._hashes, np.uint64), twice)):
            name = self._names[self._fragments[at]]
            key = store.fragment(name).key(self._rows[at])
            if key in seen:
                yield Problem("passage", name, f"Passage {key} is there twice.", key.document_id)
            seen.add(key)

    def incomplete(self, store: LatentStore) -> Iterator[Problem]:
        """A problem for each document that is not what was added; call it after the last row."""
        self._close()
        for document_id, scattered in groupby(sorted(self._scattered), key=lambda pair: pair[0]):
            rows = [store.fragment(name).read(row) for _, (name, row) in scattered]
            if wrong := _document_problem(sorted(rows, key=lambda row: row.passage.key)):
                sentence = f"Document {document_id!r} is not whole: {wrong}."
                yield Problem("document", str(store.folder), sentence, document_id)

    def _close(self) -> None:
        """End the run of passages: the next row is not the continuation of those before."""
        if self._open and _document_problem([row for _, row in self._open]) is not None:
            document_id = self._open[0][1].passage.key.document_id
            self._scattered += [(document_id, place) for place, _ in self._open]
        self._open = []


def _document_problem(rows: Sequence[StoredPassage]) -> str | None:
    """Why these passages, in order, are not the document that was added; None if they are."""
    for expected, row in enumerate(rows):
        if row.passage.key.ordinal != expected:
            return f"passage {expected} is missing"
        if row.passage.start != (rows[expected - 1].passage.end if expected else 0):
            return f"passage {expected} does not begin where the one before ends"
        if row.last != (expected == len(rows) - 1):
            return "its last passage is not the one that is marked so"
    first = rows[0].passage
    try:
        document = Document(
            first.key.document_id, "".join(row.passage.text for row in rows), first.metadata
        )
    except ValueError as error:
        return str(error).rstrip(".")
    if {row.document_hash for row in rows} != {document.content_hash()}:
        return "its text or metadata are not what was added"
    return None
