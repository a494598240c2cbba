"""Between the index's hits and the prompt: another order, diversity, and what stands beside each hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import numpy as np

from lclm_rag.retrieval import ScoredKey
from lclm_rag.store import LatentStore, StoredPassage
from lclm_rag.types import Passage, PassageKey

__all__ = ["Stretch", "around", "by_score", "diverse", "joined", "stretches"]


@dataclass(frozen=True)
class Stretch:
    """Passages of one document that follow each other, at least one of them a hit.

    Attributes:
        best: The best hit among them.
        keys: All of them, in reading order.
    """

    best: ScoredKey
    keys: tuple[PassageKey, ...]


def by_score(hits: Sequence[ScoredKey], scores: Sequence[float]) -> list[ScoredKey]:
    """Order hits by other scores, best first; those of equal score by their keys."""
    scored = [hit._replace(score=float(score)) for hit, score in zip(hits, scores, strict=True)]
    return sorted(scored, key=lambda hit: (-hit.score, hit.key))


def diverse(
    hits: Sequence[ScoredKey], vectors: np.ndarray, count: int, relevance: float
) -> list[ScoredKey]:
    """Pick hits by maximal marginal relevance (Carbonell and Goldstein 1998).

    Each pick has the highest relevance x score - (1 - relevance) x its highest cosine with those picked
    before. Scores are spread from 0 to 1 for that, because they may be of any scale.

    Args:
        hits: The hits, best first.
        vectors: The vector of each, float32 [len(hits), width], of length 1.
        count: How many to pick.
        relevance: The weight of the scores, from 0 to 1.

    Returns:
        At most `count` hits, as they were picked.
    """
    scores = np.array([hit.score for hit in hits], np.float64)
    spread = np.ptp(scores) if len(scores) else 0.0
    scores = (scores - scores.min()) / spread if spread else np.ones_like(scores)
    nearest = np.zeros(len(hits))
    picked: list[int] = []
    while len(picked) < min(count, len(hits)):
        worth = relevance * scores - (1 - relevance) * nearest
        worth[picked] = -np.inf
        picked.append(int(worth.argmax()))
        alike = vectors @ vectors[picked[-1]]
        nearest = alike if len(picked) == 1 else np.maximum(nearest, alike)
    return [hits[i] for i in picked]


def around(store: LatentStore, key: PassageKey, before: int, after: int) -> list[PassageKey]:
    """A passage and those beside it, as far as the document goes.

    Args:
        store: The store.
        key: The passage; it is in the result even if the store does not have it.
        before: How many passages before it; any number.
        after: How many passages after it; any number.

    Returns:
        The keys, in reading order.
    """
    document_id, at = key

    def there(ordinals: range) -> list[PassageKey]:
        keys = (PassageKey(document_id, i) for i in ordinals)
        return list(takewhile(store.__contains__, keys))

    earlier = there(range(at - 1, max(0, at - before) - 1, -1))
    return [*reversed(earlier), key, *there(range(at + 1, at + after + 1))]


def stretches(store: LatentStore, hits: Sequence[ScoredKey], beside: int) -> list[Stretch]:
    """Add to each hit the passages beside it, and join what touches.

    Args:
        store: The store.
        hits: The hits, best first.
        beside: How many passages before and after each hit; with 0, each hit is a stretch of its own.

    Returns:
        The stretches, in the order of their best hits.
    """
    if not beside:
        return [Stretch(hit, (hit.key,)) for hit in hits]
    wanted: dict[str, set[int]] = {}
    for hit in hits:
        there = around(store, hit.key, beside, beside)
        wanted.setdefault(hit.key.document_id, set()).update(key.ordinal for key in there)
    stretch_of: dict[PassageKey, tuple[PassageKey, ...]] = {}
    for document_id, ordinals in wanted.items():
        keys = [PassageKey(document_id, i) for i in sorted(ordinals)]
        ends = [i for i, (a, b) in enumerate(pairwise(keys), start=1) if b.ordinal > a.ordinal + 1]
        for first, stop in pairwise([0, *ends, len(keys)]):
            stretch = tuple(keys[first:stop])
            stretch_of |= dict.fromkeys(stretch, stretch)
    best: dict[tuple[PassageKey, ...], ScoredKey] = {}
    for hit in hits:
        best.setdefault(stretch_of[hit.key], hit)
    return [Stretch(hit, keys) for keys, hit in best.items()]


def joined(key: PassageKey, rows: Sequence[StoredPassage]) -> StoredPassage:
    """Join the rows of a stretch into one, so that its latents make one memory and its text one text.

    Args:
        key: The key that it gets.
        rows: The rows, in reading order.

    Returns:
        The joined row, under the header of its first passage.
    """
    if len(rows) == 1:
        return rows[0]
    first, last = rows[0], rows[-1]
    return StoredPassage(
        passage=Passage(
            key,
            first.passage.start,
            last.passage.end,
            "".join(row.passage.text for row in rows),
            first.passage.metadata,
            first.passage.header,
        ),
        tokens=sum(row.tokens for row in rows),
        document_hash=first.document_hash,
        last=last.last,
        encoded=np.concatenate([row.encoded for row in rows]),
        layout=first.layout,
    )
