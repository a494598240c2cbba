"""Parts of corpora that do what parts should not: workers import this module."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_rag import Document
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor

__all__ = ["Deadly", "Large", "Made", "Poisoned", "made_documents"]


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
                died = Path(self.tally).stat().st_size if Path(self.tally).exists() else 0
                if died < self.times:
                    with Path(self.tally).open("a") as f:
                        f.write("x")
                    os.kill(os.getpid(), signal.SIGKILL)
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


@dataclass(frozen=True)
class Poisoned:
    """Made documents, and among them one at which every encoder fails, in that way: "kill" or "raise"."""

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
            raise ValueError("the encoder does not like it")
        return inner(self, texts, *rest)

    if inner.__name__ != "compress":
        Compressor.compress_together = compress  # type: ignore[method-assign]
    return Poisoned(first, count, way)
