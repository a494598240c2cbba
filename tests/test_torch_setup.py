"""What the package asks of torch leaves the rest of the program as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lclm_rag.torch_setup import seeded


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
