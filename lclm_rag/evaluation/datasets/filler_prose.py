"""Sentences of made-up English, generated from a seed: the haystack for needles if no essays are given.

They read like prose and mean nothing, and hardly two are the same. None has a digit or a hyphen. The
adjectives and nouns also make up the keys of needles, joined by a hyphen, so no key stands in the prose by
chance. The words and patterns are in `filler_prose.toml`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from lclm_rag.evaluation.datasets.data_files import read_data

__all__ = ["ADJECTIVES", "NOUNS", "filler_sentences"]

_DATA = read_data("filler_prose")

ADJECTIVES: tuple[str, ...] = tuple(_DATA["adjectives"].split())
NOUNS: tuple[str, ...] = tuple(_DATA["nouns"].split())

_PATTERNS: list[list[str]] = [line.split() for line in _DATA["patterns"].splitlines()]
_WORDS: dict[str, tuple[str, ...]] = {
    "N": NOUNS,
    "A": ADJECTIVES,
    "P": tuple(_DATA["people"].split()),
    "D": tuple(_DATA["deeds"].split()),
    "I": tuple(_DATA["ideas"].split()),
    "V": tuple(_DATA["adverbs"].split()),
    "L": tuple(_DATA["places"]),
    "T": tuple(_DATA["times"]),
}


def filler_sentences(seed: int) -> Iterator[str]:
    """An endless stream of sentences; the same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        yield _sentence(rng)


def _sentence(rng: random.Random) -> str:
    text = ""
    for sign in rng.choice(_PATTERNS):
        # "I" is never the pronoun here.
        word = rng.choice(_WORDS[sign]) if sign in _WORDS else sign
        if word in (",", ";", "."):
            text += word
            continue
        if text.endswith(" a") and word[0] in "aeiou":
            text += "n"
        text += f" {word}"
    return text[1].upper() + text[2:]
