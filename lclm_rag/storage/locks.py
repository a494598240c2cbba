"""Locks of the operating system, which end with their process, and who holds one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lclm_rag.errors import LockedError

__all__ = ["GATE", "gate", "holder"]

GATE = "gate"
"""The name of the file of a folder's gate."""

_WORD_AFTER = 3.0
_GATE_SECONDS = 20.0

_log = logging.getLogger(__name__)


@contextmanager
def gate(folder: Path) -> Iterator[None]:
    """Hold the gate of a folder, for a moment: of several processes, one looks at or changes its names.

    Args:
        folder: The folder.

    Raises:
        LockedError: If another process holds it, and is not done after 20 seconds. The message says which: it
            is likely to be stopped.
        OSError: If the gate's file may not be written.
    """
    path = folder / GATE
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=_WORD_AFTER)
    except Timeout:
        _log.warning("Waiting for %s, which is locked by %s.", path, holder(path))
        try:
            lock.acquire(timeout=_GATE_SECONDS - _WORD_AFTER)
        except Timeout as error:
            raise LockedError(
                f"{path}, which nobody needs for longer than a moment, has been locked for "
                f"{_GATE_SECONDS:.0f} seconds by {holder(path)}: end that process, or let it go on, and try "
                "again."
            ) from error
    try:
        yield
    finally:
        lock.release()


def holder(path: Path, noted: int | None = None) -> str:
    """Who holds the lock of a file.

    Args:
        path: The file.
        noted: The pid that the holder has noted, for where the system does not tell it; None if it has not.

    Returns:
        A text such as "another process (pid 17), lclm-rag vacuum", and what to do if the process is stopped.
    """
    pid = _local_holder(path)
    if pid is None:
        return (
            f"another process (pid {noted})"
            if noted
            else "another process, on this machine or another"
        )
    program = _program_of(pid)
    return (
        f"another process (pid {pid})"
        + (f", {program}" if program else "")
        + (f", which is stopped: kill -CONT {pid} lets it go on" if _is_stopped(pid) else "")
    )


def _local_holder(path: Path) -> int | None:
    """The process of this machine that holds the lock; None if that cannot be told."""
    with suppress(OSError):
        facts = path.stat()
        device = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 1234 08:02:5678 0 EOF; with -> after the number, one that waits.
            found = re.match(r"\d+: FLOCK +ADVISORY +WRITE +(\d+) (\S+) ", line)
            if found and found[2] == device and int(found[1]) > 0:
                return int(found[1])
    return None


def _program_of(pid: int) -> str:
    with suppress(OSError):
        return _program(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0"))
    return ""


def _program(arguments: Sequence[str]) -> str:
    """The name of a program, and of the command if it is lclm-rag; no more, for it may be secret."""
    names = [name for argument in arguments[:3] if (name := Path(argument).name)]
    if len(names) > 1 and re.fullmatch(r"python[\d.]*", names[0]) and names[1][0] != "-":
        names = names[1:]
    return " ".join(names[:2] if names[:1] == ["lclm-rag"] else names[:1])


def _is_stopped(pid: int) -> bool:
    with suppress(OSError, IndexError):
        # After the program's name, which stands in parentheses and may hold any character.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    return False
