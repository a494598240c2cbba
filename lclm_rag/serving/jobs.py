"""Jobs: changes of knowledge bases, worked on one after another while questions go on."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import anyio

from lclm_rag.errors import CompressionError, CorpusError, KnowledgeBaseError, LockedError
from lclm_rag.serving.bases import ServedBase
from lclm_rag.serving.errors import RequestError
from lclm_rag.serving.limits import Limits

__all__ = ["Job", "Jobs", "events"]

_log = logging.getLogger(__name__)

_TRY_AGAIN = 0.2
"""Seconds between two tries to become the writer while another process is."""


class _StoppedError(Exception):
    """The service stops, and a job with it."""


@dataclass(eq=False)
class Job:
    """A change of a knowledge base.

    Attributes:
        id: What it is asked for by.
        base: The knowledge base.
        operation: What is done to it.
        owner: The hash of the key that asked for it; None if no key was needed.
        created: When it was asked for, in seconds since 1970.
        state: How far it is.
        documents: Documents that are done.
        passages: Passages of these that are done.
        report: What it did; None until it is done.
        failure: Why it failed.
        changed: Set, and replaced by another, whenever one of the above changes.
    """

    base: ServedBase
    operation: Literal["add", "delete"]
    owner: str | None
    id: str = field(default_factory=lambda: f"job-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    state: Literal["queued", "running", "done", "failed"] = "queued"
    documents: int = 0
    passages: int = 0
    report: dict[str, Any] | None = None
    failure: RequestError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in ("done", "failed")

    def set(self, **values: Any) -> None:
        """Change some attributes, and tell those who wait for that. Call it in the event loop."""
        for name, value in values.items():
            setattr(self, name, value)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def end(self) -> None:
        """Wait until it has ended."""
        while not self.ended:
            await self.changed.wait()

    def describe(self) -> dict[str, Any]:
        """The job as clients get it."""
        return {
            "id": self.id,
            "object": "job",
            "model": self.base.name,
            "operation": self.operation,
            "created": self.created,
            "state": self.state,
            "documents": self.documents,
            "passages": self.passages,
            "report": self.report,
            "error": None if self.failure is None else str(self.failure),
        }


Progress = Callable[[int, int], None]
"""Takes the documents and passages that are done; raises once the service stops, to end the work."""

Work = Callable[[Progress], dict[str, Any]]
"""Changes a knowledge base, in a thread, and returns the report. It must be able to run again."""


class Jobs:
    """The jobs of a service: those that wait, one at work for each knowledge base, and some that have ended.

    They are in memory only. What a stopped job had compressed stays, and the next upload of it is faster.

    Args:
        bases: The number of knowledge bases.
        limits: How many jobs there may be, and how long one waits for another process.
    """

    def __init__(self, bases: int, limits: Limits) -> None:
        self._limits = limits
        self._jobs: dict[str, Job] = {}
        self._receiving = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = threading.Event()
        # Threads of their own: long jobs must not take those in which questions are looked up.
        self._threads = ThreadPoolExecutor(max(1, bases), "job")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Keep a place while the change is received.

        Raises:
            RequestError: 429, when there are too many jobs; 503, when the service stops.
        """
        if self._stop.is_set():
            raise RequestError(503, "The service is being stopped; try again later.")
        pending = sum(not job.ended for job in self._jobs.values())
        if pending + self._receiving >= self._limits.jobs:
            raise RequestError(
                429,
                f"{self._limits.jobs} changes wait already; try again in a few seconds.",
                code="too_many_jobs",
                headers={"Retry-After": "5"},
            )
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1

    def start(
        self,
        base: ServedBase,
        operation: Literal["add", "delete"],
        owner: str | None,
        work: Work,
        discard: Callable[[], None] = lambda: None,
    ) -> Job:
        """Start a job; those before it on the same knowledge base are done first. Call it within `place`.

        Args:
            base: The knowledge base.
            operation: What is done to it.
            owner: The hash of the key that asks for it; None if no key was needed.
            work: Does it.
            discard: Called in a thread when the job has ended: removes what was received.

        Returns:
            The job.
        """
        job = Job(base, operation, owner)
        self._jobs[job.id] = job
        task = asyncio.create_task(self._run(job, work, discard))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def of(self, owner: str | None) -> list[Job]:
        """The jobs of a key, newest first."""
        return [job for job in reversed(self._jobs.values()) if job.owner == owner]

    def find(self, owner: str | None, job_id: str) -> Job:
        """A job of a key.

        Raises:
            RequestError: 404, when the key has no such job.
        """
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise RequestError(
                404, f"There is no job {job_id!r}; ended jobs are not kept for long.", param="id"
            )
        return job

    async def wait(self, job: Job) -> None:
        """Wait a while for the end of a job.

        Raises:
            RequestError: When the job fails meanwhile.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.job_wait):
                await job.end()
        if job.failure is not None:
            raise job.failure

    def interrupt(self) -> None:
        """Have all jobs end soon, with nothing half done."""
        self._stop.set()

    async def close(self) -> None:
        """Interrupt all jobs, and wait for their end."""
        self.interrupt()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown()

    async def _run(self, job: Job, work: Work, discard: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def progress(documents: int, passages: int) -> None:
            if self._stop.is_set():
                raise _StoppedError
            if (documents, passages) != (job.documents, job.passages):
                tell = partial(job.set, documents=documents, passages=passages)
                loop.call_soon_threadsafe(tell)

        ended: dict[str, Any] = {}
        try:
            async with job.base.writing:
                if self._stop.is_set():
                    raise _StoppedError
                job.set(state="running")
                report = await self._as_writer(lambda: work(progress))
            ended = {"state": "done", "report": report}
        except asyncio.CancelledError:
            ended = {"state": "failed", "failure": _failure(job, _StoppedError())}
            raise
        except Exception as error:
            ended = {"state": "failed", "failure": _failure(job, error)}
        finally:
            # What was received is gone before the end is told.
            await loop.run_in_executor(self._threads, discard)
            job.set(**ended)
            self._forget_old()

    async def _as_writer(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Work, as soon as no other process writes."""
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + self._limits.writer_wait
        while True:
            try:
                return await loop.run_in_executor(self._threads, work)
            except LockedError:
                if self._stop.is_set():
                    raise _StoppedError from None
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_TRY_AGAIN)

    def _forget_old(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.ended]
        for job_id in ended[: max(0, len(ended) - self._limits.jobs_kept)]:
            del self._jobs[job_id]


def _failure(job: Job, error: Exception) -> RequestError:
    """The error as the client is told it."""
    name = repr(job.base.name)
    # Sentences for people at this machine name the folder, which clients are not to know.
    sentence = str(error).replace(str(job.base.kb.folder), job.base.name)
    match error:
        case RequestError():
            return error
        case _StoppedError():
            return RequestError(
                503, f"The service was stopped before the job was done; {name} is as before."
            )
        case LockedError():
            return RequestError(
                409,
                f"Another process is writing to {name}; try again when it is done.",
                code="locked",
                headers={"Retry-After": "10"},
            )
        case KnowledgeBaseError() if job.operation == "delete":
            return RequestError(404, sentence)
        case CorpusError() | CompressionError() | ValueError() | ImportError():
            return RequestError(400, sentence)
        case _:
            _log.error("A job on %s failed.", job.base.name, exc_info=error)
            return RequestError(500, f"{name} could not be changed; see the service's log.")


async def events(job: Job, jobs: Jobs, stopping: anyio.Event) -> AsyncGenerator[dict[str, Any]]:
    """The events of a job: "progress" whenever something changes, and "end" with its end.

    Args:
        job: The job.
        jobs: The jobs, which are interrupted when the service stops: the client is told of it.
        stopping: Set when the service stops.

    Yields:
        Events of sse-starlette, with the job as data.
    """

    async def interrupt() -> None:
        await stopping.wait()
        jobs.interrupt()

    task = asyncio.create_task(interrupt())
    try:
        while True:
            changed = job.changed
            kind = "end" if job.ended else "progress"
            yield {"event": kind, "data": json.dumps(job.describe(), ensure_ascii=False)}
            if kind == "end":
                return
            await changed.wait()
    finally:
        task.cancel()
