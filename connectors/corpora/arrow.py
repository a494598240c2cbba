"""Parquet → documents: one for each row. Importing this module imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lclm_rag.connectors.corpora.records import (
    CorpusError,
    Fields,
    Item,
    document_from_record,
    name_list,
    shown,
)
from lclm_rag.documents import Document

__all__ = ["count_rows", "read_parquet"]

# Small, because one row may hold a whole book.
_BATCH_ROWS = 256
# Read column chunks piece by piece; without it each chunk of a row group is loaded whole.
_BUFFER_BYTES = 1 << 20


def read_parquet(path: Path, fields: Fields) -> Iterator[Item]:
    """A document for each row; only columns that become part of it are read, a batch at a time.

    Dates and times become ISO 8601 texts (to the microsecond), decimals become floats.
    """
    row = 0
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            columns = _columns(file.schema_arrow, fields, shown(path))
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for item in _batch_documents(batch, fields, path, row):
                    row += 1
                    yield row, item
    except CorpusError as error:
        yield 0, error
    except (OSError, pa.ArrowException) as error:
        # Arrow's messages run over several lines.
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        after = f" after row {row}" if row else ""
        problem = f"{shown(path)}: not readable as Parquet{after} ({reason}); write the file anew."
        yield 0, CorpusError(problem)


def count_rows(path: Path) -> int:
    """Rows, from the file's footer; raises OSError or ValueError where it cannot be read."""
    try:
        rows: int = pq.read_metadata(path).num_rows
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    return rows


def _columns(schema: pa.Schema, fields: Fields, where: str) -> list[str]:
    """The columns to read; CorpusError where one is missing or has a type that cannot be used."""
    types = {field.name: field.type for field in schema}
    _check_text_and_id(types, fields, where)
    inner = {f.name: f.type for f in _struct_fields(types.get("metadata"))}
    for name in fields.metadata or ():
        kind = types.get(name, inner.get(name))
        if kind is None:
            raise CorpusError(
                f"{where}: no column {name!r}, which was asked for as metadata, "
                f"only {name_list([*types, *inner])}; leave it out or name another."
            )
        if not _is_scalar(kind):
            raise CorpusError(
                f"{where}: column {name!r} was asked for as metadata but is {kind}; "
                "metadata holds texts, numbers, booleans and times."
            )
    scalars = [name for name, kind in types.items() if _is_scalar(kind)]
    wanted = scalars if fields.metadata is None else fields.metadata
    needed = {fields.text, fields.id, *wanted, *(("metadata",) if inner else ())}
    return [name for name in types if name in needed]


def _check_text_and_id(types: dict[str, pa.DataType], fields: Fields, where: str) -> None:
    if fields.text not in types:
        raise CorpusError(
            f"{where}: no column {fields.text!r}, only {name_list(types)}; "
            "say which column holds the text."
        )
    if not _is_text(types[fields.text]):
        raise CorpusError(
            f"{where}: column {fields.text!r} is {types[fields.text]}, not text; "
            "cast it to string or say which column holds the text."
        )
    if fields.id not in types:
        if fields.id_is_required:
            raise CorpusError(
                f"{where}: no column {fields.id!r}, only {name_list(types)}; "
                "say which column holds the id."
            )
        return
    kind = _value_type(types[fields.id])
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise CorpusError(
            f"{where}: column {fields.id!r} is {types[fields.id]}, which cannot be an id; "
            "cast it to string or say which column holds the id."
        )


def _batch_documents(
    batch: pa.RecordBatch, fields: Fields, path: Path, rows_before: int
) -> Iterator[Document | CorpusError]:
    try:
        records = _records(batch, shown(path))
    except CorpusError:
        # Some row holds a value that Python cannot: go row by row, to lose no other.
        records = None
    for i in range(batch.num_rows):
        number = rows_before + i + 1
        where = f"{shown(path)}, row {number}"
        item: Document | CorpusError
        try:
            record = records[i] if records is not None else _records(batch.slice(i, 1), where)[0]
            item = document_from_record(record, fields, f"{path.name}:{number}", where)
        except CorpusError as error:
            item = error
        yield item


def _records(batch: pa.RecordBatch, where: str) -> list[dict[str, object]]:
    """The rows as a JSON reader would give them."""
    names: list[str] = batch.schema.names
    columns = [
        _struct_values(column, where)
        if name == "metadata" and pa.types.is_struct(column.type)
        else _values(column, name, where)
        for name, column in zip(names, batch.columns, strict=True)
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _struct_values(column: pa.StructArray, where: str) -> list[dict[str, object]]:
    """The scalar fields of a struct column."""
    children = {
        field.name: _values(child, field.name, where)
        for field, child in zip(column.type, column.flatten(), strict=True)
        if _is_scalar(field.type)
    }
    return [{name: values[i] for name, values in children.items()} for i in range(len(column))]


def _values(column: pa.Array, name: str, where: str) -> Sequence[object]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    # Python's times stop at the microsecond.
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    elif pa.types.is_time64(kind) and kind.unit == "ns":
        column = column.cast(pa.time64("us"), safe=False)
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{where}: column {name!r} has a text that is not UTF-8 (byte "
            f"0x{error.object[error.start]:02x} at offset {error.start}, from 0); "
            "write the file anew with valid text."
        ) from error
    except (ValueError, OverflowError) as error:
        raise CorpusError(
            f"{where}: column {name!r} has a value that cannot be read ({error}); "
            "mend it or leave the column out of the metadata."
        ) from error
    if _is_time(kind):
        return [None if v is None else v.isoformat() for v in values]  # type: ignore[attr-defined]
    if pa.types.is_decimal(kind):
        return [None if v is None else float(v) for v in values]  # type: ignore[arg-type]
    return values


def _struct_fields(kind: pa.DataType | None) -> list[pa.Field]:
    return list(kind) if kind is not None and pa.types.is_struct(kind) else []


def _is_scalar(kind: pa.DataType) -> bool:
    """Whether metadata can hold it; binary, durations, lists, maps and structs it cannot."""
    kind = _value_type(kind)
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    checks = (*is_number, pa.types.is_boolean, pa.types.is_null, _is_text, _is_time)
    return any(check(kind) for check in checks)


def _is_time(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_date, pa.types.is_time, pa.types.is_timestamp))


def _is_text(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(_value_type(kind)) for check in checks)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
