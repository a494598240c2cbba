"""How well a ranking of documents finds those that are relevant: recall, nDCG, reciprocal rank.

As trec_eval has them: a document is relevant if its grade is above 0, and the gain of nDCG is the grade
(Järvelin and Kekäläinen 2002).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2

__all__ = ["ndcg", "recall", "reciprocal_rank"]


def recall(ranked: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """The share of the relevant documents that is among the first `k`.

    Args:
        ranked: The ids of the documents, best first, each once.
        grades: The grade of each document that was judged; at least one is above 0.
        k: How many of the ranked documents count, at least 1.

    Returns:
        From 0 to 1.
    """
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def ndcg(ranked: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """The discounted cumulative gain of the first `k`, divided by that of the best possible ranking.

    Args:
        ranked: As for `recall`.
        grades: As for `recall`.
        k: As for `recall`.

    Returns:
        From 0 to 1.
    """
    gains = [max(0, grades.get(document, 0)) for document in ranked[:k]]
    best = sorted((max(0, grade) for grade in grades.values()), reverse=True)[:k]
    return _discounted(gains) / _discounted(best)


def reciprocal_rank(ranked: Sequence[str], grades: Mapping[str, int]) -> float:
    """1 / the rank of the first relevant document, counted from 1; 0 if none was found.

    Args:
        ranked: As for `recall`.
        grades: As for `recall`.

    Returns:
        From 0 to 1.
    """
    ranks = (i for i, document in enumerate(ranked, start=1) if grades.get(document, 0) > 0)
    return 1 / next(ranks, float("inf"))


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / log2(rank + 1) for rank, gain in enumerate(gains, start=1))
