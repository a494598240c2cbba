"""What the package asks of torch leaves the rest of the program as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lclm_rag.torch_setup import is_out_of_memory, seeded


def test_numbers_drawn_with_a_seed_disturb_no_other_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seeds_every_gpu(*_: Any) -> None:
        raise AssertionError("the states of all GPUs are changed")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds_every_gpu)
    torch.default_generator.manual_seed(5)
    undisturbed = torch.rand(4)
    torch.default_generator.manual_seed(5)
    drawn = []
    for _ in range(2):
        with seeded(torch.device("cpu")):
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)
    assert torch.equal(torch.rand(4), undisturbed)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_a_want_of_memory_is_known_from_other_failures(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it
