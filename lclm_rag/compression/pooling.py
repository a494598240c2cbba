"""Hidden states → latents, for all windows of a batch at once."""

from __future__ import annotations

import numpy as np
import torch

from lclm_rag.checkpoint import Pooling
from lclm_rag.compression.windows import Windows, places
from lclm_rag.torch_setup import to_device

__all__ = ["pool"]


def pool(hidden: torch.Tensor, windows: Windows, pooling: Pooling, ratio: int) -> torch.Tensor:
    """Pool the last hidden states of packed windows.

    `mean` averages the tokens of a group (the last group may be short). `concat` puts them side by side, the
    last group filled up with zeros. `eos` takes the hidden states of the markers at the window's end.

    Args:
        hidden: The hidden states, [positions, width].
        windows: The windows.
        pooling: How a group becomes a latent.
        ratio: Tokens in a group (the compression ratio).

    Returns:
        The latents, [sum of the windows' latents, width], windows in order; `concat` gives width * ratio.
    """
    first_own = windows.lengths.cumsum() - windows.lengths + windows.contexts
    place = places(windows.latents)  # of each latent in its window
    own, tokens = (np.repeat(each, windows.latents) for each in (first_own, windows.tokens))
    if pooling == "eos":
        first_marker = own + tokens + np.repeat(windows.after, windows.latents)
        return hidden.index_select(0, to_device(first_marker + place, hidden.device))

    has_context = windows.contexts.any() or windows.after.any()
    if not has_context and not (windows.tokens % ratio).any():
        groups = hidden.view(-1, ratio, hidden.shape[1])  # Every group is whole and adjacent.
        return groups.flatten(1) if pooling == "concat" else groups.mean(1)
    offset = place[:, None] * ratio + np.arange(ratio)  # [latents, ratio], in the window
    real = offset < tokens[:, None]
    index = to_device(np.where(real, own[:, None] + offset, 0).ravel(), hidden.device)
    is_real = to_device(real, hidden.device)
    groups = hidden.index_select(0, index).view(*real.shape, hidden.shape[1])
    groups = groups * is_real[..., None]
    if pooling == "concat":
        return groups.flatten(1)
    return groups.sum(1) / is_real.sum(1, keepdim=True)
