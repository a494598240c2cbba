"""What a forked child does with what its parent has opened: nothing.

Threads do not survive a fork, locks that another thread held stay held, and what the child closes, flushes or
unlinks the parent loses. So the child leaves it all as it is, never to be destroyed, and opens its own.
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
    def after_fork(self) -> None:
        """Called in a forked child, in its one thread, before anything else runs. It waits for no lock."""


_watched: WeakSet[Forkable] = WeakSet()


def this_process() -> int:
    """What a process and its forked children differ in, also where a pid comes again, as in containers."""
    return _forks


def watch(thing: Forkable) -> None:
    """Call `thing.after_fork()` in every child that is forked while `thing` is there."""
    _watched.add(thing)


def keep_for_ever(thing: object) -> None:
    """It is not closed or destroyed any more, not even when the interpreter ends."""
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
    """Before Python 3.12 a cached_property computes under a lock that all objects of its class share."""
    if sys.version_info >= (3, 12):
        return
    package = __name__.partition(".")[0]
    modules = [m for name, m in sys.modules.items() if name.partition(".")[0] == package]
    classes = [cls for m in modules for cls in vars(m).values() if isinstance(cls, type)]
    for part in (part for cls in classes for part in vars(cls).values()):
        if isinstance(part, cached_property):
            part.lock = RLock()  # type: ignore[attr-defined]


def _end_openmp_threads() -> None:
    """A thread that has computed with libgomp's threads would wait for them for ever in the child. They start
    anew, here and there, with the next computation; other OpenMP libraries see to it themselves."""
    if "torch" not in sys.modules:
        return
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
        for library in set(re.findall(r"(/.*/libgomp[^/\n]*)$", maps, re.MULTILINE)):
            with suppress(OSError, AttributeError):
                ctypes.CDLL(library).omp_pause_resource_all(_OMP_PAUSE_HARD)


os.register_at_fork(before=_end_openmp_threads, after_in_child=_after_fork)
