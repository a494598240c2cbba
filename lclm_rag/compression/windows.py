"""Cut token sequences into the encoder's windows, packed one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from lclm_rag.checkpoint import ModelConfig

__all__ = ["Windows", "cut_windows"]

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Windows:
    """What the encoder reads at once, window by window, without padding.

    token_ids: [positions] of all windows. Each is its left context (tokens of the window before), its own
        tokens, and for `eos` pooling one marker a latent.
    lengths: [windows] positions of each.
    contexts: [windows] how many tokens at its front are context only.
    tokens: [windows] how many are its own.
    latents: [windows] how many latents it gives, ceil(tokens / compression_ratio).
    """

    token_ids: Ints
    lengths: Ints
    contexts: Ints
    tokens: Ints
    latents: Ints

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, first: int, stop: int) -> Windows:
        """Windows first … stop - 1; no copy."""
        before, here = int(self.lengths[:first].sum()), int(self.lengths[first:stop].sum())
        facts = (self.lengths, self.contexts, self.tokens, self.latents)
        return Windows(
            self.token_ids[before : before + here], *(each[first:stop] for each in facts)
        )

    def pack(self, first: int, budget: int) -> int:
        """Where a batch that begins with window `first` stops: at most `budget` positions, or one window."""
        ends = self.lengths[first:].cumsum()
        return first + max(1, int(np.searchsorted(ends, budget, side="right")))

    def positions(self) -> Ints:
        """[positions] the place of each in its window."""
        return places(self.lengths)


def cut_windows(
    texts: Sequence[Sequence[int]], config: ModelConfig, marker_id: int | None
) -> Windows:
    """All windows of all texts, in order. `marker_id` is the token that `eos` pooling appends."""
    size = config.encoder_window_size
    of_text = np.array([len(ids) for ids in texts], np.int64)
    ids = np.fromiter(chain.from_iterable(texts), np.int64, int(of_text.sum()))
    count = -(-of_text // size)
    # Of each window: where it starts in its text, and where its text starts in `ids`.
    start = places(count) * size
    text_start = np.repeat(of_text.cumsum() - of_text, count)
    tokens = np.minimum(size, np.repeat(of_text, count) - start)
    contexts = np.minimum(start, config.boundary_overlap)
    latents = -(-tokens // config.compression_ratio)
    if not config.boundary_overlap and marker_id is None:
        return Windows(ids, tokens, contexts, tokens, latents)
    lengths = contexts + tokens + (0 if marker_id is None else latents)
    place = places(lengths)
    source = np.repeat(text_start + start - contexts, lengths) + place
    if marker_id is None:
        return Windows(ids[source], lengths, contexts, tokens, latents)
    is_marker = place >= np.repeat(contexts + tokens, lengths)
    with_markers = np.where(is_marker, marker_id, ids[np.where(is_marker, 0, source)])
    return Windows(with_markers, lengths, contexts, tokens, latents)


def places(counts: Ints) -> Ints:
    """0 … n - 1 for each n of `counts`, one behind the other."""
    return np.arange(int(counts.sum())) - np.repeat(counts.cumsum() - counts, counts)
