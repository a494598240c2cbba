"""BM25 as sparse vectors. All engines store the same vectors and add the IDF when they search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import qdrant_edge

__all__ = ["Bm25Settings", "average_length"]


@dataclass(frozen=True)
class Bm25Settings:
    """How words become sparse vectors.

    An index must be opened with the settings that it was created with. `dataclasses.asdict` turns them into a
    dict that JSON can hold.

    Attributes:
        language: Picks the stop words and the stemmer: "english", "german", ...
        avg_len: The average length of a passage, in words that are not stop words (see `average_length`). It
            keeps its value from when the index was created, even as the corpus grows.

    Raises:
        ValueError: When the language is unknown, or the average length is not positive.
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
        """Return Qdrant's BM25 model with the usual parameters, k = 1.2 and b = 0.75."""
        return qdrant_edge.Bm25(
            qdrant_edge.Bm25Config(language=self.language, avg_len=float(self.avg_len))
        )


def average_length(texts: Iterable[str], language: str = "english") -> float:
    """The mean length of `texts` in words, without stop words, as Qdrant counts them.

    Qdrant itself splits the texts into words: with b = 0 the weight of a word that occurs n times is
    n (k + 1) / (n + k), which tends to n as k grows, so the weights of a text add up to its length.

    Args:
        texts: The texts of the passages, read once.
        language: The language of `Bm25Settings`, which picks the stop words and the stemmer.

    Returns:
        The mean length in words; at least 1, so that it is always a valid `avg_len`.

    Raises:
        ValueError: When there are no texts, or the language is unknown.
    """
    counter = qdrant_edge.Bm25(qdrant_edge.Bm25Config(language=language, k=1e9, b=0.0))
    words, count = 0.0, 0
    for text in texts:
        words += sum(counter.embed_document(text.encode("utf-8", "replace").decode()).values)
        count += 1
    if not count:
        raise ValueError("The average length of no texts cannot be told.")
    return max(1.0, words / count)
