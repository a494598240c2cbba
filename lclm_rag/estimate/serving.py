"""What a question costs on vLLM: positions, FLOPs, KV cache, seconds of a GPU, money; as latents and as
pasted text.

A model of one engine that is kept busy, not a measurement. Seconds are those of the tensor cores or of the
memory, whichever takes longer, at a share of their peak. No prefix cache hits, no speculation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lclm_rag.checkpoint import Space
from lclm_rag.estimate.shapes import DecoderShape, LclmShape
from lclm_rag.estimate.store import PEAK_TFLOPS

__all__ = [
    "GPU_MEMORY",
    "TEXT",
    "Gpu",
    "Prompt",
    "Questions",
    "Serving",
    "latent_prompt",
    "plan_serving",
    "text_prompt",
]

GPU_MEMORY: Mapping[str, tuple[float, float]] = {
    "H200 SXM": (141e9, 4.8e12),
    "H100 SXM": (80e9, 3.35e12),
    "L40S": (48e9, 864e9),
    "A100": (80e9, 2.039e12),
    "RTX 4090": (24e9, 1.008e12),
    "L4": (24e9, 300e9),
}
"""Bytes of memory, and bytes that are read from it in a second. From NVIDIA's data sheets of each (A100: SXM,
80 GB), and for the RTX 4090 from the Ada architecture white paper, appendix A."""

_USABLE_MEMORY = 0.92
"""Share of a GPU's memory for weights and KV cache: the default of vLLM 0.32's `gpu_memory_utilization`."""

_MOST_AT_ONCE = 256
"""Questions that are decoded together at most: the default of vLLM 0.32's `max_num_seqs`, which is 1,024 on
GPUs with 70 GiB and more. Beyond 256 little is gained: the weights are no longer what is read most."""

_FRAME_POSITIONS = 20
"""Chat markup, instruction and the word before the question, in Qwen3's tokenizer (`prompting.template`)."""

_PASSAGE_POSITIONS = 5
"""`[7] ` before a passage and the line break after it."""

_SPAN_POSITIONS = 2
"""`<|memory_start|>` and `<|memory_end|>`."""

_BASE64 = 4 / 3
_ID_BYTES = 7  # A token id of five or six digits, and a comma.


TEXT = "pasted text"
"""The form of a prompt without latents."""


@dataclass(frozen=True)
class Gpu:
    """flops: per second, dense bfloat16. memory: bytes. bandwidth: bytes per second. All at their peak."""

    name: str
    flops: float
    memory: float
    bandwidth: float

    @classmethod
    def named(cls, name: str) -> Gpu:
        """One of `PEAK_TFLOPS`."""
        return cls(name, PEAK_TFLOPS[name] * 1e12, *GPU_MEMORY[name])


@dataclass(frozen=True)
class Questions:
    """What is asked. per_second: on average; leave room for peaks. question_tokens and answer_tokens: of
    each."""

    per_second: float
    top_k: int
    question_tokens: int = 32
    answer_tokens: int = 128


@dataclass(frozen=True)
class Prompt:
    """A question with its passages, in one form.

    positions: in the decoder. adapter_flops: before it. read_bytes: from the store. sent_bytes: to a vLLM
    server over HTTP (embeddings of every position in base64, or token ids).
    """

    form: str
    positions: int
    adapter_flops: float
    read_bytes: float
    sent_bytes: float


@dataclass(frozen=True)
class Serving:
    """What answering takes, in one form.

    prefill_flops, kv_bytes: of one question, its answer included in the latter. at_once: questions that one
    server decodes together. tensor_parallel: GPUs of a server. gpu_seconds: of one question, while the GPU
    is kept busy. servers: for the rate that is asked. cost_per_1000: of the GPU seconds alone.
    """

    prompt: Prompt
    prefill_flops: float
    kv_bytes: int
    at_once: int
    tensor_parallel: int
    gpu_seconds: float
    servers: int
    cost_per_1000: float

    @property
    def gpus(self) -> int:
        return self.servers * self.tensor_parallel


def latent_prompt(
    shape: LclmShape,
    space: Space,
    questions: Questions,
    passage_latents: float,
    passage_bytes: float,
) -> Prompt:
    """passage_latents, passage_bytes: of a passage in the store, on average."""
    latents = questions.top_k * passage_latents
    positions = _positions(questions, passage_latents + _SPAN_POSITIONS)
    return Prompt(
        form=f"latents {shape.config.compression_ratio}x",
        positions=positions,
        adapter_flops=latents * shape.adapter_flops if space == "encoder" else 0,
        read_bytes=questions.top_k * passage_bytes,
        sent_bytes=positions * shape.decoder_width * 2 * _BASE64,
    )


def text_prompt(questions: Questions, passage_tokens: float, text_bytes: float) -> Prompt:
    """passage_tokens, text_bytes: of a passage, on average."""
    positions = _positions(questions, passage_tokens)
    return Prompt(TEXT, positions, 0, questions.top_k * text_bytes, positions * _ID_BYTES)


def _positions(questions: Questions, body: float) -> int:
    passages = questions.top_k * (_PASSAGE_POSITIONS + body)
    return math.ceil(_FRAME_POSITIONS + questions.question_tokens + passages)


def plan_serving(
    prompt: Prompt,
    decoder: DecoderShape,
    questions: Questions,
    gpu: Gpu,
    utilization: float,
    gpu_hour_price: float,
) -> Serving | None:
    """None where prompt and answer are longer than the decoder's context.

    Prefill: FLOPs / (peak · utilization). Decoding a token for each of n questions reads the weights once and
    the KV cache of each, and computes n tokens: a step takes the longer of the two, and each question pays
    for an n-th of it. utilization: share of both peaks that is reached.
    """
    whole = prompt.positions + questions.answer_tokens
    if whole > decoder.context_length:
        return None
    kv = whole * decoder.kv_bytes
    tensor_parallel = 1
    while (at_once := _at_once(gpu, tensor_parallel, decoder, kv)) < 1:
        tensor_parallel *= 2
    flops, bandwidth = (peak * tensor_parallel * utilization for peak in (gpu.flops, gpu.bandwidth))
    pairs = prompt.positions * (prompt.positions + 1) // 2
    prefill_flops = (
        decoder.transformer.flops(prompt.positions, pairs)
        + decoder.output_flops
        + prompt.adapter_flops
    )
    half_way = prompt.positions + questions.answer_tokens // 2
    token_flops = decoder.transformer.flops(1, half_way) + decoder.output_flops
    step_bytes = decoder.weight_bytes + at_once * half_way * decoder.kv_bytes
    step = max(step_bytes / bandwidth, at_once * token_flops / flops)
    seconds = prefill_flops / flops + questions.answer_tokens * step / at_once
    return Serving(
        prompt=prompt,
        prefill_flops=prefill_flops,
        kv_bytes=kv,
        at_once=at_once,
        tensor_parallel=tensor_parallel,
        gpu_seconds=seconds * tensor_parallel,
        servers=max(1, math.ceil(questions.per_second * seconds)),
        cost_per_1000=1000 * seconds * tensor_parallel / 3600 * gpu_hour_price,
    )


def _at_once(gpu: Gpu, tensor_parallel: int, decoder: DecoderShape, kv_bytes: int) -> int:
    """Questions whose KV cache fits beside the weights."""
    free = gpu.memory * tensor_parallel * _USABLE_MEMORY - decoder.weight_bytes
    return min(_MOST_AT_ONCE, int(free // kv_bytes))
