"""Work in another process or thread, which may hang without its test doing so."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["LIMIT", "drop_privileges", "in_child", "in_threads"]

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


def drop_privileges(groups: Sequence[int] = ()) -> None:
    """Take from this process what root may do beyond others: modes of files then bind it as they bind anyone.

    Args:
        groups: The groups that it then belongs to, beside its own.
    """
    if os.geteuid() != 0:
        return
    os.setgroups(list(groups))
    # Version 3 of the call's header, this process; no effective, permitted and inheritable capabilities.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0, os.strerror(ctypes.get_errno())


def in_threads(*works: Callable[[], Any]) -> Callable[[], list[Any]]:
    """Start works, each in a thread; returns what gives their results, errors among them."""
    results: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except BaseException as error:
            results[number] = error

    threads = [
        threading.Thread(target=run, args=(i,), daemon=True, name=f"asks-{i}")
        for i in range(len(works))
    ]
    for thread in threads:
        thread.start()

    def wait() -> list[Any]:
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive(), f"{thread.name} hangs."
        return results

    return wait
