"""A fragment: one immutable, uncompressed Arrow IPC file of passages, read by memory map."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lclm_rag.checkpoint import Space
from lclm_rag.documents import Passage, PassageKey
from lclm_rag.errors import StoreError
from lclm_rag.store.codecs import CodecName, decode, encode, latent_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["Fragment", "Layout", "StoredPassage", "key_hash", "write_fragment"]

FORMAT_VERSION = 2
_ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class Layout:
    """What every fragment of a store has in common; kept in each fragment's schema metadata.

    codec, space, width: how latents are stored. fingerprint: of the encoder that made them.
    compression_ratio: source tokens for one latent.
    """

    codec: CodecName
    space: Space
    width: int
    fingerprint: str
    compression_ratio: int

    def schema(self) -> pa.Schema:
        latent = pa.binary(latent_bytes(self.codec, self.width))
        metadata = {k: str(v) for k, v in vars(self).items()}
        return pa.schema(
            [
                pa.field("key_hash", pa.uint64(), nullable=False),
                pa.field("document_id", pa.string(), nullable=False),
                pa.field("ordinal", pa.int32(), nullable=False),
                pa.field("start", pa.int64(), nullable=False),
                pa.field("end", pa.int64(), nullable=False),
                pa.field("tokens", pa.int32(), nullable=False),
                pa.field("header", pa.string(), nullable=False),
                # Large: the rows of a batch may hold more than 2 GiB of either.
                pa.field("text", pa.large_string(), nullable=False),
                pa.field("metadata", pa.large_string(), nullable=False),
                pa.field("document_hash", pa.binary(32), nullable=False),
                pa.field("latents", pa.large_list(pa.field("item", latent, nullable=False))),
            ],
            metadata={"format_version": str(FORMAT_VERSION), **metadata},
        )


@dataclass(frozen=True)
class StoredPassage:
    """A passage as the store keeps it.

    tokens: source tokens (of the encoder's tokenizer), its header's among them. document_hash:
    `Document.content_hash()`.
    latents: [n_latents, width]; when read, in the codec's dtype and backed by the memory map.
    """

    passage: Passage
    tokens: int
    document_hash: bytes
    latents: torch.Tensor


def key_hash(key: PassageKey) -> int:
    """64 bits by which a passage is looked up; the key itself decides."""
    text = f"{key.document_id}\0{key.ordinal}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def write_fragment(path: Path, rows: Sequence[StoredPassage], layout: Layout) -> tuple[int, str]:
    """Write and sync a fragment under a temporary name, then rename it: (bytes, SHA-256).

    Nothing is left behind where writing fails.
    """
    temporary = path.with_suffix(".tmp")
    schema = layout.schema()
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for start in range(0, len(rows), _ROWS_PER_BATCH):
                writer.write_batch(_to_batch(rows[start : start + _ROWS_PER_BATCH], layout, schema))
        with temporary.open("rb+") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
            os.fsync(f.fileno())
        size = temporary.stat().st_size
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size, digest


def _to_batch(rows: Sequence[StoredPassage], layout: Layout, schema: pa.Schema) -> pa.RecordBatch:
    import torch

    offsets = np.zeros(len(rows) + 1, np.int64)
    offsets[1:] = np.cumsum([len(row.latents) for row in rows])
    stored = encode(torch.cat([row.latents for row in rows]), layout.codec)
    latent_type = schema.field("latents").type.value_type
    values = pa.Array.from_buffers(latent_type, len(stored), [None, pa.py_buffer(stored)])
    passages = [row.passage for row in rows]
    columns = {
        "key_hash": [key_hash(p.key) for p in passages],
        "document_id": [p.key.document_id for p in passages],
        "ordinal": [p.key.ordinal for p in passages],
        "start": [p.start for p in passages],
        "end": [p.end for p in passages],
        "tokens": [row.tokens for row in rows],
        "header": [p.header for p in passages],
        "text": [p.text for p in passages],
        "metadata": [json.dumps(dict(p.metadata), ensure_ascii=False) for p in passages],
        "document_hash": [row.document_hash for row in rows],
    }
    arrays: list[pa.Array] = [pa.array(v, schema.field(n).type) for n, v in columns.items()]
    arrays.append(
        pa.LargeListArray.from_arrays(pa.array(offsets), values, type=schema.field("latents").type)
    )
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class Fragment:
    """A fragment opened by memory map; rows are counted from 0."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self._layout = layout
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(f"Fragment {path} cannot be read: {error}.") from error
        expected = layout.schema()
        if not self._file.schema.equals(expected, check_metadata=True):
            raise StoreError(f"Fragment {path} does not have the layout of its store.")
        self._batches: dict[int, pa.RecordBatch] = {}

    def key_hashes(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """uint64 [rows]."""
        batches = [self._batch(i) for i in range(self._file.num_record_batches)]
        return np.concatenate([b.column("key_hash").to_numpy() for b in batches])

    def ordinals(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """int32 [rows]: the place of each passage in its document."""
        batches = [self._batch(i) for i in range(self._file.num_record_batches)]
        return np.concatenate([b.column("ordinal").to_numpy() for b in batches])

    def key(self, row: int) -> PassageKey:
        batch, i = self._locate(row)
        return PassageKey(
            batch.column("document_id")[i].as_py(), batch.column("ordinal")[i].as_py()
        )

    def document_hash(self, row: int) -> bytes:
        batch, i = self._locate(row)
        return bytes(batch.column("document_hash")[i].as_py())

    def read(self, row: int) -> StoredPassage:
        """One passage. Its latents are a view of the mapped file, valid as long as they are held."""
        batch, i = self._locate(row)
        values = {
            n: batch.column(n)[i].as_py()
            for n in ("start", "end", "tokens", "header", "text", "metadata")
        }
        passage = Passage(
            key=self.key(row),
            start=values["start"],
            end=values["end"],
            text=values["text"],
            metadata=json.loads(values["metadata"]),
            header=values["header"],
        )
        return StoredPassage(
            passage, values["tokens"], self.document_hash(row), self._latents(batch, i)
        )

    def _latents(self, batch: pa.RecordBatch, i: int) -> torch.Tensor:
        column = batch.column("latents")
        first, last = column.offsets[i].as_py(), column.offsets[i + 1].as_py()
        size = latent_bytes(self._layout.codec, self._layout.width)
        buffer = column.values.buffers()[1]
        stored = np.frombuffer(buffer, np.uint8, (last - first) * size, first * size)
        with warnings.catch_warnings():
            # The map is read-only, and so is what torch makes of it: nobody here writes to it.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return decode(stored.reshape(-1, size), self._layout.codec)

    def rows(self) -> Iterator[StoredPassage]:
        """All rows in order."""
        count = sum(self._batch(i).num_rows for i in range(self._file.num_record_batches))
        yield from (self.read(row) for row in range(count))

    def _locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        return self._batch(row // _ROWS_PER_BATCH), row % _ROWS_PER_BATCH

    def _batch(self, index: int) -> pa.RecordBatch:
        if index not in self._batches:
            self._batches[index] = self._file.get_batch(index)
        return self._batches[index]
