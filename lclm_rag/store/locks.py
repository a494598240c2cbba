"""Locks for the one writer, and leases on the versions that are being read.

All are locks of the operating system, which end with their process. Their files are empty; the names say who
holds them:

- `lock`: held by the writer, which also puts an empty file `writer-<pid>` beside it.
- `gate`: held while a reader chooses and leases a version, or while `vacuum` looks for leases.
- `<version>-<pid>-<id>`: held by a reader of that version.
"""

from __future__ import annotations

import errno
import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lclm_rag.errors import LockedError, StoreError
from lclm_rag.forking import this_process
from lclm_rag.storage import is_disk_full, is_read_only
from lclm_rag.storage.locks import gate, holder

__all__ = ["Lease", "reading", "versions_read", "write_lock"]

_WRITER = "writer-"


@contextmanager
def write_lock(folder: Path, wait: float) -> Iterator[None]:
    """Be the one writer in a folder.

    A child that is forked within this block does not hold the lock, and removes nothing when it leaves.

    Args:
        folder: The folder of the lock's file.
        wait: The number of seconds to wait for another writer.

    Raises:
        LockedError: If another process still writes after that time. The message names the process.
        StoreError: If nothing may be written into the folder.
    """
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        _require_writable(folder)
        lock.acquire(timeout=wait)
    except Timeout as error:
        marks = [path.name.removeprefix(_WRITER) for path in folder.glob(f"{_WRITER}*")]
        noted = int(marks[0]) if marks and marks[0].isdecimal() else None
        raise LockedError(
            f"{folder} is being written by {holder(folder / 'lock', noted)}; wait until it is done."
        ) from error
    except OSError as error:
        if not is_read_only(error):
            raise
        raise StoreError(
            f"{folder} can only be read ({error.strerror}): whoever is to change it needs the right to write "
            "all of its files and folders."
        ) from error
    try:
        # Marks of other writers are stale now: whoever made them no longer holds the lock.
        for stale in folder.glob(f"{_WRITER}*"):
            stale.unlink(missing_ok=True)
        mark, process = folder / f"{_WRITER}{os.getpid()}", this_process()
        # The mark is only for error messages. On a full disk do without it: this writer may be `vacuum`,
        # which makes room.
        with suppress(OSError):
            mark.touch()
        try:
            yield
        finally:
            if process == this_process():
                mark.unlink(missing_ok=True)
    finally:
        lock.release()


def _require_writable(folder: Path) -> None:
    """PermissionError if a file cannot be put into the folder or one in it: now, and not after the work."""
    for place in (folder, *folder.iterdir()):
        if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


class Lease:
    """A reader's claim on a version, until it is released, garbage-collected, or its process ends.

    Args:
        path: The file to lock, `<version>-<pid>-<id>`.
    """

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
    """Hold the gate: within this block no other process removes versions, or takes out a lease.

    A reader holds it from its choice of a version until it has the lease: otherwise `vacuum` could remove the
    version between the two.

    Args:
        folder: The folder of the leases.

    Yields:
        The right to make leases; None if nothing can be written into the folder. `vacuum` does not know of
        such a reader.

    Raises:
        LockedError: If another process holds the gate, and is not done after 20 seconds.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(gate(folder))
        except OSError:
            may_write = False
        else:
            may_write = True
        yield _Gate(folder) if may_write else None


class _Gate:
    """The right to make leases in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lease(self, version: int) -> Lease | None:
        """A lease on a version; None if the disk is too full for its file, or nothing may be written."""
        path = self._folder / f"{version}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            return Lease(path)
        except OSError as error:
            if not is_disk_full(error) and not is_read_only(error):
                raise
            return None


def versions_read(folder: Path) -> set[int]:
    """The versions under lease; leases of dead processes are removed.

    Call it within `reading`. A lease's file is made before it is locked: without the gate, a lease that is
    just being made would look like that of a dead process.
    """
    found = set()
    for path in folder.glob("*-*-*"):
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (
            Timeout,
            PermissionError,
        ):  # In use; or another user's, of which that cannot be told.
            found.add(int(path.name.partition("-")[0]))
        else:
            path.unlink(missing_ok=True)
            lock.release()
    return found
