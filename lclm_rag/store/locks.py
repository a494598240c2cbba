"""Who may write, and which versions are being read. Locks of the operating system: they die with their
process. Their files are empty; what they have to tell is in their names."""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lclm_rag.errors import LockedError
from lclm_rag.forking import this_process
from lclm_rag.storage import is_disk_full

__all__ = ["Lease", "reading", "versions_read", "write_lock"]

_WRITER = "writer-"


@contextmanager
def write_lock(folder: Path, wait: float) -> Iterator[None]:
    """Be the one writer in `folder`. LockedError names the holder's process after `wait` seconds. A child
    that is forked meanwhile does not hold the lock, and leaves this block without a trace."""
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise LockedError(
            f"{folder} is being written by another process{_holder(folder)}; wait until it is done."
        ) from error
    try:
        for stale in folder.glob(f"{_WRITER}*"):
            stale.unlink(missing_ok=True)
        mark, process = folder / f"{_WRITER}{os.getpid()}", this_process()
        # On a full disk a writer may still be needed, to make room.
        with suppress(OSError):
            mark.touch()
        try:
            yield
        finally:
            if process == this_process():
                mark.unlink(missing_ok=True)
    finally:
        lock.release()


def _holder(folder: Path) -> str:
    pids = [path.name.removeprefix(_WRITER) for path in folder.glob(f"{_WRITER}*")]
    return f" (pid {pids[0]})" if pids else ""


class Lease:
    """Says that a version is being read, until it is released, forgotten, or its process ends."""

    def __init__(self, path: Path) -> None:
        lock = FileLock(path, thread_local=False)
        lock.acquire(timeout=0)
        self.release = weakref.finalize(self, _release, path, lock, this_process())


def _release(path: Path, lock: FileLock, process: int) -> None:
    if process != this_process():
        return
    with suppress(OSError):
        path.unlink()
    lock.release()


@contextmanager
def reading(folder: Path) -> Iterator[_Gate | None]:
    """While a version is chosen and leased nobody takes one away. None where nothing can be written into
    `folder`: such a reader is not known to `vacuum`."""
    gate = FileLock(folder / "gate", thread_local=False)
    try:
        gate.acquire()
    except OSError:
        yield None
        return
    try:
        yield _Gate(folder)
    finally:
        gate.release()


class _Gate:
    """The right to make leases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lease(self, version: int) -> Lease | None:
        """None where the disk is so full that it cannot be told."""
        path = self._folder / f"{version}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            return Lease(path)
        except OSError as error:
            if not is_disk_full(error):
                raise
            return None


def versions_read(folder: Path) -> set[int]:
    """The versions under lease; leases of dead processes are removed. Call it within `reading`."""
    found = set()
    for path in folder.glob("*-*-*"):
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found.add(int(path.name.partition("-")[0]))
        else:
            path.unlink(missing_ok=True)
            lock.release()
    return found
