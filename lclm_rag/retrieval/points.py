"""The layout of a passage as a Qdrant point, and the translation of filters to that layout.

A point's id is a uuid5 of the passage key. Its payload is

    {"document_id": "a", "ordinal": 0, "place": [7, 1200],
     "metadata": {"string": {"lang": "en", "tags": ["a", "B"], "day": "2024-05-01"},
                  "number": {"year": 2000}, "boolean": {"draft": "true"},
                  "date": {"day": "2024-05-01T00:00:00.000000Z"}, "folded": {"tags": ["b"]}}}

`place` is where the store had the passage when the point was written: the number of its fragment, and the
row. It is a hint, which `compact` does not renew.

Metadata are grouped by kind because a Qdrant payload index has a single type. A key that holds a number in
one passage and a string in another gets an index for each kind, and a condition cannot match the other kind
by accident. A string that is written as a date is there a second time, as a point in time; one with upper
case is there again in full case folding. Booleans are stored as words because Edge 0.9 takes MatchValue(True)
for MatchValue(1). Values that filters do not see (objects, null) are left out.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from datetime import date, datetime
from math import inf
from typing import Any, get_args

from lclm_rag.retrieval.filters import (
    And,
    Compare,
    Contains,
    Filter,
    FilterValue,
    In,
    Kind,
    Missing,
    Not,
    OfDocuments,
    Or,
    elements,
    exact_integer,
    finite_number,
    instant,
    ordered_kind,
    value_kind,
)
from lclm_rag.retrieval.index import ScoredKey
from lclm_rag.types import Metadata, MetadataScalar, PassageKey, RowPlace

__all__ = [
    "field_of",
    "metadata_fields",
    "metadata_path",
    "passage_key",
    "payload",
    "point_id",
    "scored_key",
    "translate",
]

_NAMESPACE = uuid.UUID("b314237f-092d-41a6-a160-6e669d075f6f")

# Qdrant's JSON paths cannot hold " and \ even inside quotes; % is escaped to keep the escapes unambiguous.
_ESCAPES = str.maketrans({"%": "%25", '"': "%22", "\\": "%5C"})


def point_id(key: PassageKey) -> str:
    """The id of a passage's point: a uuid5 of its key."""
    return str(uuid.uuid5(_NAMESPACE, f"{key.ordinal}:{key.document_id}"))


def payload(key: PassageKey, metadata: Metadata, place: RowPlace | None = None) -> dict[str, Any]:
    """The payload of a passage's point.

    Raises:
        ValueError: When the id or the metadata hold a string that is not valid Unicode.
    """
    seen = {name: elements(value) for name, value in metadata.items()}
    strings = [e for values in seen.values() for e in values if isinstance(e, str)]
    try:
        for string in (key.document_id, *seen, *strings):
            string.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The id or metadata of passage {str(key)!r} hold {string!r}, not valid Unicode."
        ) from error
    fields: dict[str, dict[str, Any]] = {}
    for name, values in seen.items():
        is_list = isinstance(metadata[name], list | tuple)
        for kind, held in (pair for value in values for pair in _all_held(value)):
            of_kind, escaped = fields.setdefault(kind, {}), name.translate(_ESCAPES)
            if is_list:
                of_kind.setdefault(escaped, []).append(held)
            else:
                of_kind[escaped] = held
    there = {} if place is None else {"place": [*place]}
    return {"document_id": key.document_id, "ordinal": key.ordinal, **there, "metadata": fields}


def passage_key(payload: dict[str, Any] | None) -> PassageKey:
    """The passage key in the payload of a point.

    Raises:
        KeyError: When the point is not a passage.
    """
    found = payload or {}
    return PassageKey(found["document_id"], found["ordinal"])


def scored_key(payload: dict[str, Any] | None, score: float) -> ScoredKey:
    """A hit of a search.

    Raises:
        KeyError: When the point is not a passage.
    """
    place: RowPlace | None = None
    match (payload or {}).get("place"):
        case [int(number), int(row)] if number >= 0 and row >= 0:
            place = RowPlace(number, row)
    return ScoredKey(passage_key(payload), score, place)


def metadata_fields(metadata: Metadata) -> set[tuple[str, str]]:
    """The (JSON path, kind) of each metadata value that a point keeps."""
    return {
        (metadata_path(name, kind), kind)
        for name, value in metadata.items()
        for element in elements(value)
        for kind, _ in _all_held(element)
        if kind != _FOLDED
    }


def metadata_path(name: str, kind: str) -> str:
    """The JSON path of a metadata key's values of this kind in the payload."""
    return f'metadata.{kind}."{name.translate(_ESCAPES)}"'


def field_of(path: str) -> tuple[str, Kind] | None:
    """The key and the kind of a JSON path without quotes; None if it is not the path of a metadata value."""
    parts = path.split(".", 2)
    if len(parts) < 3 or parts[0] != "metadata" or parts[1] not in _KINDS:
        return None
    name = parts[2].replace("%22", '"').replace("%5C", "\\").replace("%25", "%")
    return name, parts[1]  # type: ignore[return-value]  # It is one of _KINDS.


def translate(
    filter: Filter,
    engine: Any,
    range_type: Any,
    time_range_type: Any,
    is_empty: Callable[[str], Any],
) -> Any:
    """Translate a filter into the engine's own type.

    Args:
        filter: The filter.
        engine: The module with Qdrant's condition classes, under the names that qdrant_edge and
            qdrant_client.models share.
        range_type: The engine's class for ranges of floats.
        time_range_type: The engine's class for ranges of points in time.
        is_empty: Makes the engine's condition that the payload has nothing at a path.

    Returns:
        The engine's filter.

    Raises:
        TypeError: When `filter` is not one of `lclm_rag.retrieval.filters`.
    """

    def equal(key: str, value: FilterValue) -> Any:
        if isinstance(value, date):
            time = _time(value)
            path = metadata_path(key, "date")
            return engine.FieldCondition(key=path, range=time_range_type(gte=time, lte=time))
        held, path = _held(value), metadata_path(key, value_kind(value))
        if isinstance(held, str):
            return engine.FieldCondition(key=path, match=engine.MatchValue(value=held))
        number = float(value)
        if not isinstance(held, int) or not exact_integer(held):
            # A range, because MatchValue takes no floats, and 1 must match 1.0.
            return engine.FieldCondition(key=path, range=range_type(gte=number, lte=number))
        # MatchValue alone would be right, but the float index does not support it and would go unused.
        bounds = range_type(gte=math.nextafter(number, -inf), lte=math.nextafter(number, inf))
        near = engine.FieldCondition(key=path, range=bounds)
        exact = engine.FieldCondition(key=path, match=engine.MatchValue(value=held))
        return engine.Filter(must=[near, exact])

    def one_of(key: str, values: tuple[FilterValue, ...]) -> Any:
        strings = [value for value in values if isinstance(value, str)]
        # An empty MatchAny matches nothing, whereas an empty `should` would match everything.
        any_string = engine.FieldCondition(
            key=metadata_path(key, "string"), match=engine.MatchAny(any=strings)
        )
        others = [equal(key, value) for value in values if not isinstance(value, str)]
        return engine.Filter(should=[any_string, *others])

    def condition(filter: Filter) -> Any:
        match filter:
            case And(filters):
                return engine.Filter(must=[condition(part) for part in filters])
            case Or(()):
                return one_of("", ())
            case Or(filters):
                return engine.Filter(should=[condition(part) for part in filters])
            case Not(part):
                return engine.Filter(must_not=[condition(part)])
            case OfDocuments(ids):
                match = engine.MatchAny(any=[*ids])
                return engine.FieldCondition(key="document_id", match=match)
            case In(key, values):
                return one_of(key, values)
            case Contains(key, text, ignore_case):
                match = engine.MatchSubstring(substring=text.casefold() if ignore_case else text)
                kinds = ["string", _FOLDED] if ignore_case else ["string"]
                return engine.Filter(
                    should=[
                        engine.FieldCondition(key=metadata_path(key, kind), match=match)
                        for kind in kinds
                    ]
                )
            case Missing(key):
                paths = [metadata_path(key, kind) for kind in _KINDS]
                return engine.Filter(must=[is_empty(path) for path in paths])
            case Compare(key, "==", value):
                return equal(key, value)
            case Compare(key, "!=", value):
                return engine.Filter(must_not=[equal(key, value)])
            case Compare(key, op, value):
                kind = ordered_kind(value)
                if isinstance(value, str | date):
                    bound = time_range_type(**{_BOUNDS[op]: _time(value)})
                else:
                    bound = range_type(**{_BOUNDS[op]: float(value)})
                return engine.FieldCondition(key=metadata_path(key, kind), range=bound)
        raise TypeError(f"{type(filter).__name__} is not a filter.")

    return engine.Filter(must=[condition(filter)])


_BOUNDS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


_KINDS = get_args(Kind)
_FOLDED = "folded"


def _all_held(value: MetadataScalar) -> Iterator[tuple[str, str | float]]:
    """All that the payload holds of a value of `elements`, by kinds."""
    yield value_kind(value), _held(value)
    if isinstance(value, str):
        if (time := instant(value)) is not None:
            yield "date", _written(time)
        if (folded := value.casefold()) != value:
            yield _FOLDED, folded


def _time(value: FilterValue) -> str:
    time = instant(value)
    assert time is not None  # Filters refuse the others.
    return _written(time)


def _written(time: datetime) -> str:
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _held(value: MetadataScalar) -> str | float:
    """A value of `elements` as the payload holds it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    number = finite_number(value)
    assert number is not None  # `elements` leaves the others out.
    return number
