"""One record (a JSON object, a Parquet row) → one document, or an error that says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lclm_rag.documents import Document, MetadataValue
from lclm_rag.errors import LclmRagError

__all__ = [
    "CorpusError",
    "Fields",
    "Item",
    "NotRead",
    "document_from_record",
    "is_unicode",
    "name_list",
    "not_utf8",
    "shown",
    "unreadable",
]

_DEFAULT_ID_FIELD = "id"
_NAMES_SHOWN = 12


class CorpusError(LclmRagError, ValueError):
    """A corpus cannot be read as asked: one sentence names file, line or row, and what to do."""


@dataclass(frozen=True)
class NotRead:
    """A file or folder that is left out by rule, not because it is broken: "path: reason"."""

    message: str


Item = tuple[int, Document | CorpusError | NotRead]
"""What a reader finds: the line or row, from 1 (0: a whole file), and what came of it.

Errors are handed on as values, because a generator that raises cannot go on to the next record.
"""


@dataclass(frozen=True)
class Fields:
    """Which field of a record holds what; `metadata` None stands for all other scalar fields."""

    text: str
    id: str
    metadata: tuple[str, ...] | None

    @property
    def id_is_required(self) -> bool:
        """An id field chosen by hand must be there: a misspelt one must not go unnoticed."""
        return self.id != _DEFAULT_ID_FIELD


def document_from_record(
    record: Mapping[str, object], fields: Fields, default_id: str, where: str
) -> Document:
    """The document that a record stands for; `where` ("file, line 3") begins every CorpusError."""
    return Document(
        id=_id(record, fields, default_id, where),
        text=_text(record, fields, where),
        metadata=_metadata(record, fields, where),
    )


def _text(record: Mapping[str, object], fields: Fields, where: str) -> str:
    if fields.text not in record:
        raise CorpusError(
            f"{where}: no field {fields.text!r}, only {name_list(record)}; "
            "say which field holds the text."
        )
    text = record[fields.text]
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: field {fields.text!r} is {_kind(text)}, not text; "
            "mend the record or say which field holds the text."
        )
    if not text.strip():
        raise CorpusError(
            f"{where}: field {fields.text!r} is empty; leave the record out or give it text."
        )
    _require_unicode(text, fields.text, where)
    return text


def _id(record: Mapping[str, object], fields: Fields, default_id: str, where: str) -> str:
    value = record.get(fields.id)
    if value is None:
        if fields.id_is_required:
            raise CorpusError(
                f"{where}: no id in field {fields.id!r}, the fields are {name_list(record)}; "
                "give the record an id or say which field holds it."
            )
        return default_id
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CorpusError(
            f"{where}: the id in field {fields.id!r} is {_kind(value)}; "
            "make it a text or a whole number."
        )
    if value == "":
        raise CorpusError(
            f"{where}: the id in field {fields.id!r} is empty; give the record an id."
        )
    _require_unicode(str(value), fields.id, where)
    return str(value)


def _metadata(record: Mapping[str, object], fields: Fields, where: str) -> dict[str, MetadataValue]:
    values = _metadata_candidates(record, fields)
    names = values.keys() if fields.metadata is None else fields.metadata
    metadata: dict[str, MetadataValue] = {}
    for name in names:
        value = values.get(name)
        if value is None:
            continue
        if isinstance(value, str | int | float | bool):
            _require_storable(value, name, where)
            metadata[name] = value
        elif fields.metadata is not None:
            raise CorpusError(
                f"{where}: field {name!r} was asked for as metadata but is {_kind(value)}; "
                "metadata holds texts, numbers and booleans."
            )
    return metadata


def _metadata_candidates(record: Mapping[str, object], fields: Fields) -> dict[str, object]:
    """The fields of the record and of an object in its field `metadata`, without nulls and NaN.

    Where a name is in both, the record's own field counts. NaN is how data frames write "missing".
    """
    inner = record.get("metadata")
    own = (
        record.items()
        if fields.metadata is not None
        else ((k, v) for k, v in record.items() if k not in (fields.text, fields.id))
    )
    merged: dict[str, object] = {}
    for items in (inner.items() if isinstance(inner, Mapping) else (), own):
        merged.update((k, v) for k, v in items if v is not None and v == v)
    return merged


def _require_storable(value: MetadataValue, name: str, where: str) -> None:
    _require_unicode(name, name, where)
    if isinstance(value, str):
        _require_unicode(value, name, where)
    elif isinstance(value, float) and math.isinf(value):
        raise CorpusError(
            f"{where}: field {name!r} is infinite, which metadata cannot hold; use a finite number."
        )


def _require_unicode(text: str, name: str, where: str) -> None:
    if not is_unicode(text):
        raise CorpusError(
            f"{where}: field {name!r} has half a surrogate pair, which UTF-8 cannot hold; "
            "mend the escapes \\ud800 to \\udfff in it."
        )


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON and file names may hold what cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start}, from 0)"


def unreadable(path: Path, error: OSError) -> CorpusError:
    reason = error.strerror or str(error)
    return CorpusError(f"{shown(path)}: cannot be read ({reason}); check the file and its rights.")


def shown(path: Path) -> str:
    """The path as text that can always be printed, whatever bytes the file name is made of."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def name_list(names: Iterable[str]) -> str:
    """'a', 'b' and 'c'; long lists are cut."""
    quoted = [repr(name) for name in names]
    if not quoted:
        return "nothing"
    if len(quoted) > _NAMES_SHOWN:
        quoted[_NAMES_SHOWN:] = [f"{len(quoted) - _NAMES_SHOWN} more"]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a decimal number"
        case str():
            return "a text"
        case Mapping():
            return "an object"
        case list():
            return "a list"
    return f"a {type(value).__name__}"
