"""Haystack's filters, translated to this library's."""

from __future__ import annotations

from typing import Any

from haystack.errors import FilterError

from lclm_rag.retrieval import And, Compare, Filter, In, Missing, Not, Or

__all__ = ["to_filter"]

_OPERATORS = ("==", "!=", ">", ">=", "<", "<=", "in", "not in", "AND", "OR", "NOT")


def to_filter(filters: dict[str, Any] | None) -> Filter | None:
    """Translate Haystack filters to a filter of this library.

    As in Haystack, == None matches what lacks the key, and NOT matches what does not meet all of its
    conditions; <, <=, > and >= with None match nothing. A list in the metadata matches if one of its
    elements does. Texts in ISO 8601 have the order of time: `lclm_rag.retrieval.filters`.

    Args:
        filters: A comparison, `{"field": "meta.year", "operator": ">=", "value": 2020}`, or "AND", "OR" or
            "NOT" of such conditions.

    Returns:
        The filter; None if there are no conditions.

    Raises:
        FilterError: When an operator, a field, a shape or a value cannot be translated.
    """
    try:
        return _condition(filters) if filters else None
    except ValueError as error:
        raise FilterError(str(error)) from error


def _condition(condition: dict[str, Any]) -> Filter:
    operator = condition.get("operator")
    if operator not in _OPERATORS:
        raise FilterError(
            f"The filter operator {operator!r} is not known; use {', '.join(_OPERATORS)}."
        )
    parts = ("conditions",) if operator.isupper() else ("field", "value")
    if missing := [part for part in parts if part not in condition]:
        raise FilterError(f"A filter with the operator {operator!r} needs {' and '.join(missing)}.")
    if operator.isupper():
        conditions = tuple(_condition(part) for part in condition["conditions"])
        if operator == "OR":
            return Or(conditions)
        return And(conditions) if operator == "AND" else Not(And(conditions))
    return _comparison(_key(condition["field"]), operator, condition["value"])


def _comparison(key: str, operator: Any, value: Any) -> Filter:
    match operator:
        case "in":
            return In(key, _listed(operator, value))
        case "not in":
            return Not(In(key, _listed(operator, value)))
        case "==" | "!=" if value is None:
            return Missing(key) if operator == "==" else Not(Missing(key))
        case _ if value is None:
            return Or(())
    return Compare(key, operator, value)


def _listed(operator: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise FilterError(f"The filter operator {operator!r} needs a list, not {value!r}.")
    return tuple(value)


def _key(field: str) -> str:
    """The metadata key of a field: "meta.year" or, as in older filters, "year"."""
    key = field.removeprefix("meta.")
    if "." in key or field in (
        "id",
        "content",
        "blob",
        "meta",
        "score",
        "embedding",
        "sparse_embedding",
    ):
        raise FilterError(
            f"The filter field {field!r} is not a key of the metadata: meta.year, say."
        )
    return key
