"""Format numbers for people."""

from __future__ import annotations

__all__ = ["megabytes"]


def megabytes(size: int) -> str:
    """A number of bytes in megabytes, with one decimal and without the unit."""
    return f"{size / 1e6:,.1f}"
