"""How vLLM's engine is started, on a GPU too: with what arguments, and what is refused before."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding.vllm import VLLMDecoder
from lclm_rag.decoding.vllm.engine import start_engine

pytestmark = pytest.mark.vllm

GIB = 2**30

Started = Callable[..., Any]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> Started:
    """Starts an engine that does not come; gives its arguments and what else it was asked with."""
    from vllm.v1.engine.async_llm import AsyncLLM

    def start(device: str = "auto", **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(AsyncLLM, "from_engine_args", lambda arguments, **more: (arguments, more))
            return start_engine(checkpoint, device, latent_items=True, **options)

    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "")
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD")
    return start


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A vLLM that is built for GPUs, and one of 80 GiB; what this process has of it, in bytes."""
    from vllm.platforms import current_platform

    has = {"now": 0, "at_most": 0}
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "is_initialized": lambda: has["at_most"] > 0,
        "empty_cache": lambda: None,
        "memory_reserved": lambda index: 0 if index else has["now"],
        "memory_allocated": lambda index: has["now"],
        "max_memory_allocated": lambda index: has["at_most"],
        "mem_get_info": lambda index: (79 * GIB - has["now"], 80 * GIB),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return has


def test_the_context_is_what_fits_and_the_engine_takes_many_at_once(started: Started) -> None:
    arguments, more = started()
    assert arguments.max_model_len == -1
    assert more["usage_context"] == "OPENAI_API_SERVER"
    assert arguments.gpu_memory_utilization == 0.92
    assert started(max_model_len=4_096)[0].max_model_len == 4_096


def test_its_process_is_spawned_unless_the_user_wants_otherwise(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    started()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    started()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"


def test_beside_a_compressor_it_takes_what_that_leaves(
    started: Started, gpu: dict[str, int]
) -> None:
    assert started()[0].gpu_memory_utilization == 0.92
    gpu.update(now=2 * GIB, at_most=2 * GIB)
    assert started()[0].gpu_memory_utilization == 0.92
    # 79 that were free, 4 that are in use, 8 that will be in use again, 1 for the engine's start.
    gpu.update(now=4 * GIB, at_most=12 * GIB)
    arguments, _ = started()
    assert arguments.gpu_memory_utilization == int(1000 * 66 / 80) / 1000
    assert arguments.dtype == "bfloat16"
    assert started(gpu_memory_utilization=0.5)[0].gpu_memory_utilization == 0.5
    assert started(kv_cache_memory_bytes=GIB)[0].gpu_memory_utilization == 0.92


def test_one_gpu_of_several_is_chosen_by_the_environment(
    started: Started, gpu: dict[str, int], checkpoint: Checkpoint
) -> None:
    for device in ("auto", "cuda"):
        started(device)
    with pytest.raises(ValueError, match="set CUDA_VISIBLE_DEVICES=1 for this program"):
        VLLMDecoder.from_pretrained(checkpoint, "cuda:1")
    with pytest.raises(ValueError, match="'cpu' was asked for, but this vLLM is built for GPUs"):
        VLLMDecoder.from_pretrained(checkpoint, "cpu")


def test_a_build_for_the_cpu_takes_no_gpu(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="Device 'cuda'"):
        VLLMDecoder.from_pretrained(checkpoint, "cuda")
