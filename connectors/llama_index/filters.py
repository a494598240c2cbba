"""LlamaIndex's metadata filters, translated to this library's, which Qdrant applies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from lclm_rag import field
from lclm_rag.retrieval import And, Filter, In, Not, Or

__all__ = ["to_filter"]

# Operators with one value, and operators with a list of values. A list in the metadata matches if one of its
# elements does, which is what ANY, ALL and CONTAINS need.
_ONE: dict[FilterOperator, Callable[[Any, Any], Filter]] = {
    FilterOperator.EQ: lambda key, value: field(key) == value,
    FilterOperator.NE: lambda key, value: field(key) != value,
    FilterOperator.GT: lambda key, value: field(key) > value,
    FilterOperator.GTE: lambda key, value: field(key) >= value,
    FilterOperator.LT: lambda key, value: field(key) < value,
    FilterOperator.LTE: lambda key, value: field(key) <= value,
    FilterOperator.CONTAINS: lambda key, value: field(key) == value,
    FilterOperator.TEXT_MATCH: lambda key, value: field(key).contains(value),
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda key, value: field(key).contains(
        value, ignore_case=True
    ),
}
_MANY: dict[FilterOperator, Callable[[str, list[Any]], Filter]] = {
    FilterOperator.IN: lambda key, values: In(key, tuple(values)),
    FilterOperator.NIN: lambda key, values: Not(In(key, tuple(values))),
    FilterOperator.ANY: lambda key, values: In(key, tuple(values)),
    FilterOperator.ALL: lambda key, values: And(tuple(field(key) == v for v in values)),
}


def to_filter(filters: MetadataFilters | None) -> Filter | None:
    """Translate LlamaIndex's metadata filters to a filter of `lclm_rag.retrieval`.

    TEXT_MATCH finds substrings; case counts, but for TEXT_MATCH_INSENSITIVE. Texts in ISO 8601, such as the
    dates of LlamaIndex's directory reader, have the order of time: `lclm_rag.retrieval.filters`.

    Args:
        filters: LlamaIndex's filters, which may be nested.

    Returns:
        The filter; None if there are no conditions.

    Raises:
        ValueError: When Qdrant does not support a condition, such as an order of texts that are no dates, or
            when an operator gets a list instead of a single value or the reverse.
    """
    if filters is None:
        return None
    translated = (
        to_filter(part) if isinstance(part, MetadataFilters) else _one(part)
        for part in filters.filters
    )
    parts = tuple(part for part in translated if part is not None)
    if not parts:
        return None
    match filters.condition:
        case FilterCondition.AND | None:
            return And(parts)
        case FilterCondition.OR:
            return Or(parts)
        case FilterCondition.NOT:  # None of them may match, as LlamaIndex's stores understand it.
            return Not(Or(parts))
    raise ValueError(f"Metadata filters cannot be joined by {filters.condition!r}.")


def _one(single: MetadataFilter) -> Filter:
    key, value, operator = single.key, single.value, single.operator
    if operator == FilterOperator.IS_EMPTY:
        return field(key).is_missing()
    if operator in _ONE:
        if isinstance(value, list):
            raise ValueError(
                f"The filter {key!r} {operator.value} takes one value, not the list {value!r}; use "
                "FilterOperator.IN for any of them."
            )
        return _ONE[operator](key, value)
    if operator in _MANY:
        if not isinstance(value, list):
            raise ValueError(f"The filter {key!r} {operator.value} takes a list, not {value!r}.")
        return _MANY[operator](key, value)
    raise ValueError(
        f"The filter {key!r} has the operator {operator.value}, which Qdrant does not have."
    )
