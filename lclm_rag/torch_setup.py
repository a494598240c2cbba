"""Devices, dtypes, and loading a transformers model without surprises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lclm_rag.errors import CheckpointError

__all__ = ["load_transformers_model", "resolve_device", "resolve_dtype"]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolve_device(name: str) -> torch.device:
    """A torch device; "auto" is CUDA where there is one. ValueError where the device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {name!r}; use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Device {name!r} was asked for, but torch sees no CUDA device here.")
    return device


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """A torch dtype; "auto" is bfloat16 on CUDA and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if resolve_device(device).type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ValueError(f"Unknown dtype {name!r}; use auto, float32, bfloat16 or float16.")
    return _DTYPES[name]


def load_transformers_model(
    auto_class: Any, folder: Path, device: torch.device, dtype: torch.dtype
) -> Any:
    """Load a model from a folder, in eval mode.

    Raises CheckpointError where a weight is missing or has the wrong shape: transformers would fill it
    with random numbers and only warn.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = auto_class.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The model in {folder} cannot be loaded: {error}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    missing, mismatched = (
        sorted(report["missing_keys"]),
        sorted(map(str, report["mismatched_keys"])),
    )
    if missing:
        raise CheckpointError(
            f"The model in {folder} lacks {len(missing)} tensors, the first is {missing[0]}."
        )
    if mismatched:
        raise CheckpointError(
            f"The model in {folder} has tensors of a wrong shape: {mismatched[0]}."
        )
    return model.to(device).eval()
