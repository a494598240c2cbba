"""A store to which nothing was committed and for which nothing was compressed: what it is, and its end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lclm_rag.storage import TEMPORARY, Folder, LocalFolder
from lclm_rag.store.locks import reading, versions_read
from lclm_rag.store.manifest import manifest_name
from lclm_rag.store.store import FRAGMENTS, LEASES, MANIFESTS, UNCOMMITTED

__all__ = ["discard_unfinished", "is_open", "is_unfinished"]

_FILES = (FRAGMENTS, MANIFESTS, UNCOMMITTED)
_PARTS = (*_FILES, LEASES)
_LOCKS = ("lock", "gate", "writer-*", "0-*-*")
# What writers and workers leave that were killed before they had finished anything.
_PASSING = (TEMPORARY, ".attempt")


def is_unfinished(folder: Folder) -> bool:
    """Whether there is such a store, a part of one, or nothing at all."""
    if folder.local is not None and not all(map(_is_known, _entries(folder.local))):
        return False
    names = [facts.name for part in _FILES for facts in (folder / part).files()]
    return all(map(_is_nothing, names))


def is_open(folder: LocalFolder) -> bool:
    """Whether anybody reads it."""
    if not (folder.path / LEASES).is_dir():
        return False
    with reading(folder.path / LEASES) as gate:
        return gate is None or bool(versions_read(folder.path / LEASES))


def discard_unfinished(folder: Folder, *, folders: bool = False) -> None:
    """Remove an unfinished store. folders: those of a local one and its locks, too, which is for whoever
    holds the write lock, and lets it go."""
    for part in _FILES:
        for name in [facts.name for facts in (folder / part).files()]:
            if _is_nothing(name):  # In an object store somebody may be faster.
                (folder / part).remove(name)
    if folder.local is None or not folders:
        return
    for place in (folder.local / LEASES, folder.local):
        for path in (found for pattern in _LOCKS for found in place.glob(pattern)):
            path.unlink(missing_ok=True)
    for place in (*(folder.local / part for part in _PARTS), folder.local):
        with suppress(OSError):  # Something else lies in it, or it was never made.
            place.rmdir()


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_nothing(name: str) -> bool:
    """Whether a file is no part of what was committed or compressed."""
    return name == manifest_name(0) or name.endswith(_PASSING)


def _is_known(path: Path) -> bool:
    """Whether something in a store's folder is the store's."""
    return path.name in _PARTS if path.is_dir() else any(map(path.match, _LOCKS))
