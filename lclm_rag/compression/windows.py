"""Cut token sequences into the encoder's windows, packed one after another."""

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

    Attributes:
        token_ids: [positions] of all windows. Each window is its left context (tokens of the previous
            window), its own tokens, its right context (tokens of the next window; only with a bidirectional
            mask), and for `eos` pooling one marker per latent.
        lengths: [windows] positions of each window.
        contexts: [windows] how many tokens before its own are context only.
        after: [windows] how many tokens after its own are context only.
        tokens: [windows] how many tokens are its own.
        latents: [windows] how many latents it gives, ceil(tokens / compression_ratio).
    """

    token_ids: Ints
    lengths: Ints
    contexts: Ints
    after: Ints
    tokens: Ints
    latents: Ints

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, first: int, stop: int) -> Windows:
        """Take a range of windows, without copying.

        Args:
            first: The first window.
            stop: One past the last window.

        Returns:
            Windows first … stop - 1.
        """
        before, here = int(self.lengths[:first].sum()), int(self.lengths[first:stop].sum())
        facts = (self.lengths, self.contexts, self.after, self.tokens, self.latents)
        return Windows(
            self.token_ids[before : before + here], *(each[first:stop] for each in facts)
        )

    def pack(self, first: int, budget: int) -> int:
        """Find where a batch that begins with a given window ends.

        Args:
            first: The batch's first window.
            budget: Most positions in the batch. A batch has at least one window, however long.

        Returns:
            One past the batch's last window.
        """
        ends = self.lengths[first:].cumsum()
        return first + max(1, int(np.searchsorted(ends, budget, side="right")))

    def positions(self) -> Ints:
        """Each position's place in its window, int64 [positions]."""
        return places(self.lengths)


def cut_windows(
    texts: Sequence[Sequence[int]], config: ModelConfig, marker_id: int | None
) -> Windows:
    """Cut texts into windows.

    Args:
        texts: Token ids of each text.
        config: The checkpoint's window size, boundary overlap, mask and compression ratio.
        marker_id: The token that `eos` pooling appends for each latent; None for other poolings.

    Returns:
        All windows of all texts, in order.
    """
    size = config.encoder_window_size
    of_text = np.array([len(ids) for ids in texts], np.int64)
    ids = np.fromiter(chain.from_iterable(texts), np.int64, int(of_text.sum()))
    count = -(-of_text // size)
    # For each window: where it starts in its text, and where its text starts in `ids`.
    start = places(count) * size
    text_start = np.repeat(of_text.cumsum() - of_text, count)
    tokens = np.minimum(size, np.repeat(of_text, count) - start)
    contexts = np.minimum(start, config.boundary_overlap)
    # What comes after a window is of no use to a causal one.
    seen_after = 0 if config.is_causal else config.boundary_overlap
    after = np.minimum(np.repeat(of_text, count) - start - tokens, seen_after)
    latents = -(-tokens // config.compression_ratio)
    if not config.boundary_overlap and marker_id is None:
        return Windows(ids, tokens, contexts, after, tokens, latents)
    text = contexts + tokens + after
    lengths = text if marker_id is None else text + latents
    place = places(lengths)
    source = np.repeat(text_start + start - contexts, lengths) + place
    if marker_id is None:
        return Windows(ids[source], lengths, contexts, after, tokens, latents)
    is_marker = place >= np.repeat(text, lengths)
    with_markers = np.where(is_marker, marker_id, ids[np.where(is_marker, 0, source)])
    return Windows(with_markers, lengths, contexts, after, tokens, latents)


def places(counts: Ints) -> Ints:
    """0 … n - 1 for each n of `counts`, one range after another."""
    return np.arange(int(counts.sum())) - np.repeat(counts.cumsum() - counts, counts)
