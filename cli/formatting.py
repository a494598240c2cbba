"""Numbers as a person reads them."""

from __future__ import annotations

__all__ = ["megabytes"]


def megabytes(size: int) -> str:
    """Of bytes, without the unit."""
    return f"{size / 1e6:,.1f}"
