"""Fragments: immutable, uncompressed Arrow IPC files, each with one record batch of passages."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

# What is fetched from either end of a remote file: Arrow's schema, batch header and footer are there.
# Metadata written by an earlier version may have NaN and infinity, which no JSON can hold: they are missing.
_read_metadata = json.JSONDecoder(parse_constant=lambda name: None).decode

_END_BYTES = 64 * 1024


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
        latent = pa.field("item", pa.binary(self.latent_bytes), nullable=False)
        # Large types, with offsets of 64 bits, for columns that may hold more than 2 GiB in one fragment.
        columns = {
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
            "latents": pa.large_list(latent),
        }
        fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
        metadata = {k: str(v) for k, v in vars(self).items()}
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
        bytes: The file's size.
        sha256: The SHA-256 of the file, hexadecimal.
        keys_offset: Where in the file the key hashes begin (uint64 for each row), in bytes.
        keys_checksum: `keys_checksum` of the key hashes.
    """

    bytes: int
    sha256: str
    keys_offset: int
    keys_checksum: str


def write_fragment(folder: Folder, name: str, rows: Sequence[StoredPassage]) -> WrittenFragment:
    """Write rows to a new file, which is whole and durable before it gets its name.

    If writing fails, nothing is left behind.

    Args:
        folder: The folder of the store's fragments.
        name: The file's name.
        rows: Rows of one layout, at least one.

    Returns:
        What a manifest says about the file.
    """
    return folder.write(name, partial(_fill, _to_batch(rows)))


def _fill(batch: pa.RecordBatch, path: Path) -> WrittenFragment:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    file = pa.memory_map(str(path)).read_buffer()
    written = pa.ipc.open_file(pa.BufferReader(file)).get_batch(0)
    keys = written.column("key_hash").buffers()[1]
    return WrittenFragment(
        bytes=file.size,
        sha256=digest,
        keys_offset=keys.address - file.address,
        keys_checksum=keys_checksum(memoryview(keys)[: 8 * batch.num_rows]),
    )


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


_FIXED = {
    "key_hash": np.uint64,
    "checksum": np.uint64,
    "ordinal": np.int32,
    "last": np.uint8,
    "start": np.int64,
    "end": np.int64,
    "tokens": np.int32,
    "document_hash": np.dtype("V32"),
}
_TEXTS = ("document_id", "header", "text", "metadata")


class Fragment:
    """A fragment, opened through a memory map; only the bytes that a call needs are looked at.

    Rows are counted from 0. Methods that read a row raise DamagedError if its bytes make no sense.

    Args:
        file: The mapped file.
        where: The file's path or URL, for error messages; its last part is the fragment's name.
        layout: The layout that the file must have.

    Raises:
        DamagedError: If the file cannot be read or has another layout.
    """

    def __init__(self, file: MappedFile, where: str, layout: Layout) -> None:
        self._file = file
        self._where = where
        self._layout = layout
        self._whole = file.need is nothing_needed
        size = file.buffer.size
        file.need(0, min(size, _END_BYTES))
        file.need(max(0, size - _END_BYTES), size)
        try:
            reader = pa.ipc.open_file(pa.BufferReader(file.buffer))
            # The schema is compared before the batch is read: the batch's bytes are only columns of the
            # right types if it is this schema.
            if not reader.schema.equals(layout.schema(), check_metadata=True):
                raise DamagedError(f"Fragment {where} does not have the layout of its store.")
            batch = reader.get_batch(0)
        except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
            file.forget()
            reason = str(error).partition("\n")[0].rstrip(".")
            raise DamagedError(f"Fragment {where} cannot be read: {reason}.") from error
        self.rows: int = batch.num_rows
        self._fixed = {name: self._view(batch, name, 1, kind) for name, kind in _FIXED.items()}
        self._offsets = {n: self._view(batch, n, 1, np.int64) for n in (*_TEXTS, "latents")}
        self._texts = {name: self._view(batch, name, 2, np.uint8) for name in _TEXTS}
        # The buffers of a list column: its validity, its offsets, then the validity and data of its values.
        flat = self._view(batch, "latents", 3, np.uint8)
        self._latents = flat[: len(flat) - len(flat) % layout.latent_bytes].reshape(
            -1, layout.latent_bytes
        )
        self._sound: set[int] = set()

    def _view(self, batch: pa.RecordBatch, name: str, buffer: int, kind: Any) -> np.ndarray:
        """A buffer of a column as an array over the mapped file; empty if there is no such buffer."""
        found = batch.column(name).buffers()[buffer]
        if found is None or not found.size:
            return np.empty(0, kind)
        begin = found.address - self._file.buffer.address
        if not 0 <= begin <= begin + found.size <= self._file.buffer.size:
            raise DamagedError(f"Fragment {self._where} is damaged: {name} lies outside the file.")
        return np.frombuffer(found, kind, found.size // np.dtype(kind).itemsize)

    def evicted(self) -> bool:
        """Whether the fragment should be opened again before more of it is read."""
        return self._file.evicted()

    def key(self, row: int) -> PassageKey:
        """The key of a row's passage."""
        return PassageKey(self._text("document_id", row), int(self._number("ordinal", row)))

    def key_hash(self, row: int) -> int:
        """The key hash that is noted for a row."""
        return int(self._number("key_hash", row))

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return self._where.rpartition("/")[2]

    @property
    def address(self) -> int:
        """The address in this process's memory where the file begins."""
        return int(self._file.buffer.address)

    @property
    def keys_offset(self) -> int:
        """Where in the file the key hashes begin, in bytes."""
        address: int = self._fixed["key_hash"].__array_interface__["data"][0]
        return address - self.address

    @property
    def keys_checksum(self) -> str:
        """`keys_checksum` of the key hashes that the file holds."""
        return keys_checksum(self._needed(self._fixed["key_hash"]).data)

    def document_hash(self, row: int) -> bytes:
        """`Document.content_hash()` of the document of a row's passage."""
        return bytes(self._number("document_hash", row))

    def tokens(self, row: int) -> int:
        """The number of source tokens of a row's passage, including its header's."""
        return int(self._number("tokens", row))

    def ordinal(self, row: int) -> int:
        """The position of a row's passage in its document."""
        return int(self._number("ordinal", row))

    def end(self, row: int) -> int:
        """Where a row's passage ends in the document's text (exclusive), in characters."""
        return int(self._number("end", row))

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
        first, stop = self._span("latents", row, len(self._latents))
        return stop - first

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
        numbers = [int(self._number(name, row)) for name in names]
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
            ordinal, start, end = (int(self._number(n, row)) for n in ("ordinal", "start", "end"))
            document_id, header, text, metadata = (self._text(name, row) for name in _TEXTS)
            key = PassageKey(document_id, ordinal)
            return Passage(key, start, end, text, _read_metadata(metadata), header)
        except ValueError as error:
            raise self.damaged(row, "metadata are no JSON") from error

    def where(self, row: int) -> list[tuple[int, int]]:
        """Where in the file a row's latents and its text begin and end, in bytes; neither is looked at."""
        views = [self._latents, self._texts["text"]]
        found = []
        for name, view in zip(("latents", "text"), views, strict=True):
            first, stop = self._span(name, row, len(view))
            begin = view.__array_interface__["data"][0] - self.address
            found.append((begin + first * view.strides[0], begin + stop * view.strides[0]))
        return found

    def read_all(self) -> Iterator[StoredPassage]:
        """All rows in order."""
        return map(self.read, range(self.rows))

    def _checksum(self, row: int) -> int:
        return int(self._number("checksum", row))

    def _encoded(self, row: int) -> Bytes:
        first, stop = self._span("latents", row, len(self._latents))
        return self._needed(self._latents[first:stop])

    def _text(self, name: str, row: int) -> str:
        try:
            return self._text_bytes(name, row).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(row, f"{name} is no text") from error

    def _text_bytes(self, name: str, row: int) -> bytes:
        first, stop = self._span(name, row, len(self._texts[name]))
        return self._needed(self._texts[name][first:stop]).tobytes()

    def _number(self, name: str, row: int) -> Any:
        found = self._needed(self._fixed[name][row : row + 1])
        if not len(found):
            raise self.damaged(row, f"its {name} is not there")
        return found[0]

    def _span(self, name: str, row: int, size: int) -> tuple[int, int]:
        """Where a row's values begin and end in a column.

        The offsets are checked: nothing else keeps a damaged one from pointing outside the file.
        """
        found = self._needed(self._offsets[name][row : row + 2])
        if len(found) < 2:
            raise self.damaged(row, f"its {name} is not there")
        first, stop = map(int, found)
        if not 0 <= first <= stop <= size:
            raise self.damaged(row, f"{name} points outside the file")
        return first, stop

    def _needed(self, view: np.ndarray) -> np.ndarray:
        """The same view, after its bytes have been fetched."""
        if self._whole:
            return view
        start = view.__array_interface__["data"][0] - self._file.buffer.address
        self._file.need(start, start + view.nbytes)
        return view

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
