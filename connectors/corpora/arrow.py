"""Reads Parquet and Arrow files: one document for each row. Importing this module imports pyarrow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import run_end_decode

from lclm_rag.connectors.corpora.arrow_columns import (
    needed_columns,
    unusable_columns,
    without_nanoseconds,
)
from lclm_rag.connectors.corpora.files import CorpusFile
from lclm_rag.connectors.corpora.items import Item, NotRead
from lclm_rag.connectors.corpora.knowledge_bases import is_fragment
from lclm_rag.connectors.corpora.messages import first_line, printable
from lclm_rag.connectors.corpora.records import Columns, document_from_record
from lclm_rag.errors import CorpusError
from lclm_rag.types import Document

__all__ = ["batch_documents", "columns_not_read", "count_rows", "read_arrow", "read_parquet"]

# Few rows, because one of them may hold a whole book.
_BATCH_ROWS = 256
# A value that a dictionary holds once is there once for each row when it is decoded: a few megabytes of file
# could ask for more than the memory holds. A batch has fewer rows where it might need more than this.
_BATCH_BYTES = 1 << 30
# Column chunks are read in pieces of this size; without it, each chunk of a row group is loaded whole.
_BUFFER_BYTES = 1 << 20
# What is fetched from an object store at once: a request takes about as long as this many bytes.
_FETCH_BYTES = 1 << 18


def read_parquet(file: CorpusFile, columns: Columns) -> Iterator[Item]:
    """Read a Parquet file: one document for each row.

    Only columns that become part of a document are read, one batch of rows at a time.

    Args:
        file: The file.
        columns: Which column holds what.

    Yields:
        Row numbers from 1, and documents or errors; without an id in the row, its id is "<name>:<row>".
        Errors of the whole file have the number 0.
    """

    def batches() -> Iterator[pa.RecordBatch | NotRead]:
        with (
            _source(file) as source,
            pq.ParquetFile(source, buffer_size=_BUFFER_BYTES) as opened,
        ):
            needed = needed_columns(opened.schema_arrow, columns, printable(file.path), partition)
            yield from columns_not_read(opened.schema_arrow, columns, printable(file.path))
            for group in range(opened.num_row_groups):
                rows = _batch_rows(opened.metadata.row_group(group), needed)
                yield from opened.iter_batches(rows, row_groups=[group], columns=needed)

    partition = _partition(file.name)
    return _file_documents(batches(), file, columns, partition, "Parquet")


def _batch_rows(group: pq.RowGroupMetaData, needed: Sequence[str]) -> int:
    """How many rows of a row group to read at once, by what its columns may decode to."""
    chunks = [group.column(i) for i in range(group.num_columns)]
    wanted = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in needed]
    a_row: int = sum(
        chunk.total_uncompressed_size * max(1, chunk.num_values // max(1, group.num_rows))
        for chunk in wanted
        if chunk.has_dictionary_page
    )
    rows: int = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, a_row)))
    return rows


def read_arrow(file: CorpusFile, columns: Columns) -> Iterator[Item]:
    """Read a file in the IPC file format (Feather) or the IPC stream format, as `read_parquet` does.

    A fragment of a latent store is an error, not a corpus.

    Args:
        file: The file.
        columns: Which column holds what.

    Yields:
        As `read_parquet`.
    """

    def batches() -> Iterator[pa.RecordBatch | NotRead]:
        with _source(file) as source:
            schema = _ipc_reader(source).schema
            if is_fragment(schema.metadata):
                raise CorpusError(
                    f"{printable(file.path)}: it is a fragment of a latent store, not a corpus; name the "
                    "documents that the store was made from."
                )
            needed = needed_columns(schema, columns, printable(file.path), partition)
            yield from columns_not_read(schema, columns, printable(file.path))
            options = pa.ipc.IpcReadOptions(
                included_fields=[schema.get_field_index(name) for name in needed]
            )
            for batch in _ipc_batches(_ipc_reader(source, options)):
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS)

    partition = _partition(file.name)
    return _file_documents(batches(), file, columns, partition, "Arrow")


def count_rows(file: CorpusFile) -> int:
    """The number of rows of a Parquet or Arrow file.

    Raises:
        OSError: When the file cannot be opened.
        ValueError: When the file cannot be read as Parquet or Arrow.
    """
    try:
        with _source(file) as source:
            if file.kind == "parquet":
                rows: int = pq.read_metadata(source).num_rows
                return rows
            return sum(batch.num_rows for batch in _ipc_batches(_ipc_reader(source)))
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _file_documents(
    batches: Iterable[pa.RecordBatch | NotRead],
    file: CorpusFile,
    columns: Columns,
    partition: dict[str, object],
    format_name: str,
) -> Iterator[Item]:
    where = printable(file.path)
    row = 0
    try:
        for batch in batches:
            if isinstance(batch, NotRead):
                yield 0, batch
                continue
            yield from batch_documents(batch, columns, file.name, where, row, partition)
            row += batch.num_rows
    except CorpusError as error:
        yield 0, error
    except (OSError, pa.ArrowException) as error:
        after = f" after row {row}" if row else ""
        yield (
            0,
            CorpusError(
                f"{where}: not readable as {format_name}{after} ({first_line(error)}); "
                "write the file anew."
            ),
        )


def columns_not_read(schema: pa.Schema, columns: Columns, where: str) -> Iterator[NotRead]:
    """What to say of columns that metadata cannot hold, if none were named that it is to hold.

    Args:
        schema: The table's schema.
        columns: Which column holds what.
        where: The table, for the message.

    Yields:
        Nothing, or one message.
    """
    unusable = unusable_columns(schema) if columns.metadata is None else []
    if unusable:
        are = "column is" if len(unusable) == 1 else "columns are"
        yield NotRead(
            f"{where}: {', '.join(unusable)}: the {are} not read, metadata cannot hold such values."
        )


def batch_documents(
    batch: pa.RecordBatch,
    columns: Columns,
    name: str,
    where: str,
    rows_before: int,
    more: Mapping[str, object] | None = None,
) -> Iterator[Item]:
    """Read a batch of rows: one document for each.

    Args:
        batch: The rows.
        columns: Which column holds what.
        name: The beginning of ids made from row numbers.
        where: The place, for error messages.
        rows_before: How many rows came before the batch.
        more: Fields to add to every record that has none of the same name.

    Yields:
        Row numbers from `rows_before` + 1, and documents or errors.
    """
    more = more or {}
    try:
        records = _records(batch, where)
    except CorpusError:
        # A row holds a value that Python cannot represent: convert row by row, to lose only that one.
        records = None
    for i in range(batch.num_rows):
        number = rows_before + i + 1
        here = f"{where}, row {number}"
        item: Document | CorpusError
        try:
            record = records[i] if records is not None else _records(batch.slice(i, 1), here)[0]
            item = document_from_record({**more, **record}, columns, f"{name}:{number}", here)
        except CorpusError as error:
            item = error
        yield number, item


def _records(batch: pa.RecordBatch, where: str) -> list[dict[str, object]]:
    """The rows as a JSON reader would give them, except for times and decimals."""
    names: list[str] = batch.schema.names
    columns = [
        _values(column, name, where) for name, column in zip(names, batch.columns, strict=True)
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.Array, name: str, where: str) -> Sequence[object]:
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        elif pa.types.is_run_end_encoded(column.type):
            column = run_end_decode(column)
        # Otherwise it would depend on pandas whether nanoseconds can be read, and as what.
        if (kind := without_nanoseconds(column.type)) != column.type:
            column = column.cast(kind, safe=False)
        values: list[object] = column.to_pylist(maps_as_pydicts="strict")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{where}: column {name!r} has a text that is not UTF-8 (byte "
            f"0x{error.object[error.start]:02x} at offset {error.start}, from 0); "
            "write the file anew with valid text."
        ) from error
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:
        raise CorpusError(
            f"{where}: column {name!r} has a value that cannot be read ({first_line(error)}); "
            "mend it or leave the column out of the metadata."
        ) from error
    return values


@contextmanager
def _source(file: CorpusFile) -> Iterator[Any]:
    """The file as an object that pyarrow can read from, local or in an object store."""
    path = file.path
    if not isinstance(path, Path):
        source = pa.PythonFile(path.open("rb", _FETCH_BYTES), "r")
    elif file.kind == "arrow" and path.stat().st_size:
        # One batch may be the whole file. If it is mapped, the system can reclaim its pages at any time.
        source = pa.memory_map(str(path))
    else:
        source = pa.OSFile(str(path))
    with source:
        yield source


def _ipc_reader(source: Any, options: pa.ipc.IpcReadOptions | None = None) -> Any:
    source.seek(0)
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    open_ipc = pa.ipc.open_file if is_file else pa.ipc.open_stream
    return open_ipc(source, options=options)


def _ipc_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def _partition(name: str) -> dict[str, object]:
    """The values in the folder names of a Hive-partitioned data set: "lang=en/year=2024/part-0.parquet".

    Whole numbers become integers; a value with leading zeros is a code, and stays text.
    """
    pairs = (folder.partition("=") for folder in name.split("/")[:-1] if "=" in folder)
    values = {unquote(key): unquote(value) for key, _, value in pairs}
    return {
        key: int(value) if re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value) else value
        for key, value in values.items()
        if key and value != "__HIVE_DEFAULT_PARTITION__"
    }
