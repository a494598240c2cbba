"""Reads a generation that runs elsewhere piece by piece, and ends it when nobody reads on."""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from lclm_rag.errors import DecoderError
from lclm_rag.forking import this_process

__all__ = ["Generation", "Put", "Start", "apieces", "in_thread", "pieces"]

_END = object()

_LAST_WAIT = 30.0
"""Seconds that a generation gets for its last token when the interpreter ends."""

_running: dict[threading.Thread, tuple[int, Callable[[], object]]] = {}
"""The threads that generate, with the process that they run in and what ends them."""

Put = Callable[[str], None]
"""Hands a piece to the reader. Raises RuntimeError where the reader's event loop is closed."""


@dataclass(frozen=True)
class Generation:
    """A generation that runs.

    Attributes:
        done: Its end, with the error that it ended in.
        end: Ends it, within a token, and does not wait for that.
        thread: The thread that it runs in, if it has one to itself.
    """

    done: Future[None]
    end: Callable[[], object]
    thread: threading.Thread | None = None


Start = Callable[[Put], Generation]
"""Starts a generation that puts its pieces."""


def in_thread(work: Callable[[], None], end: Callable[[], object]) -> Generation:
    """Start a generation in a thread of its own.

    Args:
        work: Generates.
        end: Makes `work` end, within a token.

    Returns:
        The generation.
    """
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        finally:
            _running.pop(thread, None)

    thread = threading.Thread(target=run, name="lclm-rag-stream", daemon=True)
    _running[thread] = (this_process(), end)
    try:
        thread.start()
    except BaseException:
        _running.pop(thread, None)
        raise
    return Generation(done, end, thread)


def _end_all() -> None:
    """End what still generates when the interpreter ends, which would abort a thread inside of torch."""
    mine = {thread: end for thread, (at, end) in list(_running.items()) if at == this_process()}
    for end in mine.values():
        end()
    for thread in mine:
        thread.join(_LAST_WAIT)


atexit.register(_end_all)


def pieces(start: Start) -> Generator[str]:
    """Read a generation. Closing the iterator, or an error in the caller, ends the generation.

    Args:
        start: Starts it.

    Yields:
        Its pieces.

    Raises:
        DecoderError: When a forked child reads on in a stream of its parent.
    """
    process = this_process()
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    generation = start(came.put)
    generation.done.add_done_callback(lambda _: came.put(_END))
    try:
        while (piece := came.get()) is not _END:
            yield piece
            _require_same(process)
        generation.done.result()
    finally:
        if this_process() == process:
            generation.end()
            # The garbage collector may close a stream in any thread, the generation's own included.
            if generation.thread and generation.thread is not threading.current_thread():
                generation.thread.join()


class _AsyncPieces:
    """What `apieces` returns.

    It is no generator: an event loop that ends closes all asynchronous generators at once, and those that
    are inside of others would be closed twice.
    """

    def __init__(self, start: Start) -> None:
        loop = asyncio.get_running_loop()
        self._process = this_process()
        self._came: asyncio.Queue[Any] = asyncio.Queue()

        def put(piece: Any) -> None:
            loop.call_soon_threadsafe(self._came.put_nowait, piece)

        def put_end(_: Future[None]) -> None:
            with suppress(RuntimeError):
                put(_END)

        self._generation = start(put)
        self._generation.done.add_done_callback(put_end)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        _require_same(self._process)
        if (piece := await self._came.get()) is _END:
            self._generation.done.result()
            raise StopAsyncIteration
        return str(piece)

    async def aclose(self) -> None:
        """End the generation and wait for its end."""
        if this_process() == self._process:
            self._generation.end()
            end = asyncio.wrap_future(self._generation.done)
            await asyncio.gather(end, return_exceptions=True)


def apieces(start: Start) -> _AsyncPieces:
    """`pieces` for callers in an event loop, who must close it: `async with aclosing(apieces(start))`.

    Args:
        start: Starts the generation, right now.

    Returns:
        An iterator over its pieces. It raises DecoderError when a forked child reads on in a stream of its
        parent.
    """
    return _AsyncPieces(start)


def _require_same(process: int) -> None:
    """Raise DecoderError in a forked child: what its parent's stream reads from is not here."""
    if this_process() != process:
        raise DecoderError(
            "This stream runs in the process that this one was forked from; ask again here."
        )
