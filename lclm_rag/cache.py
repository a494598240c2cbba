"""The folder for what can be made or fetched again."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from lclm_rag.forking import this_process

__all__ = ["in_cache", "make_in_cache", "writable_cache"]

_NAMED = "LCLM_RAG_CACHE"

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The cache's folder: LCLM_RAG_CACHE, or lclm-rag in the user's cache. It need not exist."""
    if named := os.environ.get(_NAMED):
        return Path(named)
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "lclm-rag"
    try:
        return Path.home() / ".cache" / "lclm-rag"
    except RuntimeError:  # In a container, a user may have none.
        return _instead(Path("~/.cache/lclm-rag"), "this user has no home folder")


def in_cache(part: str, name: str) -> Path | None:
    """Something in the cache, which may be one that can only be read.

    Args:
        part: The name of the part that it is in.
        name: Its name.

    Returns:
        Its path; None if it is not there, or may not be looked at.
    """
    path = cache_folder() / part / name
    try:
        return path if path.exists() else None
    except OSError:
        return None


def writable_cache(part: str) -> Path:
    """A part of the cache, made if it is missing.

    If nothing can be written there, it is in a temporary folder, which this process removes when it ends.
    That is logged, once.

    Args:
        part: The name of the part.
    """
    folder = cache_folder()
    try:
        _make_root(folder)
        (folder / part).mkdir(exist_ok=True)
        if os.access(folder / part, os.W_OK | os.X_OK):
            return folder / part
        reason = "its folders may not be changed"
    except OSError as error:
        reason = error.strerror or str(error)
    place = _instead(folder, reason) / part
    place.mkdir(exist_ok=True)
    return place


def make_in_cache(part: str, name: str, write: Callable[[Path], object]) -> Path:
    """Make a folder in the cache, whole or not at all.

    Args:
        part: The name of the part that it is in.
        name: Its name.
        write: Writes a new folder, which gets its name afterwards. Beside it is room for what goes away then.

    Returns:
        The folder; that of another process if it was faster.
    """
    target = writable_cache(part) / name
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as place:
        made = Path(place) / "made"
        write(made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # Else another process was faster.
                raise
    return target


def _make_root(folder: Path) -> None:
    if os.environ.get(_NAMED):  # Perhaps shared: the umask decides.
        folder.mkdir(parents=True, exist_ok=True)
        return
    # For the user alone, since what lies there may come from places that others cannot read.
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


@cache
def _instead(folder: Path, reason: str) -> Path:
    place = Path(tempfile.mkdtemp(prefix="lclm-rag-cache-"))
    _log.warning(
        "The cache %s cannot be written (%s): until this process ends, %s is used, and the next one begins "
        "anew. %s names another folder.",
        folder,
        reason,
        place,
        _NAMED,
    )
    atexit.register(_remove, place, this_process())
    return place


def _remove(place: Path, process: int) -> None:
    if process == this_process():
        shutil.rmtree(place, ignore_errors=True)
