"""What a question costs on vLLM, from latents and from pasted text: positions, FLOPs, GPU seconds, money.

A model of one engine that is kept busy, not a measurement: seconds of the tensor cores or of the memory,
whichever takes longer, at a share of their peak. No prefix cache hits, no speculation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lclm_rag.estimate.devices import Gpu
from lclm_rag.estimate.shapes import DecoderShape
from lclm_rag.estimate.store import CorpusSize, StorePlan

__all__ = ["Context", "Questions", "Serving", "paid_back_after", "plan_contexts", "plan_serving"]

_USABLE_MEMORY = 0.92  # For weights and KV cache: vLLM 0.32's default of `gpu_memory_utilization`.
_MOST_AT_ONCE = 256
"""Questions that are decoded together at most: the default of vLLM 0.32's `max_num_seqs`, which is 1,024 on
GPUs with 70 GiB and more. Beyond 256 little is gained: the weights are no longer what is read most."""

# In Qwen3's tokenizer (`prompting.template`).
_FRAME_POSITIONS = 20  # Chat markup, instruction and the word before the question.
_PASSAGE_POSITIONS = 5  # `[7] ` before a passage and the line break after it.
_SPAN_POSITIONS = 2  # `<|memory_start|>` and `<|memory_end|>`.


@dataclass(frozen=True)
class Questions:
    """per_second: on average; leave room for peaks. question_tokens, answer_tokens: of each."""

    per_second: float
    top_k: int
    question_tokens: int = 32
    answer_tokens: int = 128


@dataclass(frozen=True)
class Serving:
    """What answering takes.

    prefill_flops, kv_bytes: of one question, its answer included in the latter. at_once: questions that one
    server decodes together. tensor_parallel: GPUs of a server. gpu_seconds: of one question, while the GPU
    is kept busy. gpus: for all questions. cost_per_1000: dollars, of the GPU seconds alone.
    """

    prefill_flops: int
    kv_bytes: int
    at_once: int
    tensor_parallel: int
    gpu_seconds: float
    gpus: int
    cost_per_1000: float


@dataclass(frozen=True)
class Context:
    """What a question is answered from: "latents 16x", or "text". positions: of a prompt. serving: None where
    it does not fit into the decoder. paid_back_after: questions, see the function; None for text."""

    name: str
    positions: int
    serving: Serving | None
    paid_back_after: float | None


def plan_contexts(
    size: CorpusSize,
    stores: Sequence[StorePlan],
    decoder: DecoderShape,
    questions: Questions,
    gpu: Gpu,
    utilization: float = 0.4,
) -> list[Context]:
    """Latents of each store, then the same passages as text. ValueError where there are no passages, or none
    of the prompts fits into the decoder."""

    def prompt(passage: float) -> tuple[int, Serving | None]:
        passages = questions.top_k * (_PASSAGE_POSITIONS + passage)
        positions = math.ceil(_FRAME_POSITIONS + questions.question_tokens + passages)
        return positions, plan_serving(positions, decoder, questions, gpu, utilization)

    if not size.passages:
        raise ValueError("There are no passages to plan for.")
    text = Context("text", *prompt(size.tokens / size.passages), None)
    contexts = []
    for store in stores:
        positions, serving = prompt(store.latents / size.passages + _SPAN_POSITIONS)
        after = paid_back_after(store.gpu_cost[gpu.name], serving, text.serving)
        contexts.append(Context(f"latents {store.compression_ratio}x", positions, serving, after))
    contexts.append(text)
    if not any(context.serving for context in contexts):
        shortest = min(context.positions for context in contexts)
        raise ValueError(
            f"A prompt of {shortest:,} positions and {questions.answer_tokens:,} of answer are more than "
            f"the decoder's {decoder.context_length:,}: take fewer or shorter passages."
        )
    return contexts


def paid_back_after(cost: float, latents: Serving | None, text: Serving | None) -> float | None:
    """Questions after which compressing, at this cost, is saved against pasted text. None: never, or one of
    the two does not fit. Disks for the latents, which pasted text does not need, are not in it."""
    if latents is None or text is None or latents.cost_per_1000 >= text.cost_per_1000:
        return None
    return 1000 * cost / (text.cost_per_1000 - latents.cost_per_1000)


def plan_serving(
    positions: int, decoder: DecoderShape, questions: Questions, gpu: Gpu, utilization: float
) -> Serving | None:
    """For prompts of so many positions; None where they and the answer are longer than the decoder's context.

    Prefill: FLOPs / (peak · utilization). Decoding a token for each of n questions reads the weights once and
    the KV cache of each, and computes n tokens: a step takes the longer of the two, and each question pays
    for an n-th of it. utilization: share of both peaks that is reached. The adapter, below 1%, is left out.
    """
    whole = positions + questions.answer_tokens
    if whole > decoder.context_length:
        return None
    kv_bytes = whole * decoder.kv_bytes
    tensor_parallel = 1
    while (free := gpu.memory * tensor_parallel * _USABLE_MEMORY - decoder.weight_bytes) < kv_bytes:
        tensor_parallel *= 2
    at_once = min(_MOST_AT_ONCE, int(free // kv_bytes))
    flops, bandwidth = (peak * tensor_parallel * utilization for peak in (gpu.flops, gpu.bandwidth))
    pairs = positions * (positions + 1) // 2
    prefill_flops = decoder.transformer.flops(positions, pairs) + decoder.output_flops
    half_way = positions + questions.answer_tokens // 2
    token_flops = decoder.transformer.flops(1, half_way) + decoder.output_flops
    step_bytes = decoder.weight_bytes + at_once * half_way * decoder.kv_bytes
    step = max(step_bytes / bandwidth, at_once * token_flops / flops)
    seconds = prefill_flops / flops + questions.answer_tokens * step / at_once
    return Serving(
        prefill_flops=prefill_flops,
        kv_bytes=kv_bytes,
        at_once=at_once,
        tensor_parallel=tensor_parallel,
        gpu_seconds=seconds * tensor_parallel,
        gpus=max(1, math.ceil(questions.per_second * seconds)) * tensor_parallel,
        cost_per_1000=1000 * seconds * tensor_parallel / 3600 * gpu.dollars_per_hour,
    )
