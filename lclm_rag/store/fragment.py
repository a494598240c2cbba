"""Fragments: immutable, uncompressed Arrow IPC files of passages.

A writer makes fragments of one record batch. Larger ones, which compaction makes, have several; all but the
last have as many rows as the first, so that a row is found without looking at the others.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from lclm_rag.checkpoint import Space
from lclm_rag.errors import DamagedError
from lclm_rag.storage import Folder, MappedFile
from lclm_rag.storage.local import nothing_needed
from lclm_rag.store.codecs import FLOATS, Bytes, CodecName, decode, encode, latent_bytes
from lclm_rag.types import Metadata, Passage, PassageKey

if TYPE_CHECKING:
    import torch

__all__ = [
    "FORMAT_VERSION",
    "Fragment",
    "Layout",
    "StoredPassage",
    "WrittenFragment",
    "decode_latents",
    "key_hash",
    "keys_checksum",
    "write_fragment",
]

FORMAT_VERSION = 4
"""The version of the format of fragments; that of manifests is another."""

# Metadata written by an earlier version may have NaN and infinity, which no JSON can hold: they are missing.
_read_metadata = json.JSONDecoder(parse_constant=lambda name: None).decode

_END_BYTES = 64 * 1024
"""What is fetched from an end of a remote file: Arrow's schema, batch header and footer are there."""

_MOST_BESIDE = 4 * 2**20
"""So much beside the latents is fetched at once: it takes no longer than the requests for parts of it."""


@dataclass(frozen=True)
class Layout:
    """What all fragments of a version have in common; kept in each fragment's schema metadata.

    Attributes:
        codec: The byte format of the latents; see `lclm_rag.store.codecs`.
        space: The space that the latents are in.
        width: The number of coordinates of a latent.
        fingerprint: The fingerprint of the encoder that computed the latents.
        compression_ratio: The number of source tokens for one latent.
    """

    codec: CodecName
    space: Space
    width: int
    fingerprint: str
    compression_ratio: int

    @property
    def latent_bytes(self) -> int:
        """The size of one encoded latent, in bytes."""
        return latent_bytes(self.codec, self.width)

    def schema(self) -> pa.Schema:
        """The Arrow schema of a fragment: the columns, in the order in which they lie in the file.

        key_hash comes first, so that looking up keys reads one stretch of each fragment. checksum is that of
        the row (`StoredPassage.checksum`). last is 1 in a document's last passage, otherwise 0. The schema's
        metadata holds the format version and the fields of this layout.
        """
        return _schema(self)


# Large types, with offsets of 64 bits, for columns that may hold more than 2 GiB in one fragment.
_COLUMNS = {
    "key_hash": pa.uint64(),
    "checksum": pa.uint64(),
    "ordinal": pa.int32(),
    "last": pa.uint8(),
    "start": pa.int64(),
    "end": pa.int64(),
    "tokens": pa.int32(),
    "document_hash": pa.binary(32),
    "document_id": pa.large_string(),
    "header": pa.large_string(),
    "text": pa.large_string(),
    "metadata": pa.large_string(),
}


@cache
def _schema(layout: Layout) -> pa.Schema:
    latent = pa.field("item", pa.binary(layout.latent_bytes), nullable=False)
    types = {**_COLUMNS, "latents": pa.large_list(latent)}
    fields = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
    metadata = {k: str(v) for k, v in vars(layout).items()}
    return pa.schema(fields, metadata={"format_version": str(FORMAT_VERSION), **metadata})


@dataclass(frozen=True)
class StoredPassage:
    """A passage as the store keeps it.

    Attributes:
        passage: The passage.
        tokens: The number of source tokens, by the encoder's tokenizer, including the header's.
        document_hash: `Document.content_hash()` of the passage's document, 32 bytes.
        last: Whether it is the last passage of its document.
        encoded: The encoded latents, uint8 [n_latents, layout.latent_bytes]. Read from a store, they are a
            view of the mapped file.
        layout: How the latents are encoded.
    """

    passage: Passage
    tokens: int
    document_hash: bytes
    last: bool
    encoded: Bytes
    layout: Layout

    @classmethod
    def encode(
        cls,
        passage: Passage,
        tokens: int,
        document_hash: bytes,
        last: bool,
        latents: torch.Tensor,
        layout: Layout,
    ) -> StoredPassage:
        """A passage with its latents encoded.

        Args:
            passage: See the class.
            tokens: See the class.
            document_hash: See the class.
            last: See the class.
            latents: Floats, [n_latents, layout.width], n_latents ≥ 1.
            layout: Its codec encodes the latents.

        Raises:
            StoreError: If the codec cannot hold the latents.
        """
        return cls(passage, tokens, document_hash, last, encode(latents, layout.codec), layout)

    @property
    def latents(self) -> torch.Tensor:
        """The decoded latents, [n_latents, width].

        bf16 and fp16 keep their dtype and share the stored memory; int8 and int4 become float32.
        """
        return decode(self.encoded, self.layout.codec, self.layout.width)

    @property
    def bytes(self) -> int:
        """About the size that the passage takes in a file, in bytes."""
        return self.encoded.nbytes + self.passage.characters

    def checksum(self) -> int:
        """XXH3 (64 bits) over every field of the row: reading it notices any changed byte."""
        p = self.passage
        metadata = json.dumps(dict(p.metadata), ensure_ascii=False)
        numbers = (p.key.ordinal, p.start, p.end, self.tokens, int(self.last))
        texts = (p.key.document_id, p.header, p.text, metadata)
        return _row_checksum(numbers, self.document_hash, [t.encode() for t in texts], self.encoded)


def _row_checksum(
    numbers: Sequence[int], document_hash: bytes, texts: Sequence[bytes], encoded: Bytes
) -> int:
    digest = xxhash.xxh3_64(struct.pack("<5q", *numbers))
    digest.update(document_hash)
    for text in texts:
        digest.update(struct.pack("<q", len(text)))
        digest.update(text)
    digest.update(encoded.data)
    return digest.intdigest()


def decode_latents(
    rows: Sequence[StoredPassage], dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    """Decode the latents of several rows.

    Args:
        rows: Rows of one layout.
        dtype: The dtype that int8 and int4 are decoded to; None for float32. The `FLOATS` keep their own.

    Returns:
        The latents of each row, [n_latents, width]. Those of the `FLOATS` share the stored memory; those of
        int8 and int4 are decoded all at once.
    """
    if not rows:
        return []
    layout = rows[0].layout
    if layout.codec in FLOATS:
        return [row.latents for row in rows]
    joined = np.concatenate([row.encoded for row in rows])
    decoded = decode(joined, layout.codec, layout.width, dtype)
    return list(decoded.split([len(row.encoded) for row in rows]))


def key_hash(key: PassageKey) -> int:
    """The hash (64 bits) by which a passage is looked up; the key itself is compared afterwards."""
    text = f"{key.document_id}\0{key.ordinal}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def keys_checksum(hashes: bytes | memoryview) -> str:
    """XXH3 (64 bits, hexadecimal) over the key hashes of a fragment.

    A row's checksum does not cover its key hash, by which a passage is looked up before any row is read.

    Args:
        hashes: The key hashes of all rows (uint64 each), as bytes.
    """
    return xxhash.xxh3_64_hexdigest(hashes)


@dataclass(frozen=True)
class WrittenFragment:
    """What a manifest says about a fragment's file.

    Attributes:
        rows: The number of rows.
        latents: The number of latents.
        tokens: The number of source tokens.
        bytes: The file's size.
        sha256: The SHA-256 of the file, hexadecimal.
        keys_offset: Where in the file the key hashes begin (uint64 for each row), in bytes; 0 if there are
            several batches, so that they do not lie together.
        keys_checksum: `keys_checksum` of the key hashes.
    """

    rows: int
    latents: int
    tokens: int
    bytes: int
    sha256: str
    keys_offset: int
    keys_checksum: str


def write_fragment(
    folder: Folder, name: str, batches: Iterable[Sequence[StoredPassage]]
) -> WrittenFragment:
    """Write rows to a new file, which is whole and durable before it gets its name.

    If writing fails, nothing is left behind. One batch at a time is held in memory.

    Args:
        folder: The folder of the store's fragments.
        name: The file's name.
        batches: Rows of one layout, at least one: a record batch each. All but the last have as many as the
            first.

    Returns:
        What a manifest says about the file.
    """
    return folder.write(name, partial(_fill, batches))


def _fill(batches: Iterable[Sequence[StoredPassage]], path: Path) -> WrittenFragment:
    lengths: list[int] = []
    latents = tokens = 0
    keys = xxhash.xxh3_64()
    batches = iter(batches)
    first = next(batches)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, first[0].layout.schema()) as writer,
    ):
        for rows in chain([first], batches):
            if lengths and lengths[-1] != lengths[0]:
                raise ValueError(f"a batch of {lengths[-1]} rows after one of {lengths[0]}")
            batch = _to_batch(rows)
            writer.write_batch(batch)
            keys.update(memoryview(batch.column("key_hash").buffers()[1])[: 8 * len(rows)])
            lengths.append(len(rows))
            latents += sum(len(row.encoded) for row in rows)
            tokens += sum(row.tokens for row in rows)
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return WrittenFragment(
        rows=sum(lengths),
        latents=latents,
        tokens=tokens,
        bytes=path.stat().st_size,
        sha256=digest,
        keys_offset=_keys_offset(path) if len(lengths) == 1 else 0,
        keys_checksum=keys.hexdigest(),
    )


def _keys_offset(path: Path) -> int:
    file = pa.memory_map(str(path)).read_buffer()
    keys = pa.ipc.open_file(pa.BufferReader(file)).get_batch(0).column("key_hash").buffers()[1]
    offset: int = keys.address - file.address
    return offset


def _to_batch(rows: Sequence[StoredPassage]) -> pa.RecordBatch:
    schema = rows[0].layout.schema()
    passages = [row.passage for row in rows]
    columns: dict[str, list[Any]] = {
        "key_hash": [key_hash(p.key) for p in passages],
        "checksum": [row.checksum() for row in rows],
        "ordinal": [p.key.ordinal for p in passages],
        "last": [int(row.last) for row in rows],
        "start": [p.start for p in passages],
        "end": [p.end for p in passages],
        "tokens": [row.tokens for row in rows],
        "document_hash": [row.document_hash for row in rows],
        "document_id": [p.key.document_id for p in passages],
        "header": [p.header for p in passages],
        "text": [p.text for p in passages],
        "metadata": [json.dumps(dict(p.metadata), ensure_ascii=False) for p in passages],
    }
    arrays: list[pa.Array] = [pa.array(v, schema.field(n).type) for n, v in columns.items()]
    latents = schema.field("latents").type
    encoded = np.concatenate([row.encoded for row in rows])
    values = pa.Array.from_buffers(
        latents.value_type, len(encoded), [None, pa.py_buffer(encoded.reshape(-1))]
    )
    offsets = np.cumsum([0, *(len(row.encoded) for row in rows)])
    arrays.append(pa.LargeListArray.from_arrays(pa.array(offsets), values, type=latents))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# Columns of numbers, with their formats in struct's letters.
_FIXED = {
    name: struct.Struct(f"<{kind}")
    for name, kind in {
        "key_hash": "Q",
        "checksum": "Q",
        "ordinal": "i",
        "last": "B",
        "start": "q",
        "end": "q",
        "tokens": "i",
    }.items()
}
_TEXTS = ("document_id", "header", "text", "metadata")
_OFFSETS = struct.Struct("<2q")
# Of columns whose values are all of one size: how many bytes that is.
_SIZES = {**{name: number.size for name, number in _FIXED.items()}, "document_hash": 32}


class _Stretch(NamedTuple):
    """Where a column's buffer begins in the file, and its size, in bytes."""

    begin: int
    size: int


class _Columns:
    """Where the columns of one record batch lie in the file.

    Numbers and not views of the file, because making those would be most of what opening a fragment takes.

    Attributes:
        rows: The number of rows.
        values: The values of each column; those of texts and latents lie one after another.
        offsets: Where each row's values begin and end within them, for texts and latents.

    Args:
        batch: The batch.
        file: The mapped file.
        where: Its path or URL.
    """

    def __init__(self, batch: pa.RecordBatch, file: pa.Buffer, where: str) -> None:
        start, size = file.address, file.size

        def stretch(name: str, buffer: pa.Buffer | None) -> _Stretch:
            """Empty if there is no such buffer."""
            if buffer is None or not buffer.size:
                return _Stretch(0, 0)
            found = _Stretch(buffer.address - start, buffer.size)
            if not 0 <= found.begin <= found.begin + found.size <= size:
                raise DamagedError(f"Fragment {where} is damaged: {name} lies outside the file.")
            return found

        self.rows: int = batch.num_rows
        self.values: dict[str, _Stretch] = {}
        self.offsets: dict[str, _Stretch] = {}
        for name, column in zip((*_COLUMNS, "latents"), batch.columns, strict=True):
            # Arrow's order: whether each row is there, the offsets if there are any, the values; those of
            # the latents, which are a column of their own, again after whether each is there.
            _, *buffers = column.buffers()
            self.values[name] = stretch(name, buffers[-1])
            if len(buffers) > 1:
                self.offsets[name] = stretch(name, buffers[0])


class Fragment:
    """A fragment, opened through a memory map; only the bytes that a call needs are looked at.

    Rows are counted from 0. Methods that read a row raise DamagedError if its bytes make no sense.

    Args:
        file: The mapped file.
        where: The file's path or URL, for error messages; its last part is the fragment's name.
        layout: The layout that the file must have.
        written: What a manifest says about the file; None if that is not known.
        number: The number by which key runs name it; None if that is not known.

    Raises:
        DamagedError: If the file cannot be read, or has another layout or another number of rows.
    """

    def __init__(
        self,
        file: MappedFile,
        where: str,
        layout: Layout,
        written: WrittenFragment | None = None,
        number: int | None = None,
    ) -> None:
        self.number = number
        self._file = file
        self._bytes = memoryview(file.buffer).cast("B")
        self._where = where
        self._layout = layout
        self._whole = file.need is nothing_needed
        self._columns: dict[int, _Columns] = {}
        self._sound: set[int] = set()
        try:
            self._open(written)
            self.rows = self._count() if written is None or self._whole else written.rows
        except (OSError, ValueError, MemoryError, struct.error, pa.ArrowException) as error:
            file.forget()
            reason = str(error).partition("\n")[0].rstrip(".")
            raise DamagedError(f"Fragment {where} cannot be read: {reason}.") from error
        if written is not None and written.rows != self.rows:
            raise DamagedError(
                f"Fragment {where} has {self.rows:,} rows, and the manifest says {written.rows:,}."
            )

    def _open(self, written: WrittenFragment | None) -> None:
        """Read the schema, and where the batches are."""
        buffer, size = self._file.buffer, self._file.buffer.size
        alone = written is not None and written.keys_offset > 0
        beside = 0 if written is None else size - written.latents * self._layout.latent_bytes
        if alone:
            self._file.need(0, min(size, _head_bytes(beside)))
            # After its first eight bytes an Arrow file is a stream, up to the footer: one batch is found
            # without that, which spares a request, or a page of a disk.
            reader = pa.ipc.open_stream(pa.BufferReader(buffer.slice(8)))
        else:
            self._file.need(max(0, size - _END_BYTES), size)
            reader = pa.ipc.open_file(pa.BufferReader(buffer))
        # The schema is compared before a batch is read: the batch's bytes are only columns of the right types
        # if it is this schema.
        if not reader.schema.equals(self._layout.schema(), check_metadata=True):
            raise DamagedError(f"Fragment {self._where} does not have the layout of its store.")
        self._read_batch: Callable[[int], pa.RecordBatch] = (
            (lambda number: reader.read_next_batch()) if alone else reader.get_batch
        )
        self._batches: int = 1 if alone else reader.num_record_batches
        self._blocks: list[tuple[int, int]] = []
        if not alone and not self._whole:
            head = _head_bytes(beside * 9 // 8 // max(1, self._batches))
            blocks = _blocks(buffer)
            self._blocks = [(at, min(size, max(stop, at + head))) for at, stop in blocks]
        self._guessed = self._batches > 1 and written is not None and not self._whole
        if self._guessed and written is not None:
            # The first batch that is read will tell.
            self._each = -(-written.rows // self._batches)
        else:
            self._each = self._batch(0).rows

    def _count(self) -> int:
        return (self._batches - 1) * self._each + self._batch(self._batches - 1).rows

    def _batch(self, number: int) -> _Columns:
        found = self._columns.get(number)
        if found is None:
            if self._blocks:
                self._file.need(*self._blocks[number])
            batch = self._read_batch(number)
            found = self._columns[number] = _Columns(batch, self._file.buffer, self._where)
        return found

    def _at(self, row: int) -> tuple[_Columns, int]:
        """The columns that hold a row, and its number in them."""
        if self._batches == 1:
            return self._columns[0], row
        each = self._each
        number, at = self._batch_of(row)
        try:
            found = self._batch(number)
            if self._guessed:
                last = number == self._batches - 1
                self._each = (self.rows - found.rows) // number if last else found.rows
                self._guessed = False
            # Compared, because another thread may have set it right meanwhile.
            if self._each != each:
                number, at = self._batch_of(row)
                found = self._batch(number)
        except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
            raise self.damaged(row, "its batch cannot be read") from error
        return found, at

    def _batch_of(self, row: int) -> tuple[int, int]:
        """The number of a row's batch, and that of the row in it."""
        number, at = divmod(row, self._each) if self._each else (-1, 0)
        if not 0 <= number < self._batches:
            raise self.damaged(row, "it is not there")
        return number, at

    def fetch(self, rows: Sequence[int], *, latents: bool) -> None:
        """Fetch what reading some rows needs, all at the same time. On this machine everything is there.

        Args:
            rows: The rows' numbers.
            latents: Whether the latents are to be read, too.
        """
        if self._whole:
            return
        # What is damaged is fetched again, or told, when the row is read.
        with suppress(DamagedError):
            if self._blocks and self._each:
                batches = {row // self._each for row in rows if row < self.rows}
                self._file.need_all([self._blocks[number] for number in sorted(batches)])
            self._file.need_all([each for row in rows for each in self._where_numbers(row)])
            self._file.need_all([each for row in rows for each in self._where_values(row, latents)])

    def expect(self, row: int, *, latents: bool) -> None:
        """Have a disk read a row's text, and its latents.

        Args:
            row: The row's number.
            latents: Whether the latents are to be read, too.
        """
        with suppress(DamagedError):  # It is told when the row is read.
            of_latents, of_text = self.where(row)
            for start, stop in (of_text, of_latents) if latents else (of_text,):
                self._file.expect(start, stop)

    def _where_numbers(self, row: int) -> Iterator[tuple[int, int]]:
        """Where a row's numbers begin and end in the file, and the offsets of its texts and latents."""
        columns, at = self._at(row)
        for name, size in _SIZES.items():
            begin = columns.values[name].begin + size * at
            yield begin, begin + size
        for offsets in columns.offsets.values():
            yield offsets.begin + 8 * at, offsets.begin + 8 * (at + 2)

    def _where_values(self, row: int, latents: bool) -> Iterator[tuple[int, int]]:
        """Where a row's texts begin and end in the file, and its latents."""
        columns, at = self._at(row)
        for name in (*_TEXTS, "latents") if latents else _TEXTS:
            yield self._span(columns, at, name, row)

    def evicted(self) -> bool:
        """Whether the fragment should be opened again before more of it is read."""
        return self._file.evicted()

    def key(self, row: int) -> PassageKey:
        """The key of a row's passage."""
        return PassageKey(self._text("document_id", row), self._number("ordinal", row))

    def key_hash(self, row: int) -> int:
        """The key hash that is noted for a row."""
        return self._number("key_hash", row)

    def key_hashes(self) -> np.ndarray:
        """The key hashes that are noted for all rows, uint64 [rows]."""
        return self._all("key_hash", np.uint64)

    def ordinals(self) -> np.ndarray:
        """The positions of all rows' passages in their documents, int32 [rows]."""
        return self._all("ordinal", np.int32)

    def _all(self, name: str, kind: Any) -> np.ndarray:
        found = []
        for number in range(self._batches):
            columns = self._at(number * self._each)[0]
            begin, size = columns.values[name]
            self._need(begin, size)
            count = min(columns.rows, size // _SIZES[name])
            found.append(np.frombuffer(self._bytes, kind, count, begin))
        joined = np.concatenate(found)
        if len(joined) < self.rows:
            raise self.damaged(len(joined), f"its {name} is not there")
        return joined

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return self._where.rpartition("/")[2]

    @property
    def keys_offset(self) -> int:
        """Where in the file the key hashes begin, in bytes; 0 if they do not lie together."""
        return self._batch(0).values["key_hash"].begin if self._batches == 1 else 0

    @property
    def keys_checksum(self) -> str:
        """`keys_checksum` of the key hashes that the file holds."""
        return keys_checksum(self.key_hashes().data)

    def document_hash(self, row: int) -> bytes:
        """`Document.content_hash()` of the document of a row's passage."""
        begin = self._place("document_hash", row)
        return bytes(self._bytes[begin : begin + _SIZES["document_hash"]])

    def tokens(self, row: int) -> int:
        """The number of source tokens of a row's passage, including its header's."""
        return self._number("tokens", row)

    def ordinal(self, row: int) -> int:
        """The position of a row's passage in its document."""
        return self._number("ordinal", row)

    def end(self, row: int) -> int:
        """Where a row's passage ends in the document's text (exclusive), in characters."""
        return self._number("end", row)

    def metadata(self, row: int) -> Metadata:
        """The metadata of a row's passage, alone."""
        try:
            found: Metadata = _read_metadata(self._text("metadata", row))
        except ValueError as error:
            raise self.damaged(row, "metadata are no JSON") from error
        return found

    def is_last(self, row: int) -> bool:
        """Whether a row's passage is the last of its document."""
        return bool(self._number("last", row))

    def latent_count(self, row: int) -> int:
        """The number of latents in a row."""
        columns, at = self._at(row)
        begin, stop = self._span(columns, at, "latents", row)
        return (stop - begin) // self._layout.latent_bytes

    def read(self, row: int) -> StoredPassage:
        """Read one passage and check its row's checksum.

        Args:
            row: The row's number.

        Returns:
            The passage. Its latents are a view of the mapped file, which stays valid as long as it is held.

        Raises:
            DamagedError: If the row is not what was written.
        """
        try:
            return self._read(row)
        except DamagedError:
            if not self._file.forget():
                raise
        # The damage may be in the bytes that were fetched, or the object may have been repaired since: the
        # bytes are forgotten above, and fetched again. All rows must be checked again then.
        self._sound.clear()
        return self._read(row)

    def _read(self, row: int) -> StoredPassage:
        texts = [self._text_bytes(name, row) for name in _TEXTS]
        encoded = self._encoded(row)
        names = ("ordinal", "start", "end", "tokens", "last")
        numbers = [self._number(name, row) for name in names]
        document_hash = self.document_hash(row)
        if row not in self._sound:
            if _row_checksum(numbers, document_hash, texts, encoded) != self._checksum(row):
                raise self.damaged(row, "its checksum does not match")
            self._sound.add(row)
        ordinal, start, end, tokens, last = numbers
        document_id, header, text, metadata = (each.decode() for each in texts)
        key = PassageKey(document_id, ordinal)
        passage = Passage(key, start, end, text, _read_metadata(metadata), header)
        return StoredPassage(passage, tokens, document_hash, bool(last), encoded, self._layout)

    def passage(self, row: int) -> Passage:
        """Read one passage without its latents.

        The row's checksum is not checked, because it also covers the latents.

        Args:
            row: The row's number.

        Raises:
            DamagedError: If the row points outside the file, a text is not UTF-8, or the metadata are not
                JSON.
        """
        try:
            ordinal, start, end = (self._number(n, row) for n in ("ordinal", "start", "end"))
            document_id, header, text, metadata = (self._text(name, row) for name in _TEXTS)
            key = PassageKey(document_id, ordinal)
            return Passage(key, start, end, text, _read_metadata(metadata), header)
        except ValueError as error:
            raise self.damaged(row, "metadata are no JSON") from error

    def where(self, row: int) -> list[tuple[int, int]]:
        """Where in the file a row's latents and its text begin and end, in bytes; neither is looked at."""
        columns, at = self._at(row)
        return [self._span(columns, at, name, row) for name in ("latents", "text")]

    def read_all(self) -> Iterator[StoredPassage]:
        """All rows in order."""
        return map(self.read, range(self.rows))

    def _checksum(self, row: int) -> int:
        return self._number("checksum", row)

    def _encoded(self, row: int) -> Bytes:
        columns, at = self._at(row)
        begin, stop = self._span(columns, at, "latents", row)
        self._need(begin, stop)
        found = np.frombuffer(self._bytes, np.uint8, stop - begin, begin)
        return found.reshape(-1, self._layout.latent_bytes)

    def _text(self, name: str, row: int) -> str:
        try:
            return self._text_bytes(name, row).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(row, f"{name} is no text") from error

    def _text_bytes(self, name: str, row: int) -> bytes:
        columns, at = self._at(row)
        begin, stop = self._span(columns, at, name, row)
        self._need(begin, stop)
        return bytes(self._bytes[begin:stop])

    def _number(self, name: str, row: int) -> int:
        found: int = _FIXED[name].unpack_from(self._bytes, self._place(name, row))[0]
        return found

    def _place(self, name: str, row: int) -> int:
        """Where in the file a row's value of one of the `_SIZES` begins, in bytes; it is fetched."""
        columns, at = self._at(row)
        begin, size = columns.values[name]
        each = _SIZES[name]
        if not 0 <= each * at <= size - each:
            raise self.damaged(row, f"its {name} is not there")
        begin += each * at
        self._need(begin, begin + each)
        return begin

    def _span(self, columns: _Columns, at: int, name: str, row: int) -> tuple[int, int]:
        """Where a row's text or latents begin and end in the file, in bytes.

        The offsets are checked: nothing else keeps a damaged one from pointing outside the column.
        """
        begin, size = columns.offsets[name]
        if not 0 <= 8 * at <= size - _OFFSETS.size:
            raise self.damaged(row, f"its {name} is not there")
        begin += 8 * at
        self._need(begin, begin + _OFFSETS.size)
        first, stop = _OFFSETS.unpack_from(self._bytes, begin)
        begin, size = columns.values[name]
        if name == "latents":
            each = self._layout.latent_bytes
            first, stop = first * each, stop * each
        if not 0 <= first <= stop <= size:
            raise self.damaged(row, f"{name} points outside the file")
        return begin + first, begin + stop

    def _need(self, start: int, stop: int) -> None:
        """Fetch bytes of the file, if it is not all there."""
        if not self._whole:
            self._file.need(start, stop)

    def damaged(self, row: int, what: str) -> DamagedError:
        """The error for a row that is not what was written.

        Args:
            row: The row's number.
            what: What is wrong with it.
        """
        return DamagedError(
            f"Row {row} of fragment {self._where} is damaged: {what}. lclm-rag verify lists what is, and "
            "verify --repair makes room for adding it again."
        )


def _head_bytes(beside: int) -> int:
    """How much of a batch is fetched at its beginning: if it is not too much, all but its latents."""
    return beside if _END_BYTES < beside <= _MOST_BESIDE else _END_BYTES


def _blocks(file: pa.Buffer) -> list[tuple[int, int]]:
    """Where the metadata of each record batch begin and end in a file, as its footer says.

    pyarrow reads them, but does not say where they are, and what is not fetched cannot be read. The footer is
    a FlatBuffers table (Arrow's File.fbs); its fourth field are the batches, a vector of structs of 24 bytes.
    """
    (length,) = struct.unpack_from("<i", file, file.size - 10)
    footer = memoryview(file)[max(0, file.size - 10 - length) : file.size - 10]
    (root,) = struct.unpack_from("<I", footer)
    (back,) = struct.unpack_from("<i", footer, root)
    (field,) = struct.unpack_from("<H", footer, root - back + 4 + 2 * 3)
    (away,) = struct.unpack_from("<I", footer, root + field)
    vector = root + field + away
    (count,) = struct.unpack_from("<I", footer, vector)
    blocks = []
    for at in range(count):
        begin, size = struct.unpack_from("<qi", footer, vector + 4 + 24 * at)
        if not 0 <= begin <= begin + size <= file.size:
            raise ValueError("a batch lies outside the file")
        blocks.append((begin, begin + size))
    return blocks
