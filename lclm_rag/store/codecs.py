"""How a latent is laid down in bytes. A codec turns [n, width] floats into [n, bytes] and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lclm_rag.errors import StoreError

if TYPE_CHECKING:
    import torch

__all__ = ["CODECS", "CodecName", "decode", "encode", "latent_bytes"]

CodecName = Literal["bf16", "fp16"]

# Names of torch dtypes: `lclm-rag info` reads a store without loading torch.
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
CODECS = tuple(_DTYPES)

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def latent_bytes(codec: CodecName, width: int) -> int:
    """Bytes that one latent of `width` numbers takes."""
    return width * 2


def encode(latents: torch.Tensor, codec: CodecName) -> Bytes:
    """[n, width] floats → uint8 [n, latent_bytes].

    Raises StoreError where a value is not finite, before or after the conversion (float16 ends at
    65,504).
    """
    import torch

    stored = latents.detach().to("cpu", getattr(torch, _DTYPES[codec])).contiguous()
    if not torch.isfinite(stored).all():
        cause = (
            "do not fit into fp16; use bf16" if torch.isfinite(latents).all() else "are not finite"
        )
        raise StoreError(f"Latents {cause}.")
    as_bytes: Bytes = stored.view(torch.uint8).numpy()
    return as_bytes


def decode(
    stored: Bytes, codec: CodecName, width: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """uint8 [n, latent_bytes] → [n, width] in the codec's own dtype, sharing the memory."""
    import warnings

    import torch

    with warnings.catch_warnings():
        # The map is read-only, and so is what torch makes of it: nobody here writes to it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        decoded = torch.from_numpy(stored).view(getattr(torch, _DTYPES[codec]))
    return decoded if dtype is None else decoded.to(dtype)
