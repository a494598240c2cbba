"""The filters that LangChain's vector stores take, translated to this library's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lclm_rag.retrieval import And, Filter, In, Not, Or, as_filter, field

__all__ = ["Filters", "to_filter"]

Filters = Filter | dict[str, Any] | list[str] | str | None

_OPERATORS: dict[str, Callable[[str, Any], Filter]] = {
    "$eq": lambda key, value: field(key) == value,
    "$ne": lambda key, value: field(key) != value,
    "$gt": lambda key, value: field(key) > value,
    "$gte": lambda key, value: field(key) >= value,
    "$lt": lambda key, value: field(key) < value,
    "$lte": lambda key, value: field(key) <= value,
    "$in": lambda key, value: In(key, value),
    "$nin": lambda key, value: Not(In(key, value)),
    "$exists": lambda key, value: ~field(key).is_missing() if value else field(key).is_missing(),
}
_JOINED = ("$and", "$or", "$not")


def to_filter(filters: Filters) -> Filter | None:
    """Translate a filter of LangChain's vector stores.

    Args:
        filters: A dict of keys and values, such as {"lang": {"$in": ["en", "de"]}, "year": {"$gte": 2000}},
            with "$and", "$or" and "$not" around others; or what `KnowledgeBase.retrieve` takes.

    Returns:
        The filter; None for None.

    Raises:
        ValueError: When there is no such operator, or a value does not suit it.
    """
    if not isinstance(filters, Mapping):
        return as_filter(filters)
    parts = [_one(key, value) for key, value in filters.items()]
    return parts[0] if len(parts) == 1 else And(tuple(parts)) if parts else as_filter(filters)


def _one(key: str, value: Any) -> Filter:
    if key in _JOINED:
        return _joined(key, value)
    if not isinstance(value, Mapping):
        single = as_filter({key: value})
        assert single is not None
        return single
    if unknown := next((name for name in value if name not in _OPERATORS), None):
        known = ", ".join(_OPERATORS)
        raise ValueError(f"The filter on {key!r} has the operator {unknown!r}; there are {known}.")
    if not value:
        raise ValueError(f"The filter on {key!r} has no operator.")
    return And(tuple(_OPERATORS[name](key, operand) for name, operand in value.items()))


def _joined(operator: str, value: Any) -> Filter:
    given = [value] if operator == "$not" and isinstance(value, Mapping) else value
    if not isinstance(given, list) or not given:
        raise ValueError(f"The filter {operator!r} takes a list of filters, not {value!r:.60}.")
    parts = tuple(part for part in map(to_filter, given) if part is not None)
    if operator == "$not":
        return Not(Or(parts))
    return And(parts) if operator == "$and" else Or(parts)
