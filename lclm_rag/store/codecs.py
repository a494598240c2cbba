"""How a latent is laid down in bytes. A codec turns [n, width] floats into [n, bytes] and back.

Every latent stands alone; numbers are little-endian. With w for `width`:

bf16, fp16   w numbers of 2 bytes, as they are.
int8         w bytes, then the scale. Byte i is the level of coordinate i, a signed integer.
int4         ⌈w/2⌉ bytes, then the scale. The low half of byte i is the place, in `quantization.LEVELS`, of
             the level of coordinate 2i; the high half that of coordinate 2i + 1 (0, where w is odd and there
             is none).

The scale is a bfloat16. In int8 and int4, scale × level is a coordinate of the latent after a rotation R, so
that the latent is R⁻¹(scale × levels). R has no parameters:

1. Coordinate i changes its sign where bit i of SHAKE-128("lclm_rag") is 1, the first bit being the highest of
   the first byte.
2. The discrete Fourier transform, divided by √w: the real and imaginary parts of F₀ … F_⌊w/2⌋ stand side by
   side, without the imaginary parts of F₀ and (w even) of F_w/2, which are 0; all but the real parts of these
   two times √2.

A rotated coordinate is a sum of all coordinates, so that they are spread like a Gaussian however uneven the
latent is. Without it, the few large coordinates that trained encoders have would stretch the scale, and small
ones would all become 0. So one scale is enough, and the levels of int4 are the best for a Gaussian
(Max 1960). Rotation before quantization: QuaRot, arXiv 2404.00456. The trial: docs/decisions/codecs.md.
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

__all__ = ["CODECS", "Bytes", "CodecName", "Encoding", "decode", "encode", "latent_bytes"]

CODECS: tuple[CodecName, ...] = get_args(CodecName)

# Names of torch dtypes: `lclm-rag info` reads a store without loading torch.
_FLOATS = {"bf16": "bfloat16", "fp16": "float16"}
_SCALE_BYTES = 2

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def latent_bytes(codec: CodecName, width: int) -> int:
    """Bytes that one latent of `width` numbers takes."""
    if codec in _FLOATS:
        return width * 2
    return (width if codec == "int8" else (width + 1) // 2) + _SCALE_BYTES


@dataclass(frozen=True)
class Encoding:
    """Latents being encoded, on the device that they are on.

    stored: uint8 [n, latent_bytes]. fits, finite: one truth each. All on the CPU, where they are not before
    `ready`, an event of a GPU's, has come.
    """

    codec: CodecName
    stored: torch.Tensor
    fits: torch.Tensor
    finite: torch.Tensor
    ready: torch.cuda.Event | None

    @classmethod
    def start(cls, latents: torch.Tensor, codec: CodecName) -> Encoding:
        """latents: [n, width] floats, n ≥ 1. On a GPU nothing is waited for."""
        import torch

        source = latents.detach()
        on_gpu = source.device.type == "cuda"
        if not on_gpu:
            source = source.to("cpu")
        finite = torch.isfinite(source).all()
        if codec in _FLOATS:
            stored = source.to(getattr(torch, _FLOATS[codec])).contiguous()
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
        # On the stream of the tensor's own device: the current device may be another one, and an event on
        # its stream would come before the copies are there.
        ready.record(torch.cuda.current_stream(source.device))
        return cls(codec, stored, fits, finite, ready)

    def result(self) -> Bytes:
        """uint8 [n, latent_bytes]. StoreError as for `encode`."""
        if self.ready is not None:
            self.ready.synchronize()
        if not self.fits:
            advice = "" if self.codec == "bf16" else "; use bf16"
            cause = f"do not fit into {self.codec}{advice}" if self.finite else "are not finite"
            raise StoreError(f"Latents {cause}.")
        as_bytes: Bytes = self.stored.numpy()
        return as_bytes


def encode(latents: torch.Tensor, codec: CodecName) -> Bytes:
    """[n, width] floats, n ≥ 1 → uint8 [n, latent_bytes]; a latent always gives the same bytes.

    Raises StoreError where a value is not finite, or does not fit: fp16 ends at 65,504, and in int8 and
    int4 the norm of a latent at 1e38. Latents below 1e-38 may become zeros.
    """
    return Encoding.start(latents, codec).result()


def _copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Under way when this returns."""
    import torch

    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def decode(
    stored: Bytes, codec: CodecName, width: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """uint8 [n, latent_bytes], n ≥ 1 → [n, width] in `dtype`.

    Without a dtype: bf16 and fp16 in their own, int8 and int4 in float32. bf16 and fp16 in their own
    dtype share the memory of `stored`. What a dtype cannot hold becomes infinite (float16: above 65,504).
    """
    import torch

    with warnings.catch_warnings():
        # A map is read-only, and so is what torch makes of it: nobody here writes to it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        rows = torch.from_numpy(stored)
    if codec in _FLOATS:
        floats = rows.view(getattr(torch, _FLOATS[codec]))
        return floats if dtype is None else floats.to(dtype)
    from lclm_rag.store.quantization import dequantize

    return dequantize(rows, codec, width, dtype or torch.float32)
