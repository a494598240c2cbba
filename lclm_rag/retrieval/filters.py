"""Filters over metadata: one small expression type for all engines.

    field("year") >= 2000
    (field("lang") == "en") & ~field("source").is_in(["forum", "mail"])

Filters mean the same on every engine (`matches` is the reference):

- A key that a passage lacks never matches ==, <, <=, >, >=, `is_in` or `contains`. So `!=` and `~` do
  match it, and so does `is_missing`.
- A list matches if one of its elements does. Null, an empty list and objects count as missing.
- Strings, numbers and booleans are never equal to each other: 1, "1" and True are three values.
- Numbers compare as 64-bit floats: 1 equals 1.0. The exception are whole numbers from 2**53 on, which
  floats cannot tell apart: each equals only the same whole number.
- Metadata numbers that are not finite count as missing.
- A text that is written as a date or a time in ISO 8601 has the order of time, to the microsecond: 2024-05-01
  (which is where that day begins), 2024-05-01T10:00, 2024-05-01 10:00:00.5Z, 2024-05-01T10:00:00+02:00.
  Without a zone it is UTC. `date` and `datetime` compare with such texts as points in time, also with == and
  `is_in`; a text is equal to the same text only.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

from lclm_rag.checks import check_unicode
from lclm_rag.types import Metadata, MetadataScalar, MetadataValue

__all__ = [
    "And",
    "Compare",
    "Contains",
    "Field",
    "Filter",
    "FilterValue",
    "In",
    "Kind",
    "Missing",
    "Not",
    "OfDocuments",
    "Operator",
    "Or",
    "elements",
    "exact_integer",
    "field",
    "finite_number",
    "instant",
    "matches",
    "ordered_kind",
    "value_kind",
]

Operator = Literal["==", "!=", "<", "<=", ">", ">="]
Kind = Literal["string", "number", "boolean", "date"]
"""The kind of a metadata value. Values of different kinds are never equal and have no order.

A text that is written as a date is a string and a date.
"""
FilterValue = MetadataScalar | date
"""What metadata are compared with; a `datetime` is a `date`."""

_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Filter:
    """A condition on a passage's metadata.

    Join filters with `&` and `|`, and negate them with `~`. `field` starts a filter.
    """

    def __and__(self, other: Filter) -> Filter:
        return And((*_parts(self, And), *_parts(other, And)))

    def __or__(self, other: Filter) -> Filter:
        return Or((*_parts(self, Or), *_parts(other, Or)))

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> bool:
        # Otherwise `a and b`, `not a` and `1 < a < 3` would each silently lose half of the expression.
        raise TypeError("A filter is neither true nor false; join filters with & | ~, in brackets.")


@dataclass(frozen=True)
class Compare(Filter):
    """The value of `key` compares with `value` as `op` says.

    Attributes:
        key: The metadata key.
        op: The operator; <, <=, > and >= take numbers and dates.
        value: A string, a finite number, a boolean, a `date` or a `datetime`. A string in ISO 8601 is a date
            for <, <=, > and >=.

    Raises:
        ValueError: When the key is not a string, the operator is unknown, or the value does not suit it.
    """

    key: str
    op: Operator
    value: FilterValue

    def __post_init__(self) -> None:
        _check_key(self.key)
        if self.op not in get_args(Operator):
            known = ", ".join(get_args(Operator))
            raise ValueError(f"A filter cannot compare with {self.op!r}; use one of {known}.")
        _check_value(self.key, self.value)
        if self.op in _ORDERINGS and (
            isinstance(self.value, bool)
            or (isinstance(self.value, str) and instant(self.value) is None)
        ):
            raise ValueError(
                f"{self.key!r} {self.op} {self.value!r}: only numbers and dates have an order in a filter; "
                "give a number, a date such as 2024-01-31 or 2024-01-31T10:00:00Z, or use == or a list of "
                "values."
            )


@dataclass(frozen=True)
class In(Filter):
    """The value of `key` is one of `values`.

    Attributes:
        key: The metadata key.
        values: Strings, finite numbers, booleans, `date`s and `datetime`s, mixed if need be; if empty,
            nothing matches. Any iterable but a string is accepted, and becomes a tuple.

    Raises:
        ValueError: When the key is not a string, `values` is no list of values, or a value has another type.
    """

    key: str
    values: tuple[FilterValue, ...]

    def __post_init__(self) -> None:
        _check_key(self.key)
        if isinstance(self.values, str) or not isinstance(self.values, Iterable):
            raise ValueError(f"{self.key!r} in {self.values!r}: give a list of values.")
        object.__setattr__(self, "values", tuple(self.values))
        for value in self.values:
            _check_value(self.key, value)


@dataclass(frozen=True)
class Contains(Filter):
    """The value of `key` is a string that contains `text`.

    Attributes:
        key: The metadata key.
        text: A string that is not empty.
        ignore_case: Whether upper and lower case are the same, by Unicode's full case folding.

    Raises:
        ValueError: When the key is not a string, or the text is not a string or is empty.
    """

    key: str
    text: str
    ignore_case: bool = False

    def __post_init__(self) -> None:
        _check_key(self.key)
        if not isinstance(self.text, str) or not self.text:
            raise ValueError(
                f"{self.key!r} contains {self.text!r}: give a string that is not empty."
            )


@dataclass(frozen=True)
class Missing(Filter):
    """The passage has no value under `key`.

    Attributes:
        key: The metadata key.

    Raises:
        ValueError: When the key is not a string.
    """

    key: str

    def __post_init__(self) -> None:
        _check_key(self.key)


@dataclass(frozen=True)
class And(Filter):
    """All of `filters` match.

    Attributes:
        filters: The filters; if empty, everything matches.
    """

    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class Or(Filter):
    """At least one of `filters` matches.

    Attributes:
        filters: The filters; if empty, nothing matches.
    """

    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class Not(Filter):
    """`filter` does not match.

    Attributes:
        filter: The filter to negate.
    """

    filter: Filter


@dataclass(frozen=True)
class OfDocuments(Filter):
    """The passage is of one of these documents.

    Attributes:
        document_ids: The documents' ids; if empty, nothing matches.

    Raises:
        ValueError: When the ids are not a tuple of strings.
    """

    document_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        ids = self.document_ids
        if not isinstance(ids, tuple) or not all(isinstance(each, str) for each in ids):
            raise ValueError(f"OfDocuments takes a tuple of document ids, not {ids!r:.60}.")


class Field:
    """A metadata key about to be compared: `Field("year") >= 2000` is a `Compare`.

    Args:
        key: The metadata key.

    Raises:
        ValueError: When the key is not a string.
    """

    __hash__ = None  # type: ignore[assignment]  # == builds a filter, so it cannot look up a dict key

    def __init__(self, key: str) -> None:
        _check_key(key)
        self._key = key

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return Compare(self._key, "==", value)  # type: ignore[arg-type]  # checked by Compare

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return Compare(self._key, "!=", value)  # type: ignore[arg-type]

    def __lt__(self, value: float | str | date) -> Filter:
        return Compare(self._key, "<", value)

    def __le__(self, value: float | str | date) -> Filter:
        return Compare(self._key, "<=", value)

    def __gt__(self, value: float | str | date) -> Filter:
        return Compare(self._key, ">", value)

    def __ge__(self, value: float | str | date) -> Filter:
        return Compare(self._key, ">=", value)

    def is_in(self, values: Iterable[FilterValue]) -> Filter:
        """The value, or an element of a list value, is one of `values`: see `In`."""
        return In(self._key, values)  # type: ignore[arg-type]  # In makes it a tuple

    def contains(self, text: str, *, ignore_case: bool = False) -> Filter:
        """The value is a string that contains `text`: see `Contains`."""
        return Contains(self._key, text, ignore_case)

    def is_missing(self) -> Filter:
        """The passage has no value under this key."""
        return Missing(self._key)


def field(key: str) -> Field:
    """Start a filter on a metadata key: `field("year") >= 2000`.

    Args:
        key: The metadata key: any string, dots and spaces included.

    Returns:
        A `Field`, which the comparison operators, `is_in`, `contains` and `is_missing` turn into a filter.

    Raises:
        ValueError: When the key is not a string.
    """
    return Field(key)


def matches(filter: Filter, metadata: Metadata, document_id: str = "") -> bool:
    """Whether a filter matches a passage's metadata: the reference for what the engines do.

    Args:
        filter: The filter.
        metadata: The passage's metadata.
        document_id: The id of the passage's document, for `OfDocuments`.

    Returns:
        True if such a passage is kept.

    Raises:
        TypeError: When `filter` is not one of this module's filters.
    """
    match filter:
        case And(filters):
            return all(matches(part, metadata, document_id) for part in filters)
        case Or(filters):
            return any(matches(part, metadata, document_id) for part in filters)
        case Not(part):
            return not matches(part, metadata, document_id)
        case OfDocuments(ids):
            return document_id in ids
        case Missing(key):
            return not elements(metadata.get(key))
        case Contains(key, text, ignore_case):
            held = [e for e in elements(metadata.get(key)) if isinstance(e, str)]
            if ignore_case:
                return any(text.casefold() in e.casefold() for e in held)
            return any(text in e for e in held)
        case In(key, values):
            return any(_equal(v, e) for e in elements(metadata.get(key)) for v in values)
        case Compare(key, "!=", value):
            return not any(_equal(value, e) for e in elements(metadata.get(key)))
        case Compare(key, "==", value):
            return any(_equal(value, e) for e in elements(metadata.get(key)))
        case Compare(key, op, value):
            return any(_ordered(op, e, value) for e in elements(metadata.get(key)))
    raise TypeError(f"{type(filter).__name__} is not a filter.")


def elements(value: MetadataValue) -> list[MetadataScalar]:
    """What filters see of a metadata value: itself or, if it is a list, its elements.

    Objects, null and numbers that are not finite are left out.
    """
    found = value if isinstance(value, list | tuple) else [value]
    return [e for e in found if isinstance(e, str | bool) or _is_finite(e)]  # type: ignore[misc]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and finite_number(value) is not None


def instant(value: object) -> datetime | None:
    """The point in time that a value is.

    Args:
        value: A `date`, a `datetime`, or a string as this module's head describes it.

    Returns:
        The time in UTC; None if the value is none, or is before the year 1 or after 9999.
    """
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    try:
        if isinstance(value, str):
            if not _TIME.fullmatch(value):
                return None
            value = datetime.fromisoformat(value)
        if not isinstance(value, datetime):
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def ordered_kind(value: FilterValue) -> Kind:
    """The kind of what a value is compared with by <, <=, > and >=."""
    return "date" if isinstance(value, str | date) else "number"


def value_kind(value: FilterValue) -> Kind:
    """The kind of a value; it is compared only with values of the same kind."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, date):
        return "date"
    return "string" if isinstance(value, str) else "number"


def finite_number(value: float) -> float | None:
    """A number as engines hold it: a float if it takes more than 64 bits; None if it is not finite."""
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def exact_integer(number: float) -> bool:
    """Whether this is an int so large that a float may not tell it from its neighbours."""
    return isinstance(number, int) and abs(number) >= 2**53


def _equal(wanted: FilterValue, held: MetadataScalar) -> bool:
    if isinstance(wanted, date):
        return isinstance(held, str) and instant(held) == instant(wanted)
    if isinstance(wanted, str | bool) or isinstance(held, str | bool):
        return value_kind(wanted) == value_kind(held) and wanted == held
    number, other = finite_number(wanted), finite_number(held)
    if number is None or other is None:
        return False
    if exact_integer(number):
        return isinstance(other, int) and number == other
    return float(number) == float(other)


def _ordered(op: Operator, held: MetadataScalar, bound: FilterValue) -> bool:
    if isinstance(bound, str | date):
        time = instant(held) if isinstance(held, str) else None
        return time is not None and _ORDERINGS[op](time, instant(bound))
    if isinstance(held, str | bool) or isinstance(bound, str | bool):
        return False
    number, limit = finite_number(held), finite_number(bound)
    if number is None or limit is None:
        return False
    return _ORDERINGS[op](float(number), float(limit))


def _parts(filter: Filter, joined: type[And] | type[Or]) -> tuple[Filter, ...]:
    """The filters that `filter` joins, so that a & b & c becomes one flat And instead of nested ones."""
    if not isinstance(filter, Filter):
        raise TypeError(f"{filter!r} is not a filter; each side of & and | needs its own brackets.")
    return filter.filters if isinstance(filter, joined) else (filter,)


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise ValueError(f"A filter names a metadata key by a string, not by {key!r}.")
    check_unicode(key, f"The filter on {key!r}")


def _check_value(key: str, value: object) -> None:
    if isinstance(value, date):
        if instant(value) is None:
            raise ValueError(
                f"A filter on {key!r} needs a time in the years 1 to 9999, not {value!r}."
            )
        return
    if not isinstance(value, str | int | float):
        raise ValueError(
            f"A filter on {key!r} compares with a string, a number, a boolean or a date, "
            f"not with a {type(value).__name__}."
        )
    if isinstance(value, str):
        check_unicode(value, f"The filter on {key!r}")
    elif finite_number(value) is None:
        raise ValueError(f"A filter on {key!r} needs a finite number, not {value!r}.")
