"""Decoders whose engine runs in an event loop, for callers in threads and in event loops alike."""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from abc import abstractmethod
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Iterator,
    Sequence,
)
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from lclm_rag.decoding.decoder import Completion, Decoder, Sampling
from lclm_rag.errors import DecoderError, PromptError
from lclm_rag.forking import keep_for_ever, this_process, watch
from lclm_rag.prompting.soft_prompt import SoftPrompt

__all__ = ["EventLoopDecoder", "EventLoopThread"]

T = TypeVar("T")
_END = object()


class EventLoopThread:
    """An event loop in a separate thread. It ends with `stop`, or when this object is garbage collected.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        thread.start()
        self._process = this_process()
        self.stop = weakref.finalize(self, _stop, self.loop, thread)
        watch(self)

    def after_fork(self) -> None:
        """Release nothing in a forked child.

        The thread does not exist there, and what wakes the loop is shared with the parent.
        """
        keep_for_ever(self)

    @property
    def inherited(self) -> bool:
        """Whether the loop runs in the process that this one was forked from."""
        return self._process != this_process()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work` in the loop.

        Raises:
            DecoderError: When the loop runs in the process that this one was forked from.
        """
        if self.inherited:
            work.close()
            raise DecoderError(
                "This decoder runs in the process that this one was forked from; make one here, or give the "
                "knowledge base the decoder by its name."
            )
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the loop and wait for it in this thread; interrupting the wait cancels `work`."""
        future = self.submit(work)
        try:
            return future.result()
        finally:
            future.cancel()

    def cancel(self) -> None:
        """Cancel everything that runs in the loop."""
        self.run(_cancel_the_rest())

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` and wait for it in the caller's event loop; cancelling the wait cancels `work`."""
        return await asyncio.wrap_future(self.submit(work))


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if thread is threading.current_thread():
        loop.stop()
        return
    try:
        asyncio.run_coroutine_threadsafe(_cancel_the_rest(), loop).result(timeout=5)
    except TimeoutError:
        return  # Busy with work that does not yield, such as starting an engine. The thread is a daemon.
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=10)
    loop.close()


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


class EventLoopDecoder(Decoder):
    """A decoder made of two coroutines: a subclass implements `_complete` and `_stream`.

    `complete`, `stream`, `acomplete` and `astream` run them in the engine's event loop. Any number of threads
    and tasks may call at once; their requests run side by side in the engine.

    Args:
        thread: The thread with the engine's event loop.
    """

    def __init__(self, thread: EventLoopThread) -> None:
        self.thread = thread
        watch(self)

    def after_fork(self) -> None:
        """Release nothing in a forked child: engines and connections are the parent's."""
        keep_for_ever(self)

    @abstractmethod
    async def _complete(self, prompt: SoftPrompt, sampling: Sampling) -> Completion:
        """Complete one checked prompt, in the engine's event loop."""

    @abstractmethod
    def _stream(self, prompt: SoftPrompt, sampling: Sampling) -> AsyncGenerator[str]:
        """Complete one checked prompt piece by piece, in the engine's event loop."""

    def complete(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> list[Completion | PromptError]:
        """See `Decoder.complete`."""
        return self.thread.run(self._complete_all(prompts, sampling))

    async def acomplete(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> list[Completion | PromptError]:
        """See `Decoder.acomplete`; no thread waits here."""
        return await self.thread.arun(self._complete_all(prompts, sampling))

    def stream(self, prompt: SoftPrompt, sampling: Sampling) -> Iterator[str]:
        """See `Decoder.stream`."""
        self.check(prompt, sampling)
        came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        work = self.thread.submit(_pump(self._stream(prompt, sampling), came.put))
        work.add_done_callback(lambda _: came.put(_END))
        try:
            while (piece := came.get()) is not _END:
                yield piece
            work.result()
        finally:
            work.cancel()

    async def astream(self, prompt: SoftPrompt, sampling: Sampling) -> AsyncGenerator[str]:
        """See `Decoder.astream`; no thread waits for the pieces."""
        await asyncio.to_thread(self.check, prompt, sampling)
        loop = asyncio.get_running_loop()
        came: asyncio.Queue[Any] = asyncio.Queue()

        def put(piece: Any) -> None:
            with suppress(RuntimeError):  # The caller's loop has ended before the generation.
                loop.call_soon_threadsafe(came.put_nowait, piece)

        work = self.thread.submit(_pump(self._stream(prompt, sampling), put))
        work.add_done_callback(lambda _: put(_END))
        try:
            while (piece := await came.get()) is not _END:
                yield piece
            work.result()
        finally:
            work.cancel()

    async def _complete_all(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> list[Completion | PromptError]:
        async def one(prompt: SoftPrompt) -> Completion | PromptError:
            try:
                await asyncio.to_thread(self.check, prompt, sampling)
                return await self._complete(prompt, sampling)
            except PromptError as error:
                return error

        try:
            async with asyncio.TaskGroup() as group:  # An engine's failure ends the others, too.
                tasks = [group.create_task(one(prompt)) for prompt in prompts]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]


async def _pump(pieces: AsyncGenerator[str], put: Callable[[Any], None]) -> None:
    async with aclosing(pieces):
        async for piece in pieces:
            put(piece)
