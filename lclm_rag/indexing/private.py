"""The private folders of processes, in which the engine works: it allows one process per folder."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from lclm_rag.forking import this_process
from lclm_rag.indexing.files import copy_file, copy_tree, disk_bytes
from lclm_rag.indexing.snapshot import Snapshot
from lclm_rag.retrieval.edge import stored_keys
from lclm_rag.storage.locks import gate
from lclm_rag.types import PassageKey

__all__ = ["PrivateFolder", "remove_leftovers", "snapshot_keys"]


class PrivateFolder:
    """A folder of this process alone, until it is closed or the process ends.

    Args:
        private: The folder in which it is made.

    Raises:
        LockedError: If another process holds the gate of that folder, and is not done after 20 seconds.
    """

    def __init__(self, private: Path) -> None:
        self._process = this_process()
        remove_leftovers(private)
        self.path = private / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        # The lock before the folder: leftovers are found by their lock files, so a folder without one would
        # stay for good if this process were killed in between.
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        # With the gate held: between its creation and its locking, a lock file looks like that of a process
        # that has ended.
        with gate(private):
            self._lock.acquire(timeout=0)
        self.path.mkdir()

    def link(self, snapshot: Snapshot) -> None:
        """Make `edge` a view of a snapshot, for searching only.

        Args:
            snapshot: The snapshot.

        Raises:
            FileNotFoundError: If a file of the snapshot is missing, because it was removed or is damaged.
        """
        shutil.rmtree(self.path / "edge", ignore_errors=True)
        (self.path / "edge").mkdir()
        # The names come from `index.json` and not from a listing: while another process removes the snapshot,
        # a listing may show only some of its files, and the view would lack the others without an error.
        for name in snapshot.files:
            path, target = snapshot.path / "edge" / name, self.path / "edge" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if _can_be_linked(path):
                with suppress(OSError):  # On another file system, or on one without hard links.
                    os.link(path, target)
                    continue
            copy_file(path, target)

    def copy_links(self) -> None:
        """Copy the view in `edge`, so that `take_copy` can put the copy in its place."""
        try:
            copy_tree(self.path / "edge", self.path / "copied")
        except BaseException:
            shutil.rmtree(self.path / "copied", ignore_errors=True)
            raise

    def take_copy(self) -> None:
        """Replace the view in `edge` by the copy that `copy_links` made; the index must be closed."""
        (self.path / "edge").rename(self.path / "linked")
        (self.path / "copied").rename(self.path / "edge")
        shutil.rmtree(self.path / "linked")

    def close(self) -> None:
        """Remove the folder; in a forked child, which does not own it, do nothing."""
        if self._process != this_process():
            return
        # The lock file after the folder, because leftovers are found by it; and the lock is released last, so
        # that no other process cleans up here at the same time.
        shutil.rmtree(self.path, ignore_errors=True)
        Path(f"{self.path}.lock").unlink(missing_ok=True)
        self._lock.release()


def _can_be_linked(path: Path) -> bool:
    """Whether the engine may have a file itself; of some it must be given a copy.

    It opens all files for writing (which changes their times), and rewrites one when it opens a folder.
    """
    may_be_touched = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return path.name != "edge_config.json" and may_be_touched


def snapshot_keys(private: Path, snapshot: Snapshot) -> set[PassageKey]:
    """Read the keys of all passages that a snapshot holds.

    Args:
        private: Where a private folder is made for reading.
        snapshot: The snapshot.

    Raises:
        PassageIndexError: If the snapshot is damaged.
    """
    own = PrivateFolder(private)
    try:
        own.link(snapshot)
        return stored_keys(own.path / "edge")
    finally:
        own.close()


def remove_leftovers(private: Path) -> int:
    """Remove the private folders of processes that have ended.

    Args:
        private: The folder of the private folders.

    Returns:
        The bytes freed on disk.
    """
    found = []
    with gate(private):
        for path in private.glob("*.lock"):
            lock = FileLock(path, thread_local=False)
            with suppress(OSError):  # In use (`Timeout` is an OSError), or another user's.
                lock.acquire(timeout=0)
                found.append((path, lock))
    freed = 0
    # Without the gate, which others wait for; the locks keep them off.
    for path, lock in found:
        # The folder before its lock file, and the lock last, as in `PrivateFolder.close`.
        folder = path.with_suffix("")
        freed += disk_bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        path.unlink(missing_ok=True)
        lock.release()
    return freed
