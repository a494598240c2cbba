"""The codecs int8 and int4: latents are rotated, then each coordinate becomes a level.

The format is described in `lclm_rag.store.codecs`.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch

__all__ = ["LARGEST_NORM", "LEVELS", "dequantize", "norms", "quantize"]

# The 16 levels with the least mean squared error for a Gaussian of variance 1: Max, "Quantizing for minimum
# distortion" (1960), table I.
_POSITIVE = (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6180, 2.0690, 2.7326)
LEVELS = (*(-level for level in reversed(_POSITIVE)), *_POSITIVE)

LARGEST_NORM = 1e38
"""The largest norm of a latent: what is decoded from it stays below the largest float32, 3.4e38."""

_AT_ONCE = 256
"""The number of latents decoded together: the intermediate values then stay in the processor's cache."""

_BLOCKS = {"cuda": 4_096}
"""The number of latents encoded together, by type of device, exactly; all of them, where none is named.

For each other number, cuFFT would make a plan anew.
"""

_CPU = torch.device("cpu")


def norms(latents: torch.Tensor) -> torch.Tensor:
    """The norms of latents, float64 [n], from floats [n, width]."""
    found: torch.Tensor = torch.linalg.vector_norm(latents, dim=1, dtype=torch.float64)
    return found


def quantize(latents: torch.Tensor, codec: str) -> torch.Tensor:
    """Encode latents in int8 or int4.

    Args:
        latents: Floats, [n, width].
        codec: "int8" or "int4".

    Returns:
        The encoded latents, uint8 [n, latent_bytes]. Those with a norm above `LARGEST_NORM` are not usable.
    """
    block = _BLOCKS.get(latents.device.type)
    if block is None:
        return _quantized(latents, codec)
    parts = []
    for part in latents.split(block):
        filled = torch.nn.functional.pad(part, (0, 0, 0, block - len(part)))
        parts.append(_quantized(filled, codec)[: len(part)])
    return torch.cat(parts)


def _quantized(latents: torch.Tensor, codec: str) -> torch.Tensor:
    # In units of the root mean square: the squares of very large or small values do not fit into float32.
    unit = norms(latents)[:, None] / latents.shape[1] ** 0.5
    rotated = _rotate((latents / unit.where(unit > 0, 1)).float())
    codes, step = _int8_codes(rotated) if codec == "int8" else _int4_codes(rotated)
    scale = (unit * step).to(torch.bfloat16)
    return torch.cat([codes.view(torch.uint8), scale.view(torch.uint8)], 1)


def dequantize(stored: torch.Tensor, codec: str, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Decode latents from int8 or int4.

    Args:
        stored: Encoded latents, uint8 [n, latent_bytes].
        codec: "int8" or "int4".
        width: The number of coordinates of a latent.
        dtype: The dtype of the result.

    Returns:
        The latents, [n, width].
    """
    latents = torch.empty(len(stored), width, dtype=dtype)
    for part, rows in zip(latents.split(_AT_ONCE), stored.split(_AT_ONCE), strict=True):
        # Always copied: in place, a scale may start at an odd byte, where it cannot be viewed as bfloat16.
        scale = rows[:, -2:].clone(memory_format=torch.contiguous_format).view(torch.bfloat16)
        codes = rows[:, :-2]
        levels = codes.view(torch.int8).float() if codec == "int8" else _int4_levels(codes, width)
        part.copy_(_rotate_back(levels).mul_(scale))
    return latents


def _int8_codes(rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels, int8 [n, width], and steps [n, 1] of rotated latents; the largest coordinate is 127 steps."""
    step = rotated.abs().amax(1, keepdim=True) / 127
    return (rotated / step.where(step > 0, 1)).round_().to(torch.int8), step


def _int4_codes(rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest levels, two in a byte, uint8 [n, ⌈width/2⌉], and steps [n, 1] of rotated latents."""
    levels, bounds = _levels(rotated.device)
    places = torch.bucketize(rotated, bounds, out_int32=True)
    nearest = levels[places]
    # The step that gives these levels the least squared error: about 1, or 0 for a latent of zeros.
    step = (rotated * nearest).sum(1, keepdim=True) / nearest.square().sum(1, keepdim=True)
    if places.shape[1] % 2:
        places = torch.nn.functional.pad(places, (0, 1))
    return (places[:, ::2] + 16 * places[:, 1::2]).to(torch.uint8), step


def _int4_levels(codes: torch.Tensor, width: int) -> torch.Tensor:
    """The levels, float32 [n, width], of codes with two in a byte, uint8 [n, ⌈width/2⌉]."""
    # Both levels of a byte are looked up at once, as one number of 8 bytes.
    pairs = _pairs_of_levels().index_select(0, codes.flatten().int())
    return pairs.view(torch.float32).view(len(codes), -1)[:, :width]


# Constants are kept for each device: copying them there would wait until a GPU has done all that is pending.


@cache
def _levels(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels, float32 [16], and the bounds between them, [15]."""
    levels = torch.tensor(LEVELS)
    return levels.to(device), ((levels[1:] + levels[:-1]) / 2).to(device)


@cache
def _pairs_of_levels() -> torch.Tensor:
    """The two levels of each byte, float32 [256, 2], viewed as float64 [256]."""
    levels, byte = torch.tensor(LEVELS), torch.arange(256)
    return torch.stack([levels[byte % 16], levels[byte // 16]], 1).view(torch.float64)[:, 0]


def _rotate(rows: torch.Tensor) -> torch.Tensor:
    """The rotation R; float32 [n, width] to the same shape."""
    width = rows.shape[1]
    signs, weights = _signs(width, rows.device), _weights(width, rows.device)
    parts = torch.view_as_real(torch.fft.rfft(rows * signs, norm="ortho")).flatten(1)
    # Left out: column 1, the imaginary part of F₀, and if the width is even column width + 1, that of F_w/2.
    return torch.cat([parts[:, :1], parts[:, 2 : width + 1]], 1) * weights


def _rotate_back(rows: torch.Tensor) -> torch.Tensor:
    """The inverse rotation R⁻¹; float32 [n, width] to the same shape."""
    width = rows.shape[1]
    weighted = rows / _weights(width, _CPU)
    parts = rows.new_zeros(len(rows), width // 2 + 1, 2)
    columns = parts.flatten(1)
    columns[:, 0] = weighted[:, 0]
    columns[:, 2 : width + 1] = weighted[:, 1:]
    rotated: torch.Tensor = torch.fft.irfft(torch.view_as_complex(parts), n=width, norm="ortho")
    return rotated.mul_(_signs(width, _CPU))


@cache
def _weights(width: int, device: torch.device) -> torch.Tensor:
    """√2 for coordinates that stand for two of the whole spectrum, 1 for the others; float32 [width]."""
    weights = torch.full((width,), 2**0.5)
    weights[0] = 1
    if width % 2 == 0:
        weights[-1] = 1
    return weights.to(device)


@cache
def _signs(width: int, device: torch.device) -> torch.Tensor:
    """The factor 1 or -1 of each coordinate, float32 [width]."""
    digest = hashlib.shake_128(b"lclm_rag").digest((width + 7) // 8)
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:width]
    return torch.from_numpy(1 - 2 * bits.astype(np.float32)).to(device)
