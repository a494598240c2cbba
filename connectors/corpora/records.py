"""Turns one record (a JSON object, a row of a table) into a document, or an error that says what is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from uuid import UUID

from lclm_rag.connectors.corpora.items import Item
from lclm_rag.connectors.corpora.messages import is_unicode, kind_of_value, name_list
from lclm_rag.errors import CorpusError
from lclm_rag.types import Document, MetadataValue

__all__ = ["Columns", "document_from_record", "number_in", "read_records"]

_DEFAULT_ID_COLUMN = "id"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_VALUE_SHOWN = 40
"""How many characters of a bad value error messages show."""


@dataclass(frozen=True)
class Columns:
    """Which field of a record (column of a table) holds what.

    Attributes:
        text: The field with the text.
        id: The field with the id.
        metadata: The fields to keep as metadata; None for every other field that holds a scalar or a list of
            scalars.
        numbers: Those fields of the metadata whose texts become numbers.
    """

    text: str
    id: str
    metadata: tuple[str, ...] | None
    numbers: tuple[str, ...] = ()

    @property
    def id_is_required(self) -> bool:
        """Whether records must have the id column.

        A column that the user chose must exist, so that a misspelt one does not go unnoticed.
        """
        return self.id != _DEFAULT_ID_COLUMN


def read_records(records: Iterable[object], name: str | None, columns: Columns) -> Iterator[Item]:
    """Read records: one document for each mapping.

    Args:
        records: The records.
        name: The beginning of ids made from numbers: without an id, a record's id is "<name>:<number>". None
            if every record must have its own id.
        columns: Which field holds what.

    Yields:
        Numbers from 1, and documents or errors.
    """
    for number, record in enumerate(records, 1):
        where = f"record {number}" if name is None else f"{name}, record {number}"
        try:
            if not isinstance(record, Mapping):
                raise CorpusError(
                    f"{where}: {kind_of_value(record)}; give mappings of names to values."
                )
            default_id = None if name is None else f"{name}:{number}"
            yield number, document_from_record(record, columns, default_id, where)
        except CorpusError as error:
            yield number, error


def document_from_record(
    record: Mapping[str, object], columns: Columns, default_id: str | None, where: str
) -> Document:
    """Turn a record into a document.

    Args:
        record: The record.
        columns: Which field holds what.
        default_id: The id of a record without one; None if it must have one.
        where: The record's place ("file, line 3"), with which every error message begins.

    Raises:
        CorpusError: When the record cannot become a document.
    """
    document_id = _id(record, columns, default_id, where)
    text, metadata = _text(record, columns, where), _metadata(record, columns, where)
    try:
        return Document(document_id, text, metadata)
    except ValueError as error:
        raise CorpusError(f"{where}: {error}") from error


def _text(record: Mapping[str, object], columns: Columns, where: str) -> str:
    if columns.text not in record:
        raise CorpusError(
            f"{where}: no field {columns.text!r}, only {name_list(record)}; "
            "say which field holds the text (--text-column)."
        )
    text = record[columns.text]
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: field {columns.text!r} is {kind_of_value(text)}, not text; "
            "mend the record or say which field holds the text (--text-column)."
        )
    if not text.strip():
        raise CorpusError(
            f"{where}: field {columns.text!r} is empty; leave the record out or give it text."
        )
    _require_unicode(text, columns.text, where)
    return text


def _id(record: Mapping[str, object], columns: Columns, default_id: str | None, where: str) -> str:
    value = record.get(columns.id)
    if value is None:
        if default_id is None or columns.id_is_required:
            raise CorpusError(
                f"{where}: no id in field {columns.id!r}, the fields are {name_list(record)}; "
                "give the record an id or say which field holds it (--id-column)."
            )
        return default_id
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        raise CorpusError(
            f"{where}: the id in field {columns.id!r} is {kind_of_value(value)}; "
            "make it a text or a whole number."
        )
    if value == "":
        raise CorpusError(
            f"{where}: the id in field {columns.id!r} is empty; give the record an id."
        )
    _require_unicode(str(value), columns.id, where)
    return str(value)


def _metadata(
    record: Mapping[str, object], columns: Columns, where: str
) -> dict[str, MetadataValue]:
    values = _with_numbers(_metadata_candidates(record, columns), columns, where)
    if columns.metadata is None:
        wanted = {name: value for name, value in values.items() if _is_kept_by_default(value)}
    else:
        wanted = {name: values[name] for name in columns.metadata if name in values}
    for name in wanted:
        _require_unicode(name, name, where)
    return {name: _as_json(value, name, where) for name, value in wanted.items()}


def _metadata_candidates(record: Mapping[str, object], columns: Columns) -> dict[str, object]:
    """The fields of the record and those of an object in its field `metadata`, without nulls and NaN.

    If a name is in both, the record's own field counts. NaN is how data frames express "missing".
    """
    inner = record.get("metadata")
    own = (
        record.items()
        if columns.metadata is not None
        else ((k, v) for k, v in record.items() if k not in (columns.text, columns.id))
    )
    merged: dict[str, object] = {}
    for items in (inner.items() if isinstance(inner, Mapping) else (), own):
        merged.update((k, v) for k, v in items if v is not None and v == v)
    return merged


def _with_numbers(values: dict[str, object], columns: Columns, where: str) -> dict[str, object]:
    numbers = {
        name: _number(values[name], name, where) for name in columns.numbers if name in values
    }
    return {k: v for k, v in (values | numbers).items() if v is not None}


def _number(value: object, name: str, where: str) -> object:
    """The value as a number, None if it is empty; CorpusError if it is something else."""
    match value:
        case str():
            number = number_in(value)
            if number is not None or not value.strip():
                return number
            rest = "…" if len(value) > _VALUE_SHOWN else ""
            actual = f"{value[:_VALUE_SHOWN]!r}{rest}"
        case int() | float() | Decimal() if not isinstance(value, bool):
            return value
        case _:
            actual = kind_of_value(value)
    raise CorpusError(
        f"{where}: field {name!r} is to be a number and is {actual}; write it as in 2020 or -3.5, leave "
        "it empty, or take the field out of --numbers."
    )


def number_in(text: str) -> int | float | None:
    """The number that a text stands for, as JSON would read it; None if it is not a number.

    "007" is not, because leading zeros make a code; neither is a number too large for a float.
    """
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    try:
        number: int | float = json.loads(text)
        return number if math.isfinite(float(number)) else None
    except (ValueError, OverflowError):  # thousands of digits
        return None


def _is_kept_by_default(value: object) -> bool:
    """Whether metadata keeps such a value by default: scalars and lists of them.

    Lists with decimal numbers are not kept, because they are usually vectors of some model.
    """
    if isinstance(value, list):
        return all(
            part is None or (_is_scalar(part) and not isinstance(part, float)) for part in value
        )
    return _is_scalar(value)


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float | Decimal | date | time | UUID)


def _as_json(value: object, name: str, where: str) -> MetadataValue:
    """The value as metadata holds it: times in ISO 8601, decimals as floats, NaN as null.

    Raises CorpusError for a value that JSON cannot hold.
    """
    match value:
        case str():
            _require_unicode(value, name, where)
            return value
        case float() | Decimal():
            number = float(value)
            if math.isinf(number):
                raise CorpusError(
                    f"{where}: field {name!r} is infinite, which metadata cannot hold; "
                    "use a finite number."
                )
            return None if math.isnan(number) else number
        case None | bool() | int():
            return value
        case date() | time():
            return value.isoformat()
        case UUID():
            return str(value)
        case list() | tuple():
            return [_as_json(part, name, where) for part in value]
        case Mapping():
            for key in value:
                _require_unicode(str(key), name, where)
            return {str(key): _as_json(part, name, where) for key, part in value.items()}
    raise CorpusError(
        f"{where}: field {name!r} was asked for as metadata but holds {kind_of_value(value)}; "
        "metadata holds what JSON can."
    )


def _require_unicode(text: str, name: str, where: str) -> None:
    if not is_unicode(text):
        raise CorpusError(
            f"{where}: field {name!r} has half a surrogate pair, which UTF-8 cannot hold; "
            "mend the escapes \\ud800 to \\udfff in it."
        )
