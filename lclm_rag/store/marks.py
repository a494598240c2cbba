"""Marks of the runs that write into an object store, where no lock tells `vacuum` that they live.

A mark is an object `uncommitted/<began>-<version>-<id>.alive`: when the run began, in seconds since 1970, and
the version that it builds on. The run puts it again every hour, and removes it when it ends.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from lclm_rag.forking import this_process
from lclm_rag.storage import FileFacts, Folder

__all__ = ["ALIVE", "LiveRun", "live_runs", "marked"]

ALIVE = ".alive"

_EVERY_SECONDS = 3600.0
_END_SECONDS = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveRun:
    """A run that writes.

    Attributes:
        began: When it began, in seconds since 1970, by its own clock.
        version: The version that it builds on.
    """

    began: float
    version: int


def live_runs(files: Iterable[FileFacts], since: float) -> list[LiveRun]:
    """The runs whose marks were put after a time.

    Args:
        files: The files of the folder of the marks.
        since: The time, in seconds since 1970.
    """
    runs = []
    for facts in files:
        began, _, rest = facts.name.partition("-")
        version = rest.partition("-")[0]
        named = facts.name.endswith(ALIVE) and began.isdecimal() and version.isdecimal()
        if named and facts.modified >= since:
            runs.append(LiveRun(float(began), int(version)))
    return runs


@contextmanager
def marked(folder: Folder, version: int, *, at_once: bool) -> Iterator[None]:
    """Keep a mark of this run in a folder while the block lasts.

    Args:
        folder: The folder of the marks.
        version: The version that the run builds on.
        at_once: Whether the first mark is put before the block begins; otherwise after an hour, because what
            the run writes is too young for `vacuum` until then.

    Raises:
        OSError: If the mark is to be put at once and cannot be.
    """
    name = f"{time.time():.0f}-{version}-{uuid.uuid4().hex}{ALIVE}"
    ended = threading.Event()
    process = this_process()

    def put_again() -> None:
        while not ended.wait(_EVERY_SECONDS):
            try:
                folder.replace(name, b"1")
            except OSError as error:
                _log.warning("This run could not be marked as alive; again in an hour. %s", error)

    if at_once:
        folder.replace(name, b"1")
    thread = threading.Thread(target=put_again, name="mark of a run", daemon=True)
    began = time.monotonic()
    thread.start()
    try:
        yield
    finally:
        if process == this_process():
            ended.set()
            thread.join(_END_SECONDS)
            if at_once or time.monotonic() - began > _EVERY_SECONDS:
                # One that stays counts as a live run for a day.
                with suppress(OSError):
                    folder.remove(name)
