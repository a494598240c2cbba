"""Has HTML, PDF and DOCX converted by a process of its own: a bad file harms nothing else."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO, cast

from lclm_rag.connectors.corpora.conversion import memory_taken
from lclm_rag.connectors.corpora.limits import ReadingLimits, size
from lclm_rag.connectors.corpora.messages import first_line
from lclm_rag.errors import CorpusError

__all__ = ["convert", "missing"]

_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lclm_rag.connectors.corpora.conversion import serve; serve()"
)
_NO_MEMORY = 127
"""With this code, glibc ends a process for which it cannot allocate thread-local data."""

_LOOK_AGAIN = 0.05
"""Seconds between two looks at a process that converts."""

_START_SECONDS = 300.0
"""How long importing the converters may take, on a machine that is busy."""


def convert(data: bytes, suffix: str, where: str, limits: ReadingLimits) -> tuple[str, str | None]:
    """Convert a file to Markdown.

    Args:
        data: The file.
        suffix: ".pdf", ".docx", ".html" or ".htm"; HTML is UTF-8.
        where: The file, for error messages.
        limits: How long it may take, and how much memory.

    Returns:
        The Markdown, and the title that HTML may have apart from its text.

    Raises:
        CorpusError: When it cannot be converted, or takes more time or memory than is allowed.
        ImportError: When what the conversion needs is not installed.
    """
    child = _take()
    again = False
    try:
        reply, markdown = child.convert(data, suffix, limits)
        again = not reply["last"]
    finally:
        if again:
            with _lock:
                _idle.append(child)
        else:
            child.end()
    match reply["kind"]:
        case "":
            return markdown, reply["title"] or None
        case "missing":
            raise ImportError(missing(where))
        case "memory":
            problem = (
                f"converting it takes more than {size(limits.memory)} of memory; leave it out, or allow more "
                "(--convert-memory)."
            )
        case "late":
            problem = (
                f"converting it takes longer than {limits.seconds:g} seconds; leave it out, or allow more "
                "(--convert-seconds)."
            )
        case "crashed":
            problem = (
                f"the converter crashes at it ({reply['problem']}), perhaps for want of memory; leave it "
                "out, or allow more (--convert-memory)."
            )
        case _:
            problem = (
                f"cannot be read as {suffix[1:].upper()} ({first_line(reply['problem'])}); mend the file or "
                "leave it out."
            )
    raise CorpusError(f"{where}: {problem}")


def missing(where: str) -> str:
    """The message when what the conversion needs is not installed."""
    return f"{where}: HTML, PDF and DOCX need markitdown: pip install 'lclm-rag[documents]'"


class _Child:
    """A process that converts files; it belongs to the process that started it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            # -P: nothing is imported from the working directory, which may be the corpus.
            [sys.executable, "-P", "-c", _SERVE, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is this process's to handle; the child ends when its input does.
            start_new_session=True,
        )
        try:
            self._ready, _ = self._reply(_START_SECONDS)
        except BaseException:
            self.end()
            raise

    def convert(
        self, data: bytes, suffix: str, limits: ReadingLimits
    ) -> tuple[dict[str, Any], str]:
        if self._ready["kind"]:
            return self._ready, ""
        request = {
            "suffix": suffix,
            "memory": limits.memory,
            "seconds": limits.seconds,
            "size": len(data),
        }
        head = json.dumps(request).encode() + b"\n"
        return self._reply(limits.seconds, head, data, memory=limits.memory)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                cast(BinaryIO, stream).close()
        self._process.wait()

    def _reply(
        self, seconds: float, *request: bytes, memory: float = math.inf
    ) -> tuple[dict[str, Any], str]:
        """The next reply, or one for a process that gave none: it is killed if it takes too much."""
        came = threading.Event()
        killed = ""
        most = memory_taken(self._process.pid) + memory
        end = time.monotonic() + seconds

        def watch() -> None:
            # From here, because a Python that gets no memory at all may spin instead of saying so.
            nonlocal killed
            while not came.wait(min(_LOOK_AGAIN, max(0.0, end - time.monotonic()))):
                if time.monotonic() >= end:
                    killed = "late"
                elif memory_taken(self._process.pid) > most:
                    killed = "memory"
                else:
                    continue
                self._process.kill()
                return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        replies = cast(BinaryIO, self._process.stdout)
        try:
            for piece in request:
                cast(BinaryIO, self._process.stdin).write(piece)
            cast(BinaryIO, self._process.stdin).flush()
            line = replies.readline()
            reply = json.loads(line) if line.endswith(b"\n") else None
            markdown = replies.read(reply["size"]) if reply else b""
        except OSError:  # The child is gone, and with it the pipe.
            reply, markdown = None, b""
        finally:
            came.set()
            watcher.join()
        if reply is None or len(markdown) < reply["size"]:
            code = self._process.wait()
            problem = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            kind = killed or ("memory" if code == _NO_MEMORY else "crashed")
            return {"kind": kind, "problem": problem, "last": True}, ""
        return reply, markdown.decode()


_lock = threading.Lock()
_idle: list[_Child] = []
"""Children that wait for a file: as many as threads have converted files at the same time."""


def _take() -> _Child:
    with _lock:
        while _idle:
            child = _idle.pop()
            if child.is_alive():
                return child
            child.end()  # The system may have ended it, for want of memory.
    return _Child()


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


def _after_fork() -> None:
    """Leave the children to the process that was forked: both would talk to them at once."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
