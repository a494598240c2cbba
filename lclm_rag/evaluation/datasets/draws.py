"""Random names and values for fact sheets.

A name belongs to the training part or to the held-out part by its own checksum, so the two parts share no
entity, whatever the seeds.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from lclm_rag.evaluation.datasets.data_files import read_data

__all__ = ["Draw"]

_HELD_OUT_ONE_IN = 8

_WORDS: dict[str, list[str]] = {
    name: words.split() for name, words in read_data("fact_sheets")["words"].items()
}


class Draw:
    """Random values; every proper name comes from one part only (training or held out).

    `fact_sheets.toml` names the methods.
    """

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def word(self) -> str:
        return self._named(lambda: self._syllables(self.rng.choice((2, 3))))

    def person(self) -> str:
        return self._named(
            lambda: f"{self._syllables(2)} {self._syllables(self.rng.choice((2, 3)))}"
        )

    def company(self) -> str:
        suffix = self._one_of("company_suffixes")
        return f"{self.word()} {suffix}"

    def product(self) -> str:
        return f"{self.word()} {self._one_of('products')}"

    def agreement(self) -> str:
        return f"{self.word()}-{self.word()} agreement"

    def date(self) -> str:
        day = self.rng.randint(1, 28)
        return f"{day} {self._one_of('months')} {self.rng.randint(1940, 2024)}"

    def month(self) -> str:
        return f"{self._one_of('months')} {self.rng.randint(1990, 2024)}"

    def year(self) -> str:
        return str(self.rng.randint(1100, 1990))

    def code(self) -> str:
        letters = "".join(self.rng.choices(_WORDS["code_letters"], k=2))
        return f"{letters}-{self.rng.randint(1000, 9999)}"

    def digits(self) -> str:
        return str(self.rng.randint(1000, 9999))

    def postcode(self) -> str:
        return str(self.rng.randint(10000, 99999))

    def thousands(self) -> str:
        return f"{self.rng.randint(1, 99)},{self.rng.randint(0, 999):03d}"

    def euros(self) -> str:
        return f"{self.thousands()} euros"

    def price(self) -> str:
        return f"{self.rng.randint(10, 990)} euros"

    def weight(self) -> str:
        return f"{self.rng.randint(0, 40)}.{self.rng.randint(1, 9)} kg"

    def metres(self) -> str:
        return f"{self.rng.randint(10, 2900)} metres"

    def months(self) -> str:
        return f"{self.rng.randint(6, 84)} months"

    def job(self) -> str:
        return self._one_of("jobs")

    def colour(self) -> str:
        return self._one_of("colours")

    def _one_of(self, words: str) -> str:
        return self.rng.choice(_WORDS[words])

    def _syllables(self, count: int) -> str:
        word = "".join(self._one_of("onsets") + self._one_of("vowels") for _ in range(count))
        return (word + self._one_of("codas")).capitalize()

    def _named(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if _is_held_out(name) == self.held_out:
                return name


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % _HELD_OUT_ONE_IN == 0
