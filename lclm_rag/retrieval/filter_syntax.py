"""Filters as callers write them: on a command line, as a dict, as an expression."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lclm_rag.retrieval.filters import And, Compare, Filter, In, Operator
from lclm_rag.types import MetadataScalar

__all__ = ["as_filter", "parse_filter"]

_QUOTED = r'"[^"]*"|\'[^\']*\''
_CONDITION = re.compile(rf"\s*({_QUOTED}|[^=!<>]*?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)
# One value of a list, followed by a comma or the end.
_VALUE = re.compile(rf"\s*({_QUOTED}|[^,]*?)\s*(?:,|$)", re.DOTALL)
# A second condition inside what should be a value: "2020 and lang=en", "en, year>=2020".
_JOINED = re.compile(
    r"(?:\s(?:and|or|AND|OR|&&?|\|\|?)\s|\s*[,;])\s*(?:not\s+|NOT\s+)?[^\s=!<>,;\"']+\s*(?:==|!=|<=|>=|=|<|>)"
)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_OPERATORS: dict[str, Operator] = {
    "=": "==",
    "==": "==",
    "!=": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
}
_HELP = "write key=value, key=a,b, key!=value, key>=number or key>=date."


_COMPARISONS: dict[str, Operator] = {
    "$eq": "==",
    "$ne": "!=",
    "$lt": "<",
    "$lte": "<=",
    "$gt": ">",
    "$gte": ">=",
}


def as_filter(condition: Filter | Mapping[str, Any] | Sequence[str] | None) -> Filter | None:
    """Make a filter of what callers may pass: a filter, a dict, a text or None.

    Args:
        condition: A filter, which is returned as it is; a dict from keys to values, all of which must be
            equal; or a text as for `parse_filter`, or several in a list, all of which must hold. A list,
            tuple or set in the dict means any of its values, and a dict compares:
            `{"year": {"$gte": 2000, "$lt": 2010}}`, with $eq, $ne, $gt, $gte, $lt, $lte, $in and $nin. None,
            {} and [] mean no filter.

    Returns:
        The filter; None for no filter.

    Raises:
        ValueError: When `condition` is anything else, or a key or value is not one that filters take.
    """
    if condition is None or isinstance(condition, Filter):
        return condition
    if isinstance(condition, str):
        return parse_filter(condition)
    if isinstance(condition, list | tuple) and all(isinstance(text, str) for text in condition):
        return And(tuple(map(parse_filter, condition))) if condition else None
    if not isinstance(condition, Mapping):
        raise ValueError(
            f"Filters are a dict, a text or a filter expression, not a {type(condition).__name__}: "
            "{'lang': 'en'}, 'lang=en' or field('year') >= 2000."
        )
    conditions = tuple(part for key, value in condition.items() for part in _of_key(key, value))
    return And(conditions) if conditions else None


def _of_key(key: str, value: Any) -> list[Filter]:
    if isinstance(value, list | tuple | set | frozenset):
        return [In(key, tuple(value))]
    if not isinstance(value, Mapping):
        return [Compare(key, "==", value)]
    parts: list[Filter] = []
    for name, operand in value.items():
        if name in _COMPARISONS:
            parts.append(Compare(key, _COMPARISONS[name], operand))
        elif name in ("$in", "$nin"):
            parts.append(In(key, operand) if name == "$in" else ~In(key, operand))
        else:
            known = ", ".join([*_COMPARISONS, "$in", "$nin"])
            raise ValueError(
                f"The filter on {key!r} has the operator {name!r}; use one of {known}."
            )
    if not parts:
        raise ValueError(f"The filter on {key!r} is an empty dict; give a value, or leave it out.")
    return parts


def parse_filter(text: str) -> Filter:
    """Parse a filter as written on a command line: `lang=en`, `lang=en,de`, `year>=2000`.

    `=` and `!=` take one value, or several separated by commas; <, <=, > and >= take one number or date, such
    as 2024-05-01 or 2024-05-01T10:00:00+02:00.
    Numbers follow JSON's syntax (so 007 and 1_000 are strings); true and false are booleans in upper or
    lower case. Everything else is a string, and so is anything in quotes: `year="2000"`. A key may be quoted
    as well.

    Args:
        text: One condition.

    Returns:
        The filter.

    Raises:
        ValueError: When the text cannot be read; the message quotes it and says what to write instead.
    """
    condition = _CONDITION.fullmatch(text)
    if condition is None or not condition[1]:
        raise ValueError(f"The filter {text!r} cannot be read; {_HELP}")
    if _JOINED.search(re.sub(_QUOTED, "quoted", condition[3])):
        raise ValueError(
            f"The filter {text!r} holds several conditions: give each as a filter of its own, which must all "
            "hold. A value that holds such signs is written in quotes."
        )
    key, op = _unquoted(condition[1]), _OPERATORS[condition[2]]
    values = _values(text, condition[3])
    if len(values) == 1:
        return Compare(key, op, values[0])
    if op not in ("==", "!="):
        raise ValueError(f"The filter {text!r} compares with several values; {_HELP}")
    return In(key, values) if op == "==" else ~In(key, values)


def _values(text: str, listed: str) -> tuple[MetadataScalar, ...]:
    values: list[MetadataScalar] = []
    position = 0
    while True:
        value = _VALUE.match(listed, position)
        if value is None or not value[1]:
            raise ValueError(
                f'The filter {text!r} lacks a value; write key="" for the empty string, '
                "and quote a value that holds a comma."
            )
        values.append(_read_value(value[1]))
        position = value.end()
        if not value[0].endswith(","):
            return tuple(values)


def _read_value(text: str) -> MetadataScalar:
    if _NUMBER.fullmatch(text):
        number: int | float = json.loads(text)
        return number
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return _unquoted(text)


def _unquoted(text: str) -> str:
    return text[1:-1] if re.fullmatch(_QUOTED, text) else text
