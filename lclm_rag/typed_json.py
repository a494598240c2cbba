"""Dataclasses from JSON that may have been written by anybody: every field is there, and of its type."""

from __future__ import annotations

import math
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_json"]

T = TypeVar("T")

_SHOWN = 40  # characters of a value that is wrong


def from_json(kind: type[T], raw: object) -> T:
    """Make a dataclass of JSON.

    Args:
        kind: The dataclass. Its fields are of the types of JSON, unions and literals of these, tuples of any
            length (lists in JSON), and dataclasses of such fields.
        raw: The JSON, an object with the dataclass's fields; those with a default may be missing. A field may
            hold its dataclass already.

    Returns:
        The dataclass. Its texts can be encoded and hold no NUL, its numbers are finite.

    Raises:
        ValueError: If a field is missing, unknown or of another type.
    """
    found = _value(kind, raw, kind.__name__)
    assert isinstance(found, kind)
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(kind: Any, raw: object, name: str) -> Any:
    """The value of a type in JSON; ValueError if it is another."""
    origin = get_origin(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        if isinstance(raw, kind):
            return raw
        return _dataclass(kind, raw, name)
    if origin in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return _value(option, raw, name)
            except ValueError:
                continue
        raise _wrong(name, raw)
    if origin is Literal:
        if isinstance(raw, str) and raw in get_args(kind):
            return raw
        raise _wrong(name, raw)
    if origin is tuple:
        kinds = get_args(kind)
        if not isinstance(raw, list | tuple):
            raise _wrong(name, raw)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(raw)
        if len(kinds) != len(raw):
            raise _wrong(name, raw)
        return tuple(_value(each, part, name) for each, part in zip(kinds, raw, strict=True))
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw) if abs(raw) < 1 << 63 else _refuse(name, raw)
    if kind is Any:
        return raw
    # Exactly: to Python, True is a number.
    if type(raw) is not (origin or kind):
        raise _wrong(name, raw)
    if isinstance(raw, float) and not math.isfinite(raw):
        raise _wrong(name, raw)
    if isinstance(raw, str) and ("\0" in raw or not _is_unicode(raw)):
        raise _wrong(name, raw)
    return raw


def _dataclass(kind: type, raw: object, name: str) -> Any:
    if not isinstance(raw, dict):
        raise _wrong(name, raw)
    hints = _hints(kind)
    if unknown := [each for each in raw if each not in hints]:
        raise ValueError(f"{name} has {_short(unknown[0])}, which is unknown")
    required = [
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    ]
    if missing := [each for each in required if each not in raw]:
        raise ValueError(f"{missing[0]!r} is missing")
    return kind(**{each: _value(hints[each], raw[each], each) for each in raw})


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(name: str, raw: object) -> Any:
    raise _wrong(name, raw)


def _wrong(name: str, raw: object) -> ValueError:
    return ValueError(f"{name} is {_short(raw)}")


def _short(value: object) -> str:
    text = (
        ascii(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    )
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
