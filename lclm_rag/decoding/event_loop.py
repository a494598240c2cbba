"""Decoders whose engine runs in an event loop, for callers in threads and in event loops alike."""

from __future__ import annotations

import asyncio
import threading
import weakref
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from lclm_rag.decoding.background import BackgroundDecoder
from lclm_rag.decoding.decoder import Completion, Finished, Outcome, Sampling
from lclm_rag.decoding.lifecycle import Lifecycle, closed_meanwhile
from lclm_rag.decoding.streams import Generation, Put
from lclm_rag.errors import DecoderError
from lclm_rag.forking import keep_for_ever, this_process, watch
from lclm_rag.prompting.soft_prompt import SoftPrompt

__all__ = ["EventLoopDecoder", "EventLoopThread"]

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]


class EventLoopThread:
    """An event loop in a separate thread. It ends with `close`, or when this object is garbage collected.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._lifecycle = Lifecycle()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._process = this_process()
        thread = threading.Thread(target=_run, args=(self.loop,), name=name, daemon=True)
        thread.start()
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

    def submit(self, work: Work[T]) -> Future[T]:
        """Start `work()` in the loop.

        Raises:
            DecoderError: When the decoder is closed, or the loop runs in the process that this one was forked
                from.
        """
        if self.inherited:
            raise DecoderError(
                "This decoder runs in the process that this one was forked from; make one here, or give the "
                "knowledge base the decoder by its name."
            )
        with self._lifecycle.kept_open():
            ended_by_close = self._ended_by_close(work)
            try:
                return asyncio.run_coroutine_threadsafe(ended_by_close, self.loop)
            except RuntimeError:  # A signal handler has closed it just now, in this thread.
                ended_by_close.close()
                raise closed_meanwhile() from None

    def run(self, work: Work[T]) -> T:
        """Run `work()` in the loop and wait for it in this thread; interrupting the wait cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self, release: Work[None] | None = None) -> None:
        """Stop the loop. Whoever waits for work gets a DecoderError. Closing twice does nothing.

        In a forked child it does nothing either.

        Args:
            release: Called in the loop, once no work is left; it may be called again after an interrupt.
        """
        if not self.inherited:
            self._lifecycle.close(partial(self._release, release))

    def _release(self, release: Work[None] | None) -> None:
        async def last() -> None:
            # Work first: an engine would report its end as a failure.
            for task in (tasks := list(self._tasks)):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if release is not None:
                await release()

        if self.stop.alive:
            asyncio.run_coroutine_threadsafe(last(), self.loop).result()
        self.stop()

    async def _ended_by_close(self, work: Work[T]) -> T:
        """`work()`, which raises DecoderError if `close` ends it.

        What is submitted before `close` starts before it, so `close` finds it among the tasks.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await work()
        except asyncio.CancelledError:
            if self._lifecycle.is_open:
                raise
            raise closed_meanwhile() from None
        finally:
            self._tasks.discard(task)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    async def end() -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    if thread is not threading.current_thread():
        # It may be busy with work that does not yield, such as starting an engine, and ends after that.
        thread.join(timeout=5)


class EventLoopDecoder(BackgroundDecoder):
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
    def _stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished
    ) -> AsyncGenerator[str]:
        """Complete one checked prompt piece by piece, in the engine's event loop."""

    def _submit(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> Iterator[Future[Outcome]]:
        async def complete(prompt: SoftPrompt) -> Outcome:
            await asyncio.to_thread(self.check, prompt, sampling)
            return await self._complete(prompt, sampling)

        for prompt in prompts:
            yield self.thread.submit(partial(complete, prompt))

    def _start(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished, put: Put
    ) -> Generation:
        async def pump() -> None:
            async with aclosing(self._stream(prompt, sampling, finished)) as came:
                async for piece in came:
                    try:
                        put(piece)
                    except RuntimeError:
                        # The reader is gone and has cancelled this. That comes here, before the stream is
                        # closed: its closing, interrupted, would leave the engine's request running.
                        await asyncio.sleep(0)
                        raise

        done = self.thread.submit(pump)
        return Generation(done, done.cancel)
