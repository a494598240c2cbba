"""Whether rows and documents contradict themselves: keys, spans, latents, texts, nothing missing or twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lclm_rag.errors import DamagedError
from lclm_rag.store.codecs import decode
from lclm_rag.store.fragment import Fragment, StoredPassage, key_hash
from lclm_rag.store.manifest import FragmentEntry, Totals
from lclm_rag.store.store import Place, row_totals
from lclm_rag.types import Document, PassageKey

__all__ = [
    "NO_HASHES",
    "Documents",
    "SoundRows",
    "document_trouble",
    "read_rows",
    "row_trouble",
    "sure_name",
]

NO_HASHES = np.empty(0, np.uint64)


def read_rows(
    fragment: Fragment, rows: Sequence[int]
) -> list[tuple[int, StoredPassage | None, str | None]]:
    """Each row, what it holds where its checksum matches, and what is wrong with it."""
    result: list[tuple[int, StoredPassage | None, str | None]] = []
    for row in rows:
        try:
            stored = fragment.read(row)
        except DamagedError as error:
            result.append((row, None, str(error)))
        else:
            result.append((row, stored, row_trouble(stored, fragment.key_hash(row))))
    encoded = [stored for _, stored, _ in result if stored is not None and len(stored.encoded)]
    if not encoded or _finite(encoded):
        return result
    return [
        (row, stored, wrong or (None if _finite([stored]) else "its latents are not finite"))
        if stored is not None and len(stored.encoded)
        else (row, stored, wrong)
        for row, stored, wrong in result
    ]


def _finite(rows: Sequence[StoredPassage]) -> bool:
    import torch

    layout = rows[0].layout
    joined = np.concatenate([row.encoded for row in rows])
    latents = decode(joined, layout.codec, layout.width)
    # NaN passes through both, which take a tenth of the time of isfinite.
    return bool(torch.isfinite(torch.stack([latents.min(), latents.max()])).all())


def row_trouble(row: StoredPassage, noted_hash: int) -> str | None:
    """What contradicts itself in a row, as it was written. noted_hash: by which it is looked up."""
    p = row.passage
    if noted_hash != key_hash(p.key):
        return f"passage {p.key} lies under the hash of another key"
    if p.end - p.start != len(p.text):
        return f"passage {p.key} has a span of {p.end - p.start}, but {len(p.text)} characters"
    if len(row.encoded) != max(1, -(-row.tokens // row.layout.compression_ratio)):
        return f"passage {p.key} has {len(row.encoded)} latents for {row.tokens} tokens"
    return None


def sure_name(fragment: Fragment, row: int) -> str | None:
    """The document of a damaged row, where its key still fits its hash."""
    try:
        key = fragment.key(row)
        return key.document_id if key_hash(key) == fragment.key_hash(row) else None
    except DamagedError:
        return None


class SoundRows:
    """Key hash and place of every sound row: 12 bytes each."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._names: list[str] = []
        self._pieces: list[np.ndarray] = []
        self._filled = 0

    _KIND = np.dtype([("hash", "u8"), ("row", "i4")])

    def begin(self, entry: FragmentEntry) -> None:
        self._trim()
        self._names.append(entry.name)
        self._pieces.append(np.empty(entry.rows - len(entry.deleted), self._KIND))
        self._filled = 0

    def add(self, place: Place, row: StoredPassage) -> None:
        key = row.passage.key
        self._pieces[-1][self._filled] = key_hash(key), place[1]
        self._filled += 1
        self.totals += row_totals(row)

    def sorted_hashes(self) -> np.ndarray:
        self._trim()
        return np.sort(np.concatenate([NO_HASHES, *(piece["hash"] for piece in self._pieces)]))

    def places(self, hashes: np.ndarray) -> Iterator[Place]:
        """Where the rows of these key hashes are."""
        for name, piece in zip(self._names, self._pieces, strict=True):
            for row in piece["row"][np.isin(piece["hash"], hashes)]:
                yield name, int(row)

    def _trim(self) -> None:
        if self._pieces:
            self._pieces[-1] = self._pieces[-1][: self._filled]


class Documents:
    """Puts rows together as documents. Most follow one another, and are checked on the way; the places of
    others are noted: 20 bytes each, and the fragment's name once.

    scattered: hash of the document, and place of the row.
    """

    def __init__(self) -> None:
        self.scattered: list[tuple[int, Place]] = []
        self._open: list[tuple[Place, StoredPassage]] = []

    def add(self, place: Place, row: StoredPassage) -> None:
        key = row.passage.key
        if self._open:
            before = self._open[-1][1].passage.key
            if key != (before.document_id, before.ordinal + 1):
                self.close()
        self._open.append((place, row))
        if row.last:
            self.close()

    def close(self) -> None:
        """No row follows that belongs to those before."""
        if self._open and document_trouble([row for _, row in self._open]) is not None:
            name = self._open[0][1].passage.key.document_id
            document = key_hash(PassageKey(name, 0))
            self.scattered += [(document, place) for place, _ in self._open]
        self._open = []


def document_trouble(rows: list[StoredPassage]) -> str | None:
    """What keeps these passages, in order, from being the document that was added."""
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
