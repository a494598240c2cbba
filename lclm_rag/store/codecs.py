"""The byte formats of latents: a codec turns [n, width] floats into [n, bytes] and back.

Each latent is encoded on its own. Numbers are little-endian. With w for `width`:

bf16, fp16   w numbers of 2 bytes, in that dtype.
int8         w bytes, then the scale. Byte i is the level of coordinate i, a signed integer.
int4         ⌈w/2⌉ bytes, then the scale. The low half of byte i is the index into `quantization.LEVELS` of
             the level of coordinate 2i, the high half that of coordinate 2i + 1 (0 if w is odd and there is
             no such coordinate).

The scale is a bfloat16, and keeps the latent's length, which adapters with attention layers before their MLP
depend on. In int8 and int4, scale × level is a coordinate of the latent after a rotation R, so
the latent is R⁻¹(scale × levels). R has no parameters and consists of two steps:

1. Coordinate i changes its sign if bit i of SHAKE-128("lclm_rag") is 1. The first bit is the highest bit of
   the first byte.
2. The discrete Fourier transform, divided by √w. Its output is the real and imaginary parts of
   F₀ … F_⌊w/2⌋ side by side, without the imaginary parts of F₀ and (if w is even) of F_w/2, which are 0. All
   of them are multiplied by √2, except the real parts of these two.

A rotated coordinate is a sum over all coordinates, so rotated coordinates are distributed like a Gaussian
however uneven the latent is. Without the rotation, the few large coordinates that trained encoders produce
would stretch the scale, and small ones would all become 0. With it, one scale is enough, and the levels of
int4 are the best for a Gaussian (Max 1960). Rotation before quantization: QuaRot, arXiv 2404.00456. Our
measurements: docs/decisions/codecs.md.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from lclm_rag.errors import StoreError
from lclm_rag.types import CodecName

if TYPE_CHECKING:
    import torch

__all__ = ["CODECS", "FLOATS", "Bytes", "CodecName", "Encoding", "decode", "encode", "latent_bytes"]

CODECS: tuple[CodecName, ...] = get_args(CodecName)

FLOATS = {"bf16": ("bfloat16", 2), "fp16": ("float16", 2)}
"""Codecs that are a dtype: the name of torch's, and its itemsize.

Not the torch dtypes themselves: `lclm-rag info` reads a store without loading torch.
"""
_SCALE_BYTES = 2

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def latent_bytes(codec: CodecName, width: int) -> int:
    """The size of one encoded latent of `width` numbers, in bytes."""
    if codec in FLOATS:
        _, itemsize = FLOATS[codec]
        return width * itemsize
    return (width if codec == "int8" else (width + 1) // 2) + _SCALE_BYTES


@dataclass(frozen=True)
class Encoding:
    """Latents being encoded, on the device where they are; the result arrives on the CPU.

    Attributes:
        codec: The codec.
        stored: The encoded latents, uint8 [n, latent_bytes], on the CPU.
        fits: Whether the codec can hold all of them, one bool, on the CPU.
        finite: Whether all of them are finite, one bool, on the CPU.
        ready: The GPU event after which the three tensors are valid; None if they are already.
    """

    codec: CodecName
    stored: torch.Tensor
    fits: torch.Tensor
    finite: torch.Tensor
    ready: torch.cuda.Event | None

    @classmethod
    def start(cls, latents: torch.Tensor, codec: CodecName) -> Encoding:
        """Start to encode latents; on a GPU this returns without waiting.

        Args:
            latents: Floats, [n, width], n ≥ 1.
            codec: The codec.
        """
        import torch

        source = latents.detach()
        on_gpu = source.device.type == "cuda"
        if not on_gpu:
            source = source.to("cpu")
        finite = torch.isfinite(source).all()
        if codec in FLOATS:
            stored = source.to(_dtype(codec)).contiguous()
            fits = torch.isfinite(stored).all()
        else:
            from lclm_rag.store.quantization import LARGEST_NORM, norms, quantize

            stored = quantize(source, codec)
            fits = (norms(source) <= LARGEST_NORM).all()
        stored = stored.view(torch.uint8)
        if not on_gpu:
            return cls(codec, stored, fits, finite, None)
        stored, fits, finite = (_copy_to_cpu(each) for each in (stored, fits, finite))
        ready = torch.cuda.Event()
        # Recorded after the copies, on the stream of the tensor's own device: the current device may be
        # another one, and an event on its stream would fire before the copies are done.
        ready.record(torch.cuda.current_stream(source.device))
        return cls(codec, stored, fits, finite, ready)

    def result(self) -> Bytes:
        """Wait for the encoded latents.

        Returns:
            The encoded latents, uint8 [n, latent_bytes].

        Raises:
            StoreError: If a value is not finite or does not fit, as for `encode`.
        """
        if self.ready is not None:
            self.ready.synchronize()
        if not self.fits:
            advice = "" if self.codec == "bf16" else "; use bf16"
            cause = f"do not fit into {self.codec}{advice}" if self.finite else "are not finite"
            raise StoreError(f"Latents {cause}.")
        as_bytes: Bytes = self.stored.numpy()
        return as_bytes


def encode(latents: torch.Tensor, codec: CodecName) -> Bytes:
    """Encode latents; the same latent always gives the same bytes.

    Args:
        latents: Floats, [n, width], n ≥ 1. In int8 and int4, latents below 1e-38 may become zeros.
        codec: The codec.

    Returns:
        The encoded latents, uint8 [n, latent_bytes].

    Raises:
        StoreError: If a value is not finite or does not fit. The largest value of fp16 is 65,504; in int8
            and int4 the largest norm of a latent is 1e38.
    """
    return Encoding.start(latents, codec).result()


def _dtype(codec: CodecName) -> torch.dtype:
    """The dtype of a codec in `FLOATS`."""
    import torch

    name, _ = FLOATS[codec]
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Start to copy a GPU tensor to pinned memory; the copy may not be done when this returns."""
    import torch

    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def decode(
    stored: Bytes, codec: CodecName, width: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Decode latents.

    Args:
        stored: Encoded latents, uint8 [n, latent_bytes], n ≥ 1.
        codec: The codec that encoded them.
        width: The number of coordinates of a latent.
        dtype: The dtype of the result; None for bfloat16 from bf16, float16 from fp16, and float32 from int8
            and int4.

    Returns:
        The latents, [n, width]. Without a dtype, those of bf16 and fp16 share the memory of `stored`. Values
        that `dtype` cannot hold become infinite (in float16 those above 65,504).
    """
    import torch

    with warnings.catch_warnings():
        # Torch warns that memory from a read-only map is not writable; nothing here writes to it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        rows = torch.from_numpy(stored)
    if codec in FLOATS:
        floats = rows.view(_dtype(codec))
        return floats if dtype is None else floats.to(dtype)
    from lclm_rag.store.quantization import dequantize

    return dequantize(rows, codec, width, dtype or torch.float32)
