"""Haystack's filters as this library's."""

from __future__ import annotations

from typing import Any

from haystack.errors import FilterError

from lclm_rag.retrieval import And, Compare, Filter, In, Missing, Not, Or

__all__ = ["to_filter"]

_OPERATORS = ("==", "!=", ">", ">=", "<", "<=", "in", "not in", "AND", "OR", "NOT")


def to_filter(filters: dict[str, Any] | None) -> Filter | None:
    """What `{"field": "meta.year", "operator": ">=", "value": 2020}` and "AND", "OR", "NOT" of such ask for.

    As in Haystack, == None asks for what lacks the key, and NOT for what does not match all of its
    conditions. Metadata that is a list matches where one of its elements does.
    Raises FilterError for an operator, a field or a shape that cannot be translated, ValueError for a value
    that a filter cannot compare with.
    """
    return _condition(filters) if filters else None


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
    return Compare(key, operator, value)


def _listed(operator: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise FilterError(f"The filter operator {operator!r} needs a list, not {value!r}.")
    return tuple(value)


def _key(field: str) -> str:
    """The metadata key that a field names: "meta.year", or, as older filters have it, "year"."""
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
