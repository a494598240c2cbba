"""How fast a processor multiplies matrices: what the speed of a model is measured against."""

from __future__ import annotations

import time

import torch

__all__ = ["matrix_product_rate"]


def matrix_product_rate(device: torch.device, dtype: torch.dtype, tries: int = 8) -> float:
    """Measure the rate of a large product of two matrices.

    Args:
        device: Where to multiply.
        dtype: The dtype of the matrices.
        tries: How often; the fastest counts.

    Returns:
        FLOPs a second.
    """
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(tries):
        begun = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
