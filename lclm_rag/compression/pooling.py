"""Hidden states to latents, all windows of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lclm_rag.checkpoint import Pooling
from lclm_rag.compression.windows import Window

__all__ = ["pool"]


def pool(
    hidden: torch.Tensor, windows: Sequence[Window], pooling: Pooling, ratio: int
) -> torch.Tensor:
    """Pool the last hidden states of a batch, padded on the right.

    hidden: [windows, length, width]. Returns [sum of the windows' latents, width], windows in order;
    `concat` gives width * ratio, the last group filled up with zeros.

    `mean` averages the tokens of a group (the last group may be short), `concat` puts them side by
    side, `eos` takes the hidden states of the markers behind the window's tokens.
    """
    length, width = hidden.shape[1:]
    flat = hidden.reshape(-1, width)
    latents = torch.tensor([w.latents for w in windows])
    row = torch.repeat_interleave(torch.arange(len(windows)), latents)
    first_latent = torch.repeat_interleave(latents.cumsum(0) - latents, latents)
    place = torch.arange(len(row)) - first_latent  # of a latent in its window
    own = torch.tensor([w.context for w in windows])[row]
    tokens = torch.tensor([w.tokens for w in windows])[row]
    if pooling == "eos":
        return flat.index_select(0, (row * length + own + tokens + place).to(hidden.device))

    offset = place[:, None] * ratio + torch.arange(ratio)  # [latents, ratio], in the window
    real = offset < tokens[:, None]
    index = torch.where(real, row[:, None] * length + own[:, None] + offset, 0)
    real = real.to(hidden.device)
    groups = flat.index_select(0, index.flatten().to(hidden.device)).view(*real.shape, width)
    groups = groups * real[..., None]
    if pooling == "concat":
        return groups.flatten(1)
    return groups.sum(1) / real.sum(1, keepdim=True)
