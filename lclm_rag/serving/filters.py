"""Metadata conditions in a request."""

from __future__ import annotations

from typing import Any

from lclm_rag.retrieval import Filter, as_filter

__all__ = ["Filters", "both", "parsed_filters"]

Filters = dict[str, Any] | list[str] | str | None
"""{"lang": "en"}, "year>=2020", or several such expressions that must all hold."""


def parsed_filters(filters: Filters) -> Filter | None:
    """Read the conditions of a request.

    Args:
        filters: The conditions.

    Returns:
        The filter; None if there are no conditions.

    Raises:
        ValueError: When they cannot be read.
    """
    return as_filter(filters)


def both(own: Filter | None, bound: Filter | None) -> Filter | None:
    """The condition of a request together with the one that its key is bound by; None for neither."""
    return own if bound is None else bound if own is None else bound & own
