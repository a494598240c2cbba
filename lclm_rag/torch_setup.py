"""Devices, dtypes, and loading a transformers model without surprises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lclm_rag.errors import CheckpointError, LclmRagError
from lclm_rag.forking import this_process
from lclm_rag.own_code import own_code_refused

__all__ = [
    "is_out_of_memory",
    "load_transformers_model",
    "renew_thread_pool",
    "resolve_device",
    "resolve_dtype",
    "seeded",
    "to_device",
    "without_progress",
]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolve_device(name: str) -> torch.device:
    """Turn the name of a device into a torch device.

    Args:
        name: "cpu", "cuda", "cuda:1" and so on, or "auto", which is CUDA if there is any.

    Returns:
        The device.

    Raises:
        ValueError: When the name is unknown, or this machine has no such device.
        LclmRagError: When CUDA is asked for (or "auto") in a process that was forked from one that has used
            it.
    """
    lost = torch.cuda._is_in_bad_fork()
    if name == "auto":
        name = "cuda" if lost or torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {name!r}; use auto, cpu or cuda.") from error
    if device.type == "cuda" and lost:
        raise LclmRagError(
            "CUDA cannot be used in a process that was forked from one that has used it: start processes "
            "with multiprocessing's spawn, or fork before anything is asked or added."
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Device {name!r} was asked for, but torch sees no CUDA device here.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ValueError(
            f"Device {name!r} was asked for, but torch sees {there} CUDA devices here."
        )
    return device


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """Turn the name of a dtype into a torch dtype.

    Args:
        name: "float32", "bfloat16" or "float16" (or "fp32", "bf16", "fp16"), or "auto", which is bfloat16 on
            CUDA and float32 on a CPU.
        device: The name of the device, as for `resolve_device`.

    Returns:
        The dtype.

    Raises:
        ValueError: When the name is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if resolve_device(device).type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ValueError(f"Unknown dtype {name!r}; use auto, float32, bfloat16 or float16.")
    return _DTYPES[name]


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Copy an array to a device, as a tensor.

    Args:
        array: The array. On a CPU the tensor shares its memory.
        device: The device. The copy to a GPU does not wait for the GPU's pending work.

    Returns:
        The tensor, on the device.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def seeded(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers each time within the context, and leave the state of the program alone.

    Args:
        device: The device on which they are drawn, beside the CPU.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not `torch.manual_seed`, which seeds all GPUs, those too whose state is not kept here.
        torch.default_generator.manual_seed(0)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


_NO_MEMORY = (
    "can't allocate memory",  # On a CPU.
    "not enough memory",
    "CUDA error: out of memory",  # Of what torch's own allocator does not hand out, such as pinned memory.
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory; on a CPU, and in libraries of CUDA, only the text shows it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(words in message for words in _NO_MEMORY)


def renew_thread_pool() -> None:
    """Replace torch's thread pool in a forked child.

    Otherwise torch does so when it first needs the pool, and fails if two threads need it at once, as the
    threads that load weights in transformers do.
    """
    if this_process():
        torch.set_num_threads(torch.get_num_threads())


@contextmanager
def without_progress() -> Iterator[None]:
    """Keep transformers from showing a bar for each file that it reads or writes in this block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_transformers_model(
    auto_class: Any, folder: Path, device: torch.device, dtype: torch.dtype
) -> Any:
    """Load a model from a folder, in eval mode.

    Args:
        auto_class: The transformers class that loads it, such as `AutoModel`.
        folder: The model's folder.
        device: Where to put the model.
        dtype: The dtype of its weights.

    Returns:
        The model.

    Raises:
        CheckpointError: When the model cannot be loaded, or a weight is missing or has the wrong shape:
            transformers would fill it with random numbers and only warn. Also when it needs code of its own.
    """
    renew_thread_pool()
    try:
        with without_progress(), own_code_refused(folder):
            model, report = auto_class.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The model in {folder} cannot be loaded: {error}") from error
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
