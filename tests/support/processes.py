"""Work in another process, which may hang without its test doing so."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["LIMIT", "in_child"]

LIMIT = 60
"""Seconds after which a process is taken to hang."""


def in_child(work: Callable[..., Any], *arguments: Any, method: str = "fork") -> Any:
    """What `work` returns in another process."""
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sending, work, *arguments))  # type: ignore[attr-defined]
    child.start()
    try:
        assert receiving.poll(LIMIT), "The child hangs."
        done, value = receiving.recv()
        assert done, value
        child.join(LIMIT)
        assert child.exitcode == 0
        return value
    finally:
        child.kill()
        child.join()


def _send(sending: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    try:
        sending.send((True, work(*arguments)))
    except BaseException:
        sending.send((False, traceback.format_exc()))
