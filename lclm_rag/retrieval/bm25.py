"""BM25 as sparse vectors: the same ones for every engine, which adds the IDF when it searches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import qdrant_edge

__all__ = ["Bm25Settings", "average_length"]


@dataclass(frozen=True)
class Bm25Settings:
    """How words become sparse vectors. An index must be opened with what it was created with.

    `language` picks stop words and stemmer ("english", "german", ...). `avg_len` is the average
    length of a passage, in words that are not stop words: see `average_length`. It stays as it was
    when the index was made, though the corpus grow. `dataclasses.asdict` gives what JSON can hold.

    Raises ValueError for a language that is not known, or an average length that is not positive.
    """

    language: str = "english"
    avg_len: float = 256.0

    def __post_init__(self) -> None:
        try:
            self.model()
        except ValueError as error:
            raise ValueError(
                f"BM25 takes no language={self.language!r}, avg_len={self.avg_len!r}: {error}."
            ) from error

    def model(self) -> qdrant_edge.Bm25:
        """k = 1.2 and b = 0.75, the usual ones."""
        return qdrant_edge.Bm25(
            qdrant_edge.Bm25Config(language=self.language, avg_len=float(self.avg_len))
        )


def average_length(texts: Iterable[str], language: str = "english") -> float:
    """The mean length of `texts` in Qdrant's unit: words left once the stop words are dropped.

    The words are Qdrant's own, not a guess: with b = 0 the weight of a word that occurs n times is
    n (k + 1) / (n + k), which tends to n as k grows, so the weights of a text add up to its length.

    At least 1, so that it can always be used as `avg_len`. Raises ValueError if there are no texts.
    """
    counter = qdrant_edge.Bm25(qdrant_edge.Bm25Config(language=language, k=1e9, b=0.0))
    words, count = 0.0, 0
    for text in texts:
        words += sum(counter.embed_document(text.encode("utf-8", "replace").decode()).values)
        count += 1
    if not count:
        raise ValueError("The average length of no texts cannot be told.")
    return max(1.0, words / count)
