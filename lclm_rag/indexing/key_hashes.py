"""Sets of passages as sorted arrays of their key hashes: 8 bytes for each, whatever their keys are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lclm_rag.indexing.changes import Changes
from lclm_rag.store import LatentStore
from lclm_rag.store.fragment import key_hash
from lclm_rag.types import PassageKey

__all__ = ["are_among", "key_hashes", "shown_hashes"]


def key_hashes(keys: Sequence[PassageKey]) -> np.ndarray:
    """The hashes of keys; uint64, in the same order."""
    return np.fromiter(map(key_hash, keys), np.uint64, len(keys))


def shown_hashes(store: LatentStore) -> np.ndarray:
    """The key hashes of the passages that a version shows; uint64, sorted."""
    shown = Changes.between(None, store).new
    hashes = np.fromiter(
        (fragment.key_hash(row) for fragment, rows in shown for row in rows.tolist()),
        np.uint64,
        sum(len(rows) for _, rows in shown),
    )
    hashes.sort()
    return hashes


def are_among(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Which of `hashes` are in `known`, which is sorted; bool, of the shape of `hashes`."""
    return np.searchsorted(known, hashes, "left") < np.searchsorted(known, hashes, "right")
