"""The folder of a knowledge base before its first commit: whether one may be made there, and taking it away.

Several builds may want the same folder, so all of this is done with the store's write lock held.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from lclm_rag.config import (
    SETTINGS,
    Settings,
    is_knowledge_base,
    read_settings,
    write_settings,
)
from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.storage import TEMPORARY, Folder, LocalFolder, disk_full_as
from lclm_rag.store import LatentStore, Layout
from lclm_rag.store.locks import write_lock
from lclm_rag.store.unfinished import discard_unfinished, is_open, is_unfinished

__all__ = ["Made", "discard", "finished_already", "make", "making", "require_free"]

_SETTINGS_BEGUN = re.compile(rf"{re.escape(SETTINGS)}-\w+{re.escape(TEMPORARY)}")


@dataclass(frozen=True)
class Made:
    """What was not there before: the knowledge base, the folder that it is in."""

    contents: bool
    folder: bool


@contextmanager
def making(folder: Folder, wait: float, resume: bool) -> Iterator[Made]:
    """While a knowledge base is made in a folder nobody else makes one there, and what one has left that was
    killed meanwhile is gone. An object store has no lock. resume: where there is one, nothing is to be made.

    Raises KnowledgeBaseError where there is something already, or the disk is full; LockedError where another
    process is making one and is not done after `wait` seconds.
    """
    if resume and is_knowledge_base(folder):
        yield Made(contents=False, folder=False)
        return
    require_free(folder)
    made = Made(contents=True, folder=folder.local is not None and not folder.local.exists())
    with disk_full_as(lambda: _no_room(folder)):
        (folder / "store").make()
        with nullcontext() if folder.local is None else write_lock(folder.local / "store", wait):
            # Another process may have made one while this one waited.
            if resume and is_knowledge_base(folder):
                yield Made(contents=False, folder=False)
                return
            require_free(folder)
            discard_unfinished(folder / "store")
            for path in _settings_begun(folder):
                path.unlink()
            yield made


def require_free(folder: Folder) -> None:
    """Raise KnowledgeBaseError where there is anything but what a `create` that was killed has left."""
    if is_knowledge_base(folder) or not _is_free(folder):
        raise KnowledgeBaseError(
            f"{folder} is not empty; choose another folder, or open it instead."
        )


def discard(folder: LocalFolder, *, whole: bool) -> None:
    """Take a knowledge base away again to which nothing was committed, and for which nothing was compressed.

    Whatever else lies in the folder stays; so does all of it where somebody else has it open. whole: the
    folder, too, where nothing is left in it.
    Raises LockedError where another process writes.
    """
    store = folder / "store"
    with write_lock(store.path, wait=0.0):
        if not is_unfinished(store) or is_open(store):
            return
        # First: without it nobody takes the rest for a knowledge base.
        folder.remove(SETTINGS)
        for name in ("published", "private"):
            shutil.rmtree(folder.path / "index" / name, ignore_errors=True)
        (folder / "index").remove("state.json")
        discard_unfinished(store, folders=True)
    for path in (folder.path / "index", *([folder.path] if whole else [])):
        with suppress(OSError):  # Something else lies in it.
            path.rmdir()


def make(
    folder: Folder, settings: Settings, layout: Layout, *, wait: float, resume: bool
) -> tuple[LatentStore, Made]:
    """A new knowledge base without documents; with resume, one that was begun with the same settings.

    Raises as `making`, and KnowledgeBaseError where what was begun is finished, or was begun otherwise.
    """
    with making(folder, wait, resume) as made:
        if made.contents:
            store = LatentStore.create(folder / "store", layout)
            # Last, so that a folder with kb.json is always whole.
            write_settings(folder, settings)
        else:
            store = LatentStore.open(folder / "store")
            check_unfinished(folder, store, read_settings(folder), settings, layout)
    return store, made


def _is_free(folder: Folder) -> bool:
    if folder.local is None:
        return not folder.files() and is_unfinished(folder / "store")
    if not folder.local.exists():
        return True
    if not folder.local.is_dir():
        return False
    begun = _settings_begun(folder)
    others = [p for p in folder.local.iterdir() if p.name != "store" and p not in begun]
    return not others and is_unfinished(folder / "store")


def _settings_begun(folder: Folder) -> list[Path]:
    there = folder.local.iterdir() if folder.local is not None else ()
    return [path for path in there if _SETTINGS_BEGUN.fullmatch(path.name)]


def _no_room(folder: Folder) -> KnowledgeBaseError:
    return KnowledgeBaseError(
        f"The disk is full: there is no room for a knowledge base in {folder}."
    )


def check_unfinished(
    folder: Folder, store: LatentStore, found: Settings, wanted: Settings, layout: Layout
) -> None:
    """Raise KnowledgeBaseError where a build cannot be gone on with."""
    if store.version:
        raise finished_already(folder, store)
    there, requested = vars(found) | vars(store.layout), vars(wanted) | vars(layout)
    other = [name for name in requested if there[name] != requested[name]]
    if other:
        name = other[0]
        raise KnowledgeBaseError(
            f"{folder} was begun with {name} {there[name]!r}, not {requested[name]!r}: use the same, choose "
            "another folder, or remove this one."
        )


def finished_already(folder: Folder, store: LatentStore) -> KnowledgeBaseError:
    return KnowledgeBaseError(
        f"{folder} is finished already: {store.count_documents():,} documents, version {store.version}. "
        "Bring it up to date with lclm-rag add or sync, or choose another folder."
    )
