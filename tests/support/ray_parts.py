"""Parts of corpora that do what parts should not: workers import this module."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_rag import Document
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.ingestion.ray import workers as ray_workers
from lclm_rag.store.compressed import Compressed

__all__ = [
    "LONG_PASSAGES",
    "Changing",
    "Deadly",
    "Failing",
    "Large",
    "LongWithDeath",
    "Made",
    "Poisoned",
    "long_document",
    "made_documents",
    "small_documents",
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
        for number, document in enumerate(made_documents(self.first, self.count)):
            if number == self.count // 2:
                die(self.tally, self.times)
            yield document


@dataclass(frozen=True)
class Large:
    """Documents that are soon compressed and large all the same: metadata are only carried along. `log` gets
    a letter for each that was read."""

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


POISON = "A text that no encoder survives."
CUDA_ERROR = "CUDA error: an illegal memory access was encountered"


@dataclass(frozen=True)
class Poisoned:
    """Made documents, and among them one at which every encoder fails.

    way: "kill", "raise" or "cuda".
    """

    first: int
    count: int
    way: str

    def read(self) -> Iterator[Document | Exception | str]:
        documents = made_documents(self.first, self.count)
        documents.insert(self.count // 2, Document("poison", POISON))
        yield from documents

    def __reduce__(self) -> Any:
        """Every worker gets the parts with its job: there the encoder is made to fail."""
        return _poison, (self.first, self.count, self.way)


def _poison(first: int, count: int, way: str) -> Poisoned:
    inner = Compressor.compress_together
    deadly = Checkpoint.open().encoder_token_ids([POISON])[0]

    def compress(self: Compressor, texts: Any, *rest: Any) -> Any:
        if any(list(ids) == deadly for ids in texts):
            if way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if way == "cuda":
                raise RuntimeError(CUDA_ERROR)
            raise ValueError("the encoder does not like it")
        return inner(self, texts, *rest)

    if inner.__name__ != "compress":
        Compressor.compress_together = compress  # type: ignore[method-assign]
    return Poisoned(first, count, way)


# --- parts with a long document ---------------------------------------------------------------------


LONG_PASSAGES = 5
"""The passages of a long document, of 200 tokens each."""


def long_document(number: int) -> Document:
    """A document of many passages, whose tables are handed over while it is still being split."""
    words = " ".join(f"word{i % 97}" for i in range(230))
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
        small = small_documents(self.number, 6)
        yield from (*small[:3], long_document(self.number), *small[3:])

    def __reduce__(self) -> Any:
        """Each worker gets the parts with its job: there the splitting is made to die."""
        return _long_with_death, (self.number, self.passage, self.times, self.tally)


_deaths: dict[str, LongWithDeath] = {}


def _long_with_death(number: int, passage: int, times: int, tally: str) -> LongWithDeath:
    inner = workers.passage_work

    def passage_work(document: Document, *rest: Any) -> Iterator[Any]:
        part = _deaths.get(document.id)
        for ordinal, work in enumerate(inner(document, *rest)):
            if part is not None and ordinal == part.passage:
                die(part.tally, part.times)
            yield work

    if inner.__name__ != "deadly":
        passage_work.__name__ = "deadly"
        workers.passage_work = passage_work
        workers._ROWS_AT_ONCE = 2
    made = LongWithDeath(number, passage, times, tally)
    _deaths[long_document(number).id] = made
    return made


def die(tally: str, times: int) -> None:
    """Kill this process, unless processes have died here so many times before."""
    died = Path(tally).stat().st_size if Path(tally).exists() else 0
    if died < times:
        with Path(tally).open("a") as f:
            f.write("x")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Changing:
    """Documents of which one is another, or cannot be read, after the reader has died at the last of them."""

    tally: str
    way: str

    def read(self) -> Iterator[Document | Exception | str]:
        workers._ROWS_AT_ONCE = 2
        again = Path(self.tally).exists()
        documents = made_documents(0, 40)
        for number, document in enumerate(documents):
            if number == 2 and again and self.way == "gone":
                continue
            if number == 2 and again and self.way == "changed":
                yield Document(document.id, f"{document.text} And more.")
            elif number == 2 and again and self.way == "unreadable":
                yield ValueError("d2 cannot be read")
            else:
                yield document
            if number == 38:
                time.sleep(3)  # Ray takes what was handed over.
                die(self.tally, 1)


# --- storage and GPUs fail --------------------------------------------------------------------------


@dataclass(frozen=True)
class Failing:
    """Made documents, for which something fails so many times, while there is a file `tally`.

    what: "writing" (by encoders), "reading" (of the store, by readers) or "gpu" (whatever is compressed).
    """

    first: int
    count: int
    what: str
    times: int
    tally: str

    def read(self) -> Iterator[Document | Exception | str]:
        yield from made_documents(self.first, self.count)

    def __reduce__(self) -> Any:
        """Each worker gets the parts with its job: there it is made to fail."""
        return _failing, (self.first, self.count, self.what, self.times, self.tally)


_failure: list[Failing] = []


def _failing(first: int, count: int, what: str, times: int, tally: str) -> Failing:
    failing = Failing(first, count, what, times, tally)
    if not _failure:
        _fail_in(workers, "write_uncommitted", "writing", _refused)
        _fail_in(Compressed, "passages", "reading", _refused)
        _fail_in(Compressor, "compress_together", "gpu", lambda: RuntimeError(CUDA_ERROR))
    _failure[:] = [failing]
    return failing


def _refused() -> OSError:
    return OSError(errno.EBUSY, "Please reduce your request rate (429)")


def _fail_in(where: Any, name: str, what: str, error: Callable[[], Exception]) -> None:
    inner = getattr(where, name)

    def fails(*values: Any, **options: Any) -> Any:
        (failing,) = _failure
        tally = Path(failing.tally)
        if failing.what == what and tally.exists() and tally.stat().st_size < failing.times:
            with tally.open("a") as f:
                f.write("x")
            raise error()
        return inner(*values, **options)

    setattr(where, name, fails)
