"""A knowledge base before its first commit: whether a folder may hold one, making it, and removing it again.

Several builds may want the same folder, so all of this happens under the store's write lock.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lclm_rag.config import (
    SETTINGS,
    Settings,
    is_knowledge_base,
    read_settings,
    write_settings,
)
from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.indexing.state import remove_states
from lclm_rag.storage import TEMPORARY, Folder, LocalFolder, disk_full_as
from lclm_rag.store import LatentStore, Layout
from lclm_rag.store.locks import write_lock
from lclm_rag.store.unfinished import discard_unfinished, is_open, is_unfinished

__all__ = ["Made", "discard", "finished_already", "make", "making", "require_free"]

_SETTINGS_BEGUN = re.compile(rf"{re.escape(SETTINGS)}-\w+{re.escape(TEMPORARY)}")


@dataclass(frozen=True)
class Made:
    """What a `create` made, as opposed to what was in place before.

    Attributes:
        contents: Whether it made the knowledge base.
        folder: Whether it made the folder that the knowledge base is in.
    """

    contents: bool
    folder: bool


@contextmanager
def making(folder: Folder, wait: float, resume: bool) -> Iterator[Made]:
    """Hold the right to make a knowledge base in a folder.

    Until the block ends, no other process makes one in the same folder. Leftovers of a `create` that was
    killed are removed first. An object store has no lock.

    Args:
        folder: The folder.
        wait: How many seconds to wait for another process that is making one.
        resume: If the folder already holds a knowledge base, accept it; then there is nothing to make.

    Yields:
        What is to be made.

    Raises:
        KnowledgeBaseError: When the folder is not empty, or the disk is full.
        LockedError: When another process is making one and is not done after `wait` seconds.
    """
    if resume and is_knowledge_base(folder):
        yield Made(contents=False, folder=False)
        return
    require_free(folder)
    made = Made(contents=True, folder=folder.local is not None and not folder.local.exists())
    with disk_full_as(lambda: _no_room(folder)):
        (folder / "store").make()
        with nullcontext() if folder.local is None else write_lock(folder.local / "store", wait):
            # Check again under the lock: another process may have made one while this one waited.
            if resume and is_knowledge_base(folder):
                yield Made(contents=False, folder=False)
                return
            require_free(folder)
            discard_unfinished(folder / "store")
            for path in _settings_begun(folder):
                path.unlink()
            yield made


def require_free(folder: Folder) -> None:
    """Check that a knowledge base may be made in a folder.

    Args:
        folder: The folder; leftovers of a `create` that was killed do not count.

    Raises:
        KnowledgeBaseError: When the folder holds anything else.
    """
    if is_knowledge_base(folder) or not _is_free(folder):
        raise KnowledgeBaseError(
            f"{folder} is not empty; choose another folder, or open it instead."
        )


def discard(folder: LocalFolder, *, whole: bool) -> None:
    """Remove a knowledge base to which nothing was committed and for which nothing was compressed.

    Other files in the folder stay. If another process has the knowledge base open, all of it stays.

    Args:
        folder: The knowledge base's folder.
        whole: Whether to remove the folder too, if it is empty then.

    Raises:
        LockedError: When another process writes.
    """
    store = folder / "store"
    with write_lock(store.path, wait=0.0):
        if not is_unfinished(store) or is_open(store):
            return
        # Remove the settings first: without them nobody takes the rest for a knowledge base, even if this
        # process is killed before the rest is removed.
        folder.remove(SETTINGS)
        for name in ("published", "private"):
            shutil.rmtree(folder.path / "index" / name, ignore_errors=True)
        remove_states(folder / "index")
        discard_unfinished(store, folders=True)
    for path in (folder.path / "index", *([folder.path] if whole else [])):
        with suppress(OSError):  # The folder is not empty: something else is in it.
            path.rmdir()


def make(
    folder: Folder, settings: Settings, layout: Layout, *, wait: float, resume: bool
) -> tuple[LatentStore, Made]:
    """Make a knowledge base without documents, or resume one that was begun.

    Args:
        folder: The folder.
        settings: The settings to write.
        layout: The layout of the store.
        wait: As for `making`.
        resume: Whether to accept a knowledge base that was begun with the same settings.

    Returns:
        The store, and what was made.

    Raises:
        KnowledgeBaseError: As for `making`; with `resume`, also when the knowledge base already has a commit
            or was begun with other settings.
        LockedError: As for `making`.
    """
    with making(folder, wait, resume) as made:
        if made.contents:
            store = LatentStore.create(folder / "store", layout)
            # Write the settings last, so that a folder with kb.json is always complete.
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
    """Check that a build can be resumed.

    Args:
        folder: The knowledge base's folder.
        store: Its store.
        found: The settings that it was begun with.
        wanted: The settings asked for now.
        layout: The store layout asked for now.

    Raises:
        KnowledgeBaseError: When the build already has a commit, or was begun with other settings.
    """
    if store.version:
        raise finished_already(folder, store)
    # Each that is asked for has an id of its own; the one that was begun keeps its.
    wanted = replace(wanted, id=found.id)
    there, requested = vars(found) | vars(store.layout), vars(wanted) | vars(layout)
    other = [name for name in requested if there[name] != requested[name]]
    if other:
        name = other[0]
        raise KnowledgeBaseError(
            f"{folder} was begun with {name} {there[name]!r}, not {requested[name]!r}: use the same, choose "
            "another folder, or remove this one."
        )


def finished_already(folder: Folder, store: LatentStore) -> KnowledgeBaseError:
    """The error that says that a knowledge base already has a commit."""
    return KnowledgeBaseError(
        f"{folder} is finished already: {store.count_documents():,} documents, version {store.version}. "
        "Bring it up to date with lclm-rag add or sync, or choose another folder."
    )
