"""Ctrl-C before a command runs: while Python still imports what the commands need."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["imports_are_done", "watch_imports"]

_EXIT_INTERRUPTED = 130


def watch_imports() -> None:
    """Let Ctrl-C end the process with a word instead of a traceback, if the process is `lclm-rag`.

    A program that imports the library keeps its own way to be interrupted.
    """
    name = (sys.argv[0] if sys.argv else "").replace("\\", "/").rpartition("/")[2]
    # While Python looks for the module that `python -m` is to run, "-m" stands for its name.
    is_ours = name in ("lclm-rag", "lclm-rag.exe") or (
        name == "-m" and "lclm_rag.cli" in sys.orig_argv
    )
    if is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def imports_are_done() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    # There is nothing to tidy up, and an exception in the middle of an import may be taken for its failure.
    os.write(2, b"Interrupted.\n")
    os._exit(_EXIT_INTERRUPTED)
