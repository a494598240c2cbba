"""Random names and values for fact sheets.

A checksum of the name assigns it to the training part or to the held-out part, and a held-out name to the
questions to choose on or to those to report on, so none of these share an entity, for any seeds.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from lclm_rag.evaluation.datasets.data_files import read_data
from lclm_rag.evaluation.datasets.parts import Part

__all__ = ["Draw"]

_HELD_OUT_ONE_IN = 8

_WORDS: dict[str, list[str]] = {
    name: words.split() for name, words in read_data("fact_sheets")["words"].items()
}


class Draw:
    """Random values; every proper name comes from one part only (training or held out).

    `fact_sheets.toml` refers to the methods by name.

    Args:
        rng: The source of randomness.
        held_out: Whether names come from the held-out part instead of the training part.
        part: Of the held-out names, only those of this part; None for all.
    """

    def __init__(self, rng: random.Random, held_out: bool, part: Part | None = None) -> None:
        self.rng = rng
        self.held_out = held_out
        self.part = part

    def word(self) -> str:
        """A made-up word, capitalized."""
        return self._named(lambda: self._syllables(self.rng.choice((2, 3))))

    def person(self) -> str:
        """A made-up first name and surname."""
        return self._named(
            lambda: f"{self._syllables(2)} {self._syllables(self.rng.choice((2, 3)))}"
        )

    def company(self) -> str:
        """A made-up company name."""
        suffix = self._one_of("company_suffixes")
        return f"{self.word()} {suffix}"

    def product(self) -> str:
        """A made-up product name."""
        return f"{self.word()} {self._one_of('products')}"

    def agreement(self) -> str:
        """A made-up name of an agreement between two parties."""
        return f"{self.word()}-{self.word()} agreement"

    def date(self) -> str:
        """A day from 1940 to 2024, such as "7 March 1981"."""
        day = self.rng.randint(1, 28)
        return f"{day} {self._one_of('months')} {self.rng.randint(1940, 2024)}"

    def month(self) -> str:
        """A month from 1990 to 2024, such as "March 2004"."""
        return f"{self._one_of('months')} {self.rng.randint(1990, 2024)}"

    def year(self) -> str:
        """A year from 1100 to 1990."""
        return str(self.rng.randint(1100, 1990))

    def code(self) -> str:
        """Two letters and four digits, such as "KV-4821"."""
        letters = "".join(self.rng.choices(_WORDS["code_letters"], k=2))
        return f"{letters}-{self.rng.randint(1000, 9999)}"

    def digits(self) -> str:
        """Four digits."""
        return str(self.rng.randint(1000, 9999))

    def postcode(self) -> str:
        """Five digits."""
        return str(self.rng.randint(10000, 99999))

    def thousands(self) -> str:
        """A number from 1,000 to 99,999 with a comma."""
        return f"{self.rng.randint(1, 99)},{self.rng.randint(0, 999):03d}"

    def euros(self) -> str:
        """An amount from 1,000 to 99,999 euros."""
        return f"{self.thousands()} euros"

    def price(self) -> str:
        """A price from 10 to 990 euros."""
        return f"{self.rng.randint(10, 990)} euros"

    def weight(self) -> str:
        """A weight up to 40.9 kg, with one decimal."""
        return f"{self.rng.randint(0, 40)}.{self.rng.randint(1, 9)} kg"

    def metres(self) -> str:
        """A length from 10 to 2900 metres."""
        return f"{self.rng.randint(10, 2900)} metres"

    def months(self) -> str:
        """A duration from 6 to 84 months."""
        return f"{self.rng.randint(6, 84)} months"

    def job(self) -> str:
        """The name of a job."""
        return self._one_of("jobs")

    def colour(self) -> str:
        """The name of a colour."""
        return self._one_of("colours")

    def _one_of(self, words: str) -> str:
        return self.rng.choice(_WORDS[words])

    def _syllables(self, count: int) -> str:
        word = "".join(self._one_of("onsets") + self._one_of("vowels") for _ in range(count))
        return (word + self._one_of("codas")).capitalize()

    def _named(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if self.may_draw(name):
                return name

    def may_draw(self, name: str) -> bool:
        """Whether a name is of the part that names come from here."""
        rest, remainder = divmod(zlib.crc32(name.encode()), _HELD_OUT_ONE_IN)
        if (remainder == 0) != self.held_out:
            return False
        return self.part is None or self.part == ("report" if rest % 2 else "choose")
