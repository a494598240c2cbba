"""Files of records, of which any one is read directly: JSONL, Parquet and Arrow."""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lclm_rag.cache import in_cache, writable_cache
from lclm_rag.errors import CorpusError
from lclm_rag.printable import first_line
from lclm_rag.training.examples import COLUMNS

__all__ = ["SUFFIXES", "Lines", "RecordFile", "Rows", "open_records", "read_group"]

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".ipc")
"""The names of files with records end so."""

_INDEXED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Lines:
    """A JSONL file.

    Attributes:
        path: The file.
        offsets: Where each line that is not blank begins; mapped from a file in the cache.
    """

    path: Path
    offsets: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def sizes(self) -> tuple[int, ...]:
        """A single group of all records."""
        return (len(self.offsets),)

    def read(self, index: int) -> dict[str, Any]:
        """Read a record.

        Args:
            index: Which, from 0.

        Returns:
            The record.

        Raises:
            ValueError: When the line is not a JSON object.
        """
        with self.path.open("rb") as lines:
            lines.seek(int(self.offsets[index]))
            line = lines.readline()
        try:
            record = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
        except UnicodeDecodeError as error:
            raise ValueError("The line is not UTF-8; convert the file.") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The line is not valid JSON: {error}.") from error
        if not isinstance(record, dict):
            raise ValueError("The line is JSON, but not an object.")
        return record

    def place(self, index: int) -> str:
        """Name a record by file and line.

        Args:
            index: Which, from 0.
        """
        left, line = int(self.offsets[index]), 1
        with self.path.open("rb") as lines:
            while left:
                chunk = lines.read(min(left, 1 << 22))
                line += chunk.count(b"\n")
                left -= len(chunk)
        return f"{self.path}, line {line}"


@dataclass(frozen=True)
class Rows:
    """A Parquet or Arrow file.

    Attributes:
        path: The file.
        sizes: The number of rows of each row group or record batch.
    """

    path: Path
    sizes: tuple[int, ...]

    def place(self, index: int) -> str:
        """Name a record by file and row, from 1.

        Args:
            index: Which, from 0.
        """
        return f"{self.path}, row {index + 1}"

    def read(self, index: int, group: Callable[[Path, int], Any]) -> dict[str, Any]:
        """Read a record.

        Args:
            index: Which, from 0.
            group: `read_group`, or what keeps some of its results.

        Returns:
            The record.

        Raises:
            ValueError: When the row cannot be read.
        """
        number = 0
        while index >= self.sizes[number]:
            index -= self.sizes[number]
            number += 1
        try:
            row: dict[str, Any] = group(self.path, number).slice(index, 1).to_pylist()[0]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"The row cannot be read: {_line(error)}.") from error
        return row


RecordFile = Lines | Rows


def open_records(path: Path) -> RecordFile:
    """Open a file of records. The lines of JSONL are counted once, and their places kept in the cache.

    Args:
        path: The file.

    Returns:
        The file.

    Raises:
        CorpusError: When it cannot be read, or is of another kind; the message names it.
    """
    if path.suffix not in SUFFIXES:
        raise CorpusError(
            f"{path}: not a file of records; use {', '.join(SUFFIXES)}, not compressed, so that any record "
            "can be read directly."
        )
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            return Lines(path, _line_offsets(path))
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
                names, sizes = file.schema_arrow.names, [group.num_rows for group in groups]
        else:
            reader, is_file = _arrow(path)
            count = reader.num_record_batches if is_file else 0
            batches = (reader.get_batch(n) for n in range(count)) if is_file else reader
            names, sizes = reader.schema.names, [batch.num_rows for batch in batches]
    except pa.ArrowException as error:
        raise CorpusError(
            f"{path}: not readable as {'Parquet' if path.suffix == '.parquet' else 'an Arrow file'} "
            f"({_line(error)}); write it anew."
        ) from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or _line(error)}).") from error
    if not set(names) & set(COLUMNS):
        raise CorpusError(f"{path}: it has none of the columns {', '.join(COLUMNS)}.")
    return Rows(path, tuple(sizes))


def read_group(path: Path, number: int) -> Any:
    """Read a row group or a record batch: the columns that examples are made from.

    Args:
        path: The file.
        number: Which, from 0.

    Returns:
        The rows, as pyarrow has them. Those of an Arrow file are mapped, unless it is compressed.
    """
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            present = set(file.schema_arrow.names)
            return file.read_row_group(number, columns=[c for c in COLUMNS if c in present])
    reader, is_file = _arrow(path)
    # To pass over a batch of a stream costs next to nothing.
    batch = reader.get_batch(number) if is_file else next(islice(reader, number, None))
    return batch.select([c for c in COLUMNS if c in batch.schema.names])


def _arrow(path: Path) -> tuple[Any, bool]:
    """A reader of an Arrow file or stream, mapped; whether it is a file, whose batches have numbers."""
    source = pa.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source), is_file


def _line_offsets(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    found = path.stat()
    named = repr((str(path.resolve()), found.st_size, found.st_mtime_ns))
    name = sha256(named.encode()).hexdigest()[:32]
    index = in_cache("lines", name)
    if index is None:
        index = writable_cache("lines") / name
        # Not with `tempfile`, whose files nobody else can read: the cache may be shared.
        temporary = index.with_name(f"{name}-{uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as written:
                _write_offsets(path, written)
            temporary.replace(index)  # Other processes may be doing the same.
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if not index.stat().st_size:
        return np.zeros(0, np.int64)
    return np.memmap(index, np.int64, "r")


def _write_offsets(path: Path, written: Any) -> None:
    offset, offsets = 0, array("q")
    with path.open("rb") as lines:
        # Lines end at "\n" only: other line separators may stand inside a JSON string.
        for line in lines:
            words = line if offset else line.removeprefix(codecs.BOM_UTF8)
            if words and not words.isspace():
                offsets.append(offset)
            offset += len(line)
            if len(offsets) == _INDEXED_AT_ONCE:
                offsets.tofile(written)
                offsets = array("q")
    offsets.tofile(written)


def _line(error: BaseException) -> str:
    return first_line(error).rstrip(".")
