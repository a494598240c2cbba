"""The folders of a store."""

from __future__ import annotations

__all__ = [
    "DELETIONS",
    "FRAGMENTS",
    "KEYS",
    "LEASES",
    "LISTS",
    "MANIFESTS",
    "UNCOMMITTED",
    "StoreFile",
]

FRAGMENTS, LISTS, DELETIONS, KEYS = "fragments", "lists", "deletions", "keys"
MANIFESTS, LEASES, UNCOMMITTED = "manifests", "readers", "uncommitted"

StoreFile = tuple[str, str]
"""A folder of a store, and the name of a file in it."""
