"""Compressing, passage index and serving for one corpus and so many questions a second, with what gives out
first. Brings `machines`, `serving` and `limits` together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lclm_rag.checkpoint import Space
from lclm_rag.estimate.limits import Limit, find_limits, knowledge_bases
from lclm_rag.estimate.machines import (
    Compressing,
    IndexPlan,
    StoreFiles,
    plan_compressing,
    plan_files,
    plan_index,
)
from lclm_rag.estimate.serving import (
    TEXT,
    Gpu,
    Prompt,
    Questions,
    Serving,
    latent_prompt,
    plan_serving,
    text_prompt,
)
from lclm_rag.estimate.shapes import DecoderShape, LclmShape
from lclm_rag.estimate.store import CorpusSize, plan_store
from lclm_rag.indexing.advice import EMBEDDED_UP_TO
from lclm_rag.store.codecs import CodecName

__all__ = ["ClusterPlan", "Needs", "paid_back_after", "plan_cluster"]


@dataclass(frozen=True)
class Needs:
    """What is asked for. deadline_hours: for compressing. gpu: a name of `PEAK_TFLOPS`, for compressing and
    serving. utilization: share of its peak. dense_width: numbers in a dense vector, 0: BM25 alone.
    machine_bytes: memory of each machine, Qdrant's among them."""

    questions: Questions
    codec: CodecName = "int4"
    space: Space = "encoder"
    deadline_hours: float = 24.0
    gpu: str = "H100 SXM"
    gpu_hour_price: float = 3.0
    utilization: float = 0.4
    dense_width: int = 1024
    machine_bytes: float = 64 * 2**30
    replicas: int = 2


@dataclass(frozen=True)
class ClusterPlan:
    """serving: latents of each shape, then pasted text, where they fit into the decoder's context; too_long:
    those that do not. index_server: whether the passage index is too large to be embedded.
    knowledge_bases: see `estimate_limits.knowledge_bases`."""

    files: StoreFiles
    compressing: Compressing
    indexes: list[IndexPlan]
    index_server: bool
    serving: list[Serving]
    too_long: list[Prompt]
    limits: list[Limit]
    knowledge_bases: int

    def paid_back_after(self, serving: Serving) -> float | None:
        """Questions after which compressing has paid, against pasted text; None: never, or there is nothing
        to compare."""
        text = self.serving[-1]
        if serving is text or text.prompt.form != TEXT:
            return None
        return paid_back_after(self.compressing, serving, text)


def plan_cluster(
    size: CorpusSize,
    shape: LclmShape,
    decoder: DecoderShape,
    needs: Needs,
    others: Sequence[LclmShape] = (),
) -> ClusterPlan:
    """shape: of the store. others: for comparing what a question costs. ValueError where there is nothing to
    plan for, or not even latents fit into the decoder's context."""
    if not size.passages:
        raise ValueError("There are no passages to plan for.")
    plan = plan_store(size, shape, needs.space)
    files = plan_files(size, plan, needs.codec)
    indexes = plan_index(
        size,
        needs.dense_width,
        needs.questions.per_second,
        node_bytes=needs.machine_bytes,
        replicas=needs.replicas,
    )
    prompts = [_latent_prompt(size, each, needs) for each in (shape, *others)]
    prompts.append(
        text_prompt(needs.questions, size.tokens / size.passages, size.text_bytes / size.passages)
    )
    gpu = Gpu.named(needs.gpu)
    served = [
        plan_serving(prompt, decoder, needs.questions, gpu, needs.utilization, needs.gpu_hour_price)
        for prompt in prompts
    ]
    if served[0] is None:
        raise ValueError(
            f"A prompt of {prompts[0].positions:,} positions and {needs.questions.answer_tokens:,} of answer "
            f"are more than the decoder's {decoder.context_length:,}: take fewer or shorter passages."
        )
    limits = find_limits(
        files,
        indexes,
        prompts[0],
        needs.questions,
        machine_bytes=needs.machine_bytes,
        replicas=needs.replicas,
        deadline_hours=needs.deadline_hours,
    )
    return ClusterPlan(
        files=files,
        compressing=plan_compressing(
            size,
            plan,
            needs.codec,
            gpu=needs.gpu,
            utilization=needs.utilization,
            deadline_hours=needs.deadline_hours,
            gpu_hour_price=needs.gpu_hour_price,
        ),
        indexes=indexes,
        index_server=size.passages > EMBEDDED_UP_TO,
        serving=[serving for serving in served if serving],
        too_long=[p for p, serving in zip(prompts, served, strict=True) if not serving],
        limits=limits,
        knowledge_bases=knowledge_bases(limits),
    )


def paid_back_after(compressing: Compressing, latents: Serving, text: Serving) -> float | None:
    """Questions after which the GPU hours of compressing are saved against pasted text; None: never.

    Disks for the latents, which pasted text does not need, are not in it.
    """
    saved = (text.cost_per_1000 - latents.cost_per_1000) / 1000
    if saved <= 0:
        return None
    return compressing.cost / saved


def _latent_prompt(size: CorpusSize, shape: LclmShape, needs: Needs) -> Prompt:
    plan = plan_store(size, shape, needs.space)
    return latent_prompt(
        shape,
        needs.space,
        needs.questions,
        plan.latents / size.passages,
        plan.bytes[needs.codec] / size.passages,
    )
