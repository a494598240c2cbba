"""Unfinished stores: nothing is committed beyond version 0, and nothing is compressed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lclm_rag.storage import TEMPORARY, Folder, LocalFolder
from lclm_rag.store.locks import reading, versions_read
from lclm_rag.store.manifest import manifest_name
from lclm_rag.store.marks import ALIVE
from lclm_rag.store.parts import (
    FILES,
    LEASES,
)

__all__ = ["discard_unfinished", "is_open", "is_unfinished"]

_PARTS = (*FILES, LEASES)
_LOCKS = ("lock", "gate", "writer-*", "0-*-*")
# Endings of files that writers leave if they are killed before they have finished anything.
_PASSING = (TEMPORARY, ALIVE)


def is_unfinished(folder: Folder) -> bool:
    """Whether the folder holds an unfinished store, a part of one, or nothing at all."""
    if folder.local is not None and not all(map(_is_known, _entries(folder.local))):
        return False
    names = [facts.name for part in FILES for facts in (folder / part).files()]
    return all(map(_is_nothing, names))


def is_open(folder: LocalFolder) -> bool:
    """Whether any process may be reading the store."""
    if not (folder.path / LEASES).is_dir():
        return False
    with reading(folder.path / LEASES) as gate:
        return gate is None or bool(versions_read(folder.path / LEASES))


def discard_unfinished(folder: Folder, *, folders: bool = False) -> None:
    """Remove an unfinished store.

    Args:
        folder: The store's folder.
        folders: Whether to remove a local store's folders and locks as well. Only the holder of the write
            lock may do this, and its lock file is removed, too.
    """
    for part in FILES:
        for name in [facts.name for facts in (folder / part).files()]:
            # Each name is looked at, because in an object store another writer may have finished something
            # since the store was found to be unfinished.
            if _is_nothing(name):
                (folder / part).remove(name)
    if folder.local is None or not folders:
        return
    for place in (folder.local / LEASES, folder.local):
        for path in (found for pattern in _LOCKS for found in place.glob(pattern)):
            path.unlink(missing_ok=True)
    for place in (*(folder.local / part for part in _PARTS), folder.local):
        with suppress(OSError):  # It is not empty, or was never made.
            place.rmdir()


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_nothing(name: str) -> bool:
    """Whether a file holds nothing that was committed (but version 0) or compressed."""
    return name == manifest_name(0) or name.endswith(_PASSING)


def _is_known(path: Path) -> bool:
    """Whether a file or folder in a store's folder belongs to the store."""
    return path.name in _PARTS if path.is_dir() else any(map(path.match, _LOCKS))
