"""The folders of a store."""

from __future__ import annotations

__all__ = [
    "DELETIONS",
    "FILES",
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

FILES = (FRAGMENTS, LISTS, DELETIONS, KEYS, MANIFESTS, UNCOMMITTED)
"""Those that hold the store's files; in the other one are the locks of who reads."""

StoreFile = tuple[str, str]
"""A folder of a store, and the name of a file in it."""
