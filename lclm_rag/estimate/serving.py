"""What a question costs on vLLM, from latents and from pasted text: positions, FLOPs, GPU seconds, money.

This is a model of one engine that is kept busy, not a measurement. Time is that of the tensor cores or of the
memory, whichever takes longer, at a share of their peak. Prefix cache hits and speculation are left out.
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
"""Most questions that are decoded together.

This is the default of vLLM 0.32's `max_num_seqs`, which is 1,024 on GPUs with 70 GiB or more. Beyond 256
little is gained: the weights are then no longer most of what is read.
"""

# In Qwen3's tokenizer (`prompting.template`).
_FRAME_POSITIONS = 20  # Chat markup, the instruction and "Question:".
_PASSAGE_POSITIONS = 5  # `[7] ` before a passage and the line break after it.
_SPAN_POSITIONS = 2  # `<|memory_start|>` and `<|memory_end|>`.


@dataclass(frozen=True)
class Questions:
    """The questions to serve.

    Attributes:
        per_second: Questions per second on average; leave room for peaks.
        top_k: Passages in each prompt.
        question_tokens: Tokens of each question.
        answer_tokens: Tokens of each answer.
    """

    per_second: float
    top_k: int
    question_tokens: int = 32
    answer_tokens: int = 128


@dataclass(frozen=True)
class Serving:
    """What answering takes.

    Attributes:
        prefill_flops: FLOPs to prefill one question's prompt.
        kv_bytes: KV cache of one question, its answer included.
        at_once: Questions that one server decodes together.
        tensor_parallel: GPUs of a server.
        gpu_seconds: GPU time of one question, while the GPU is kept busy.
        gpus: GPUs for all questions.
        cost_per_1000: Dollars for 1,000 questions; GPU time only.
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
    """What a question is answered from, and what that takes.

    Attributes:
        name: Such as "latents 16x", or "text".
        positions: Decoder positions of a prompt.
        serving: What answering takes; None if the prompt does not fit into the decoder's context.
        paid_back_after: Questions, as from `paid_back_after`; None for text.
    """

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
    """Estimate what answering takes from the latents of each store, and from the same passages as text.

    Args:
        size: The corpus.
        stores: The stores to compare.
        decoder: The decoder.
        questions: The questions to serve.
        gpu: The GPU that serves them.
        utilization: Share of the GPU's peak that is reached, above 0 and at most 1.

    Returns:
        One context for each store, then the one for text.

    Raises:
        ValueError: When there are no passages, or no prompt fits into the decoder's context.
    """

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
    """The number of questions after which compressing has saved what it cost, compared with pasted text.

    Disk space for the latents, which pasted text does not need, is left out.

    Args:
        cost: What compressing the corpus costs, in dollars.
        latents: What answering from latents takes; None if the prompt does not fit.
        text: What answering from text takes; None if the prompt does not fit.

    Returns:
        The number of questions; None if it is never paid back, or one of the prompts does not fit.
    """
    if latents is None or text is None or latents.cost_per_1000 >= text.cost_per_1000:
        return None
    return 1000 * cost / (text.cost_per_1000 - latents.cost_per_1000)


def plan_serving(
    positions: int, decoder: DecoderShape, questions: Questions, gpu: Gpu, utilization: float
) -> Serving | None:
    """Estimate what answering prompts of one length takes.

    Prefill takes FLOPs / (peak · utilization). Decoding a token for each of n questions reads the weights
    once and the KV cache of each question, and computes n tokens; such a step takes as long as the slower of
    the two, and each question pays for an n-th of it. The adapter, below 1%, is left out.

    Args:
        positions: Decoder positions of a prompt.
        decoder: The decoder.
        questions: The questions to serve.
        gpu: The GPU that serves them.
        utilization: Share of both peaks (FLOPs and bandwidth) that is reached.

    Returns:
        What answering takes; None if prompt and answer are longer than the decoder's context.
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
