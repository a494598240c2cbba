"""BM25 as sparse vectors. All engines store the same vectors and add the IDF when they search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import qdrant_edge

from lclm_rag.retrieval.words import WORDS, bm25_config, normal_words

__all__ = ["Bm25", "Bm25Settings", "average_length"]

_EARLY = "english-1"
"""What counted as words before there was `normal_words`: those of English, as Qdrant's BM25 takes them."""


@dataclass(frozen=True)
class Bm25Settings:
    """How words become sparse vectors.

    An index must be opened with the settings that it was created with. `dataclasses.asdict` turns them into a
    dict that JSON can hold, and `from_json` turns that back.

    Attributes:
        language: Picks the stop words and the stemmer: "english", "german", ... (`words.LANGUAGES`); "none"
            has neither.
        avg_len: The average length of a passage, in words that are not stop words (see `average_length`). It
            keeps its value from when the index was created, even as the corpus grows.
        words: The name of what counts as a word: `words.WORDS`, or that of an index from before it.

    Raises:
        ValueError: When the language or what counts as a word is unknown, or the average length is not
            positive.
    """

    language: str = "english"
    avg_len: float = 256.0
    words: str = WORDS

    def __post_init__(self) -> None:
        try:
            self.model()
        except ValueError as error:
            raise ValueError(
                f"BM25 takes no language={self.language!r}, avg_len={self.avg_len!r}, "
                f"words={self.words!r}: {error}."
            ) from error

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Bm25Settings:
        """The settings in what `asdict` made of them, also by an earlier lclm-rag."""
        return cls(**{"words": _EARLY, **raw})

    def model(self) -> Bm25:
        """Return the model with the usual parameters, k = 1.2 and b = 0.75."""
        return Bm25(self.language, self.words, avg_len=float(self.avg_len))

    def suit(self, language: str) -> bool:
        """Whether an index with these settings is what is made today for a language, or for "auto"."""
        return self.words == WORDS and language in ("auto", self.language)


class Bm25:
    """Qdrant's BM25 over the words of `normal_words`.

    Args:
        language: See `Bm25Settings`.
        words: See `Bm25Settings`.
        **parameters: `k`, `b` and `avg_len`.

    Raises:
        ValueError: When the language or what counts as a word is unknown, or a parameter is out of range.
    """

    def __init__(self, language: str, words: str = WORDS, **parameters: Any) -> None:
        self._language: str | None = language
        if words == _EARLY:
            self._language = None
            config = qdrant_edge.Bm25Config(language=language, **parameters)
        elif words == WORDS:
            config = bm25_config(language, **parameters)
        else:
            raise ValueError(f"unknown words; this lclm-rag knows {WORDS} and {_EARLY}")
        self._model = qdrant_edge.Bm25(config)

    def embed_document(self, text: str) -> qdrant_edge.SparseVector:
        """The sparse vector of a passage."""
        return self._model.embed_document(self._words(text))

    def embed_query(self, text: str) -> qdrant_edge.SparseVector:
        """The sparse vector of a question; without indices if it has nothing but stop words."""
        return self._model.embed_query(self._words(text))

    def _words(self, text: str) -> str:
        return text if self._language is None else normal_words(text, self._language)


def average_length(texts: Iterable[str], language: str = "english") -> float:
    """The mean length of `texts` in words, without stop words, as Qdrant counts them.

    Qdrant itself counts: with b = 0 the weight of a word that occurs n times is n (k + 1) / (n + k), which
    tends to n as k grows, so the weights of a text add up to its length.

    Args:
        texts: The texts of the passages, read once.
        language: The language of `Bm25Settings`, which picks the stop words and the stemmer.

    Returns:
        The mean length in words; at least 1, so that it is always a valid `avg_len`.

    Raises:
        ValueError: When there are no texts, or the language is unknown.
    """
    counter = Bm25(language, k=1e9, b=0.0)
    words, count = 0.0, 0
    for text in texts:
        words += sum(counter.embed_document(text.encode("utf-8", "replace").decode()).values)
        count += 1
    if not count:
        raise ValueError("The average length of no texts cannot be told.")
    return max(1.0, words / count)
