"""Parts of corpora that do what parts should not: workers import this module."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lclm_rag import Document
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.ingestion.ray import faults
from lclm_rag.ingestion.ray import workers as ray_workers
from lclm_rag.ingestion.ray.faults import FURTHER_TRIES
from lclm_rag.ingestion.ray.work_rows import from_table
from lclm_rag.ingestion.ray.workers import EncodeShards
from lclm_rag.store.compressed import Compressed
from lclm_rag.store.fragment import Fragment

__all__ = [
    "LONG_PASSAGES",
    "Changing",
    "Deadly",
    "Large",
    "LongWithDeath",
    "Made",
    "NoLatents",
    "Unlucky",
    "Unread",
    "concurrent_encoder",
    "long_document",
    "made_documents",
    "small_documents",
    "unlucky_encoder",
]


workers: Any = ray_workers  # Parts below change it.


def made_documents(first: int, count: int) -> list[Document]:
    """The same for the same numbers; of one to some ten passages."""
    made = []
    for number in range(first, first + count):
        chance = random.Random(number)
        words = (f"word{chance.randrange(500)}" for _ in range(chance.randrange(5, 300)))
        made.append(Document(f"d{number}", f"{' '.join(words)}.", {"n": number % 7}))
    return made


@dataclass(frozen=True)
class Made:
    """A part of made documents. pause: seconds before each."""

    first: int
    count: int
    pause: float = 0.0

    def read(self) -> Iterator[Document | Exception | str]:
        for document in made_documents(self.first, self.count):
            time.sleep(self.pause)
            yield document


@dataclass(frozen=True)
class Deadly:
    """A part whose reader dies at one of its documents, so many times: as a parser that crashes does."""

    first: int
    count: int
    tally: str
    times: int

    def read(self) -> Iterator[Document | Exception | str]:
        for number, document in enumerate(small_documents(self.first, self.count)):
            if number == self.count // 2:
                die(self.tally, self.times)
            yield document


@dataclass(frozen=True)
class Large:
    """Documents that are soon compressed and large all the same: metadata are only carried along. `log` gets
    a letter for each that was read, and `log`.loaded one each time that a process gets the part."""

    first: int
    count: int
    kilobytes: int
    log: str

    def read(self) -> Iterator[Document | Exception | str]:
        for number in range(self.first, self.first + self.count):
            with Path(self.log).open("a") as f:
                f.write("x")
            yield Document(
                f"l{number}", f"Short text {number}.", {"m": "x" * 1024 * self.kilobytes}
            )

    def __reduce__(self) -> Any:
        return _loaded, (self.first, self.count, self.kilobytes, self.log)


def _loaded(first: int, count: int, kilobytes: int, log: str) -> Large:
    with Path(f"{log}.loaded").open("a") as f:
        f.write("x")
    return Large(first, count, kilobytes, log)


# --- what encoders cannot do --------------------------------------------------------------------------


UNLUCKY = ("raises", "kills", "cuda", "gpu", "writing", "starting")
"""The ids of documents at which encoders of `unlucky_encoder` fail.

"raises", "kills" and "cuda" always do: by an error, a death and an error of the GPU. At "gpu" the GPU fails,
and at "writing" the storage, but only so many times, as storage does when an encoder starts ("starting").
"""


@dataclass(frozen=True)
class Unlucky:
    """A part with documents of `UNLUCKY`, and perhaps made ones."""

    names: tuple[str, ...]
    first: int = 0
    count: int = 0

    def read(self) -> Iterator[Document | Exception | str]:
        yield from made_documents(self.first, self.count)
        yield from (Document(name, _text(name)) for name in self.names)


def _text(name: str) -> str:
    return f"A text with the name {name}."


def unlucky_encoder(
    tally: Path, times: int, further_tries: int = FURTHER_TRIES
) -> type[EncodeShards]:
    """Encoders that fail at some documents, for `engine.EncodeShards`.

    Args:
        tally: The folder in which failures are counted.
        times: How often storage and GPUs fail.
        further_tries: Of a task at which its worker ended.
    """

    class UnluckyEncoder(EncodeShards):
        def __init__(self, job: Any) -> None:
            faults.FURTHER_TRIES = further_tries
            faults._FIRST_PAUSE = 0.0
            super().__init__(job)

        def _start(self, job: Any) -> None:
            if has_failed_less(tally / "starting", times):
                raise _refused()
            super()._start(job)
            inner = self._compressor.compress_together
            names = {tuple(Checkpoint.open().encoder_token_ids([_text(n)])[0]): n for n in UNLUCKY}

            def compress(texts: Any, *rest: Any) -> Any:
                found = {names.get(tuple(ids)) for ids in texts}
                if "raises" in found:
                    raise ValueError("the encoder does not like it")
                if "kills" in found:
                    os.kill(os.getpid(), signal.SIGKILL)
                if "cuda" in found or ("gpu" in found and has_failed_less(tally / "gpu", times)):
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                return inner(texts, *rest)

            self._compressor.compress_together = compress  # type: ignore[method-assign,assignment]

        def _write(self, compressed: Any) -> Any:
            ids = {row.document_id for row, _ in compressed}
            if "writing" in ids and has_failed_less(tally / "writing", times):
                raise _refused()
            return super()._write(compressed)

    return UnluckyEncoder


def concurrent_encoder(seen: Path, failing: int = 0) -> type[EncodeShards]:
    """Encoders that note what their two threads do at the same time, for `engine.EncodeShards`.

    Args:
        seen: Where a line is added for each shard written: "together" if the next was compressed meanwhile,
            else "alone".
        failing: How often the storage fails for the shard of document d0, each time while the next shard, if
            one may be, is being compressed.
    """

    class ConcurrentEncoder(EncodeShards):
        begun = 0

        def __call__(self, table: Any) -> Any:
            if failing and not any(row.document_id == "d0" for row in from_table(table)):
                time.sleep(1.0)  # Document d0 is always first.
            yield from super().__call__(table)

        def _compressed(self, rows: Any, attempts: Any) -> Any:
            self.begun += 1
            return super()._compressed(rows, attempts)

        def _latents(self, rows: Any) -> Any:
            if failing and not any(row.document_id == "d0" for row in rows):
                time.sleep(1.0)
            return super()._latents(rows)

        def _write(self, compressed: Any) -> Any:
            begun, ends = self.begun, time.monotonic() + 2.0
            while self.begun == begun and time.monotonic() < ends:
                time.sleep(0.01)
            together = self.begun > begun
            with seen.open("a") as f:
                f.write("together\n" if together else "alone\n")
            if compressed[0][0].document_id == "d0":
                time.sleep(0.3 if failing else 0.0)
                if has_failed_less(seen.with_name("failures"), failing):
                    os._exit(1)
            return super()._write(compressed)

    return ConcurrentEncoder


@dataclass(frozen=True)
class Unread:
    """A part with one document, "unread": readers cannot read the store at it, so many times."""

    tally: str
    times: int

    def read(self) -> Iterator[Document | Exception | str]:
        inner = Compressed.passages

        def passages(self: Compressed, document_id: str) -> Any:
            if document_id == "unread" and has_failed_less(Path(part.tally), part.times):
                raise _refused()
            return inner(self, document_id)

        part = self
        Compressed.passages = passages  # type: ignore[method-assign]
        try:
            yield Document("unread", "Nothing is stored of it.")
        finally:
            Compressed.passages = inner  # type: ignore[method-assign]


def has_failed_less(tally: Path, times: int) -> bool:
    """Whether something has failed fewer times; if so, this is another time."""
    failed = tally.stat().st_size if tally.exists() else 0
    if failed < times:
        with tally.open("a") as f:
            f.write("x")
    return failed < times


def _refused() -> OSError:
    return OSError(errno.EBUSY, "Please reduce your request rate (429)")


@dataclass(frozen=True)
class NoLatents:
    """A part of made documents whose reader must read no latents."""

    first: int
    count: int

    def read(self) -> Iterator[Document | Exception | str]:
        inner = Fragment.read

        def read(self: Fragment, row: int) -> Any:
            raise AssertionError("A reader reads latents.")

        Fragment.read = read  # type: ignore[method-assign]
        try:
            yield from made_documents(self.first, self.count)
        finally:
            Fragment.read = inner  # type: ignore[method-assign]


# --- parts with a long document ---------------------------------------------------------------------


LONG_PASSAGES = 4
"""The passages of a long document, of 200 tokens each."""


def long_document(number: int) -> Document:
    """A document of many passages, whose tables are handed over while it is still being split."""
    words = " ".join(f"word{i % 97}" for i in range(180))
    return Document(f"long{number}", f"{words}.")


def small_documents(number: int, count: int) -> list[Document]:
    """Documents that no other part has."""
    return [Document(f"s{number}-{i}", f"Note {i} of part {number}.") for i in range(count)]


@dataclass(frozen=True)
class LongWithDeath:
    """A long document between small ones: the reader dies before its n-th passage, so many times."""

    number: int
    passage: int
    times: int
    tally: str

    def read(self) -> Iterator[Document | Exception | str]:
        inner, workers._ROWS_AT_ONCE = workers.passage_work, 2
        workers.passage_work = partial(self._deadly_passages, inner)
        try:
            small = small_documents(self.number, 6)
            yield from (*small[:3], long_document(self.number), *small[3:])
        finally:
            workers.passage_work = inner

    def _deadly_passages(self, inner: Any, document: Document, *rest: Any) -> Iterator[Any]:
        is_long = document.id == long_document(self.number).id
        for ordinal, work in enumerate(inner(document, *rest)):
            if is_long and ordinal == self.passage:
                die(self.tally, self.times)
            yield work


def die(tally: str, times: int) -> None:
    """Kill this process, unless processes have died here so many times before."""
    if has_failed_less(Path(tally), times):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Changing:
    """Documents of which one is another after the reader has died at the last of them."""

    tally: str

    def read(self) -> Iterator[Document | Exception | str]:
        workers._ROWS_AT_ONCE = 2
        again = Path(self.tally).exists()
        documents = made_documents(0, 40)
        for number, document in enumerate(documents):
            if number == 2 and again:
                yield Document(document.id, f"{document.text} And more.")
            else:
                yield document
            if number == 38:
                time.sleep(3)  # Ray takes what was handed over.
                die(self.tally, 1)
