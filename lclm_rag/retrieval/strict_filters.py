"""Filters for servers in strict mode, which refuse conditions on a path without a payload index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qdrant_client import models

__all__ = ["only_indexed", "paths_of"]

_NOTHING = models.HasIdCondition(has_id=[])


def paths_of(condition: Any) -> Iterator[str]:
    """The paths that a filter names."""
    for part in _parts(condition):
        if isinstance(part, models.Filter):
            yield from paths_of(part)
        elif (path := _path(part)) is not None:
            yield path


def only_indexed(filter: models.Filter, is_indexed: Callable[[str], bool]) -> models.Filter:
    """The same filter without conditions on paths that no point has.

    Args:
        filter: The filter.
        is_indexed: Whether there is an index of a path: if not, no point has anything there.

    Returns:
        A filter that keeps the same points.
    """

    def condition(part: Any) -> Any:
        if isinstance(part, models.Filter):
            return only_indexed(part, is_indexed)
        path = _path(part)
        if path is None or is_indexed(path):
            return part
        if isinstance(part, models.IsEmptyCondition):
            return models.Filter(must_not=[_NOTHING])
        return _NOTHING

    def all_of(parts: Any) -> Any:
        return None if parts is None else [condition(part) for part in _listed(parts)]

    return models.Filter(
        must=all_of(filter.must), should=all_of(filter.should), must_not=all_of(filter.must_not)
    )


def _parts(filter: models.Filter) -> Iterator[Any]:
    for parts in (filter.must, filter.should, filter.must_not):
        yield from _listed(parts or [])


def _listed(parts: Any) -> list[Any]:
    return parts if isinstance(parts, list) else [parts]


def _path(part: Any) -> str | None:
    if isinstance(part, models.FieldCondition):
        return part.key
    if isinstance(part, models.IsEmptyCondition):
        return part.is_empty.key
    return None
