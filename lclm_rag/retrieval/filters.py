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
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lclm_rag.types import Metadata, MetadataScalar, MetadataValue

__all__ = [
    "And",
    "Compare",
    "Contains",
    "Field",
    "Filter",
    "In",
    "Kind",
    "Missing",
    "Not",
    "OfDocuments",
    "Operator",
    "Or",
    "as_filter",
    "elements",
    "exact_integer",
    "field",
    "finite_number",
    "matches",
    "value_kind",
]

Operator = Literal["==", "!=", "<", "<=", ">", ">="]
Kind = Literal["string", "number", "boolean"]
"""The kind of a metadata value. Values of different kinds are never equal and have no order."""

_ORDERINGS: dict[str, Callable[[float, float], bool]] = {
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
        op: The operator; <, <=, > and >= take numbers only.
        value: A string, a finite number or a boolean.

    Raises:
        ValueError: When the key is not a string, the operator is unknown, or the value does not suit it.
    """

    key: str
    op: Operator
    value: MetadataScalar

    def __post_init__(self) -> None:
        _check_key(self.key)
        if self.op not in get_args(Operator):
            known = ", ".join(get_args(Operator))
            raise ValueError(f"A filter cannot compare with {self.op!r}; use one of {known}.")
        _check_value(self.key, self.value)
        if self.op in _ORDERINGS and isinstance(self.value, str | bool):
            raise ValueError(
                f"{self.key!r} {self.op} {self.value!r}: only numbers have an order in a filter; "
                "give a number (a date as 20240131, for one), or use == or a list of values."
            )


@dataclass(frozen=True)
class In(Filter):
    """The value of `key` is one of `values`.

    Attributes:
        key: The metadata key.
        values: Strings, finite numbers and booleans, mixed if need be; if empty, nothing matches. Any
            iterable but a string is accepted, and becomes a tuple.

    Raises:
        ValueError: When the key is not a string, `values` is no list of values, or a value has another type.
    """

    key: str
    values: tuple[MetadataScalar, ...]

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
        text: A string that is not empty; upper and lower case differ.

    Raises:
        ValueError: When the key is not a string, or the text is not a string or is empty.
    """

    key: str
    text: str

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

    def __lt__(self, value: float) -> Filter:
        return Compare(self._key, "<", value)

    def __le__(self, value: float) -> Filter:
        return Compare(self._key, "<=", value)

    def __gt__(self, value: float) -> Filter:
        return Compare(self._key, ">", value)

    def __ge__(self, value: float) -> Filter:
        return Compare(self._key, ">=", value)

    def is_in(self, values: Iterable[MetadataScalar]) -> Filter:
        """The value, or an element of a list value, is one of `values`: see `In`."""
        return In(self._key, values)  # type: ignore[arg-type]  # In makes it a tuple

    def contains(self, text: str) -> Filter:
        """The value is a string that contains `text`; upper and lower case differ."""
        return Contains(self._key, text)

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


def as_filter(condition: Filter | Mapping[str, Any] | None) -> Filter | None:
    """Make a filter of what callers may pass: a filter, a dict or None.

    Args:
        condition: A filter, which is returned as it is, or a dict from keys to values, all of which must be
            equal. A list, tuple or set in the dict means any of its values. None and {} mean no filter.

    Returns:
        The filter; None for no filter.

    Raises:
        ValueError: When `condition` is anything else, or a key or value is not one that filters take.
    """
    if condition is None or isinstance(condition, Filter):
        return condition
    if not isinstance(condition, Mapping):
        raise ValueError(
            f"Filters are a dict or a filter expression, not a {type(condition).__name__}: "
            "{'lang': 'en'} or field('year') >= 2000."
        )
    conditions = tuple(
        In(key, tuple(value))
        if isinstance(value, list | tuple | set | frozenset)
        else Compare(key, "==", value)
        for key, value in condition.items()
    )
    return And(conditions) if conditions else None


def matches(filter: Filter, metadata: Metadata, document_id: str = "") -> bool:
    """Whether a filter matches a passage's metadata: the reference for what the engines do.

    Args:
        filter: The filter.
        metadata: The passage's metadata.
        document_id: The id of the passage's document, for `OfDocuments`.

    Returns:
        True if a passage with this metadata is kept.

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
        case Contains(key, text):
            return any(isinstance(e, str) and text in e for e in elements(metadata.get(key)))
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


def value_kind(value: MetadataScalar) -> Kind:
    """The kind of a value; it is compared only with values of the same kind."""
    if isinstance(value, bool):
        return "boolean"
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


def _equal(wanted: MetadataScalar, held: MetadataScalar) -> bool:
    if isinstance(wanted, str | bool) or isinstance(held, str | bool):
        return value_kind(wanted) == value_kind(held) and wanted == held
    number, other = finite_number(wanted), finite_number(held)
    if number is None or other is None:
        return False
    if exact_integer(number):
        return isinstance(other, int) and number == other
    return float(number) == float(other)


def _ordered(op: Operator, held: MetadataScalar, bound: MetadataScalar) -> bool:
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


def _check_value(key: str, value: object) -> None:
    if not isinstance(value, str | int | float):
        raise ValueError(
            f"A filter on {key!r} compares with a string, a number or a boolean, "
            f"not with a {type(value).__name__}."
        )
    if not isinstance(value, str) and finite_number(value) is None:
        raise ValueError(f"A filter on {key!r} needs a finite number, not {value!r}.")
