"""Cut token sequences into the encoder's windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lclm_rag.checkpoint import ModelConfig

__all__ = ["Window", "cut_windows"]


@dataclass(frozen=True)
class Window:
    """What the encoder reads at once.

    token_ids: left context (`context` tokens of the window before), the window's own tokens, and for
        `eos` pooling one marker token a latent.
    context: how many tokens at the front are context only.
    tokens: how many tokens are the window's own.
    latents: how many latents it gives, ceil(tokens / compression_ratio).
    """

    text: int
    token_ids: list[int]
    context: int
    tokens: int
    latents: int


def cut_windows(
    texts: Sequence[Sequence[int]], config: ModelConfig, marker_id: int | None
) -> list[Window]:
    """All windows of all texts, in order. `marker_id` is the token that `eos` pooling appends."""
    windows = []
    for index, ids in enumerate(texts):
        for start in range(0, len(ids), config.encoder_window_size):
            own = ids[start : start + config.encoder_window_size]
            context = ids[max(0, start - config.boundary_overlap) : start]
            latents = -(-len(own) // config.compression_ratio)
            token_ids = [*context, *own]
            if marker_id is not None:
                token_ids += [marker_id] * latents
            windows.append(Window(index, token_ids, len(context), len(own), latents))
    return windows
