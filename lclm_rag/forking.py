"""What a forked child does with what its parent has opened: nothing.

Threads do not survive a fork, locks that another thread held stay held, and whatever the child closes,
flushes or unlinks is lost to the parent. So the child leaves all of it alone, never to be destroyed, and
opens its own.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Protocol
from weakref import WeakSet, finalize, getweakrefs

__all__ = ["Forkable", "keep_for_ever", "this_process", "watch"]

_OMP_PAUSE_HARD = 2

_forks = 0


class Forkable(Protocol):
    """Something that must react when its process is forked."""

    def after_fork(self) -> None:
        """Let go of the parent's resources.

        It is called in a forked child, in the child's one thread, before anything else runs. It must not wait
        for a lock.
        """


_watched: WeakSet[Forkable] = WeakSet()


def this_process() -> int:
    """A number that differs between a process and its forked children.

    A pid would not do: in containers pids come again.
    """
    return _forks


def watch(thing: Forkable) -> None:
    """Call `thing.after_fork()` in every child that is forked while `thing` exists."""
    _watched.add(thing)


def keep_for_ever(thing: object) -> None:
    """Never close or destroy `thing`, not even when the interpreter ends."""
    for reference in getweakrefs(thing):
        if isinstance(reference.__callback__, finalize):
            reference.__callback__.detach()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork() -> None:
    global _forks
    _forks += 1
    _renew_cached_property_locks()
    for thing in list(_watched):
        thing.after_fork()


def _renew_cached_property_locks() -> None:
    """Before Python 3.12, a cached_property computes under a lock shared by all objects of its class."""
    if sys.version_info >= (3, 12):
        return
    package = __name__.partition(".")[0]
    modules = [m for name, m in sys.modules.items() if name.partition(".")[0] == package]
    classes = [cls for m in modules for cls in vars(m).values() if isinstance(cls, type)]
    for part in (part for cls in classes for part in vars(cls).values()):
        if isinstance(part, cached_property):
            part.lock = RLock()  # type: ignore[attr-defined]


def _end_openmp_threads() -> None:
    """Stop libgomp's threads before a fork, or a thread that has used them would hang in the child.

    The threads start again, in parent and child, with the next computation. Other OpenMP libraries handle
    forks themselves.
    """
    if "torch" not in sys.modules:
        return
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
        for library in set(re.findall(r"(/.*/libgomp[^/\n]*)$", maps, re.MULTILINE)):
            with suppress(OSError, AttributeError):
                ctypes.CDLL(library).omp_pause_resource_all(_OMP_PAUSE_HARD)


os.register_at_fork(before=_end_openmp_threads, after_in_child=_after_fork)
