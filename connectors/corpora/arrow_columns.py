"""Selects the columns of a table to read, and checks their types. Importing this module imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from lclm_rag.connectors.corpora.messages import name_list
from lclm_rag.connectors.corpora.records import Columns
from lclm_rag.errors import CorpusError

__all__ = ["needed_columns", "unusable_columns", "without_nanoseconds"]


def needed_columns(
    schema: pa.Schema, columns: Columns, where: str, elsewhere: Iterable[str] = ()
) -> list[str]:
    """The names of the columns to read, in the schema's order.

    Args:
        schema: The table's schema.
        columns: Which column holds what.
        where: The table, for error messages.
        elsewhere: Names of fields that each row gets from somewhere else, such as the names of folders.

    Raises:
        CorpusError: When a column is missing or has a type that cannot be used.
    """
    if twice := [name for i, name in enumerate(schema.names) if name in schema.names[:i]]:
        raise CorpusError(f"{where}: two columns are called {twice[0]!r}; rename one.")
    types = {field.name: field.type for field in schema}
    _check_text_and_id(types, columns, where)
    inner = {f.name: f.type for f in _struct_fields(types.get("metadata"))}
    known = {**inner, **types}
    # The keys of a map differ from row to row.
    is_open = _is_map_of_fields(types.get("metadata"))
    for name in columns.metadata or ():
        if name not in known and (is_open or name in elsewhere):
            continue
        if name not in known:
            raise CorpusError(
                f"{where}: no column {name!r}, which was asked for as metadata, "
                f"only {name_list([*types, *inner])}; leave it out or name another."
            )
        if not _is_json(known[name]):
            raise CorpusError(
                f"{where}: column {name!r} was asked for as metadata but is {known[name]}; "
                "metadata holds what JSON can, and times."
            )
    for name in columns.numbers:
        if name not in known and name not in elsewhere and not is_open:
            raise CorpusError(
                f"{where}: no column {name!r}, which is to hold numbers (--numbers), "
                f"only {name_list([*types, *inner])}; leave it out or name another."
            )
        if name in known and not _may_be_number(known[name]):
            raise CorpusError(
                f"{where}: column {name!r} is to hold numbers (--numbers) but is {known[name]}; "
                "name columns of texts or numbers."
            )
    by_default = [name for name, kind in types.items() if _is_kept_by_default(kind)]
    wanted = by_default if columns.metadata is None else columns.metadata
    needed = {columns.text, columns.id, *wanted, *(("metadata",) if inner or is_open else ())}
    return [name for name in types if name in needed]


def _check_text_and_id(types: dict[str, pa.DataType], columns: Columns, where: str) -> None:
    if columns.text not in types:
        raise CorpusError(
            f"{where}: no column {columns.text!r}, only {name_list(types)}; "
            "say which column holds the text (--text-column)."
        )
    if not _is_text(types[columns.text]):
        raise CorpusError(
            f"{where}: column {columns.text!r} is {types[columns.text]}, not text; "
            "cast it to string or say which column holds the text (--text-column)."
        )
    if columns.id not in types:
        if columns.id_is_required:
            raise CorpusError(
                f"{where}: no column {columns.id!r}, only {name_list(types)}; "
                "say which column holds the id (--id-column)."
            )
        return
    kind = _value_type(types[columns.id])
    if not (
        _is_text(kind) or _is_uuid(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
    ):
        raise CorpusError(
            f"{where}: column {columns.id!r} is {types[columns.id]}, which cannot be an id; "
            "cast it to string or say which column holds the id (--id-column)."
        )


def _struct_fields(kind: pa.DataType | None) -> list[pa.Field]:
    return list(kind) if kind is not None and pa.types.is_struct(kind) else []


def _is_map_of_fields(kind: pa.DataType | None) -> bool:
    return kind is not None and pa.types.is_map(kind) and _is_json(kind)


def unusable_columns(schema: pa.Schema) -> list[str]:
    """The columns that metadata cannot hold, such as binary values: "'image' (binary)"."""
    return [f"{field.name!r} ({field.type})" for field in schema if not _may_hold_json(field.type)]


def _may_hold_json(kind: pa.DataType) -> bool:
    """Whether JSON can express a type; vectors and objects it can, even if they are not kept by default."""
    kind = _value_type(kind)
    if pa.types.is_struct(kind):
        return all(_may_hold_json(field.type) for field in kind)
    return _is_json(kind)


def without_nanoseconds(kind: pa.DataType) -> pa.DataType:
    """The type with times to the microsecond: Python's have no more."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if isinstance(kind, pa.BaseExtensionType):
        return kind
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        inner = without_nanoseconds(kind.value_type)
        return kind if inner == kind.value_type else inner
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(without_nanoseconds(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(without_nanoseconds(kind.key_type), without_nanoseconds(kind.item_type))
    if _list_item(kind) is None:
        return kind
    inner = without_nanoseconds(kind.value_type)
    if inner == kind.value_type:
        return kind
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner, kind.list_size)
    is_large = pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind)
    return pa.large_list(inner) if is_large else pa.list_(inner)


def _is_kept_by_default(kind: pa.DataType) -> bool:
    """Whether metadata keeps such a column by default: scalars and lists of them.

    Lists of decimal numbers are not kept, because they are usually vectors of some model.
    """
    item = _list_item(kind)
    return _is_scalar(kind) or (
        item is not None and _is_scalar(item) and not pa.types.is_floating(item)
    )


def _is_json(kind: pa.DataType) -> bool:
    """Whether metadata can hold the type; binary values and durations it cannot."""
    item = _list_item(kind)
    if item is not None:
        return _is_json(item)
    if pa.types.is_map(kind):
        return _is_text(kind.key_type) and _is_json(kind.item_type)
    if pa.types.is_struct(kind):
        return all(_is_json(field.type) for field in kind)
    return _is_scalar(kind)


def _list_item(kind: pa.DataType) -> pa.DataType | None:
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    checks = (*lists, types.is_list_view, types.is_large_list_view)
    kind = _value_type(kind)
    return kind.value_type if any(check(kind) for check in checks) else None


def _is_scalar(kind: pa.DataType) -> bool:
    kind = _value_type(kind)
    if _is_uuid(kind):
        return True
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    times = (pa.types.is_date, pa.types.is_time, pa.types.is_timestamp)
    checks = (*numbers, *times, pa.types.is_boolean, pa.types.is_null, _is_text)
    return any(check(kind) for check in checks)


def _may_be_number(kind: pa.DataType) -> bool:
    kind = _value_type(kind)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(check(kind) for check in (*numbers, pa.types.is_null, _is_text))


def _is_text(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(_value_type(kind)) for check in checks)


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, however they are laid down: by dictionary, by runs, as an extension."""
    while not _is_uuid(kind):
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            break
    return kind


def _is_uuid(kind: pa.DataType) -> bool:
    """Whether the type is Arrow's own for UUIDs, whose values are `uuid.UUID`."""
    return getattr(kind, "extension_name", "") == "arrow.uuid"
