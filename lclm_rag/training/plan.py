"""What a training takes, before it is begun: tokens, FLOPs, memory, hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.estimate.shapes import DecoderShape, LclmShape
from lclm_rag.training.blocks import Block
from lclm_rag.training.data import Mixture
from lclm_rag.training.flops import Shapes, training_flops
from lclm_rag.training.model import PARTS
from lclm_rag.training.recipe import Recipe, Stage

__all__ = ["StagePlan", "plan"]

_SAMPLE = 4
"""Steps whose blocks are made to see how long they are."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes.

    Attributes:
        name: The stage's name.
        steps: Its steps.
        source_tokens: Encoder tokens that it compresses.
        positions: Decoder positions that it computes, teachers not counted.
        learned_tokens: Tokens that it learns.
        flops: FLOPs, forward and backward.
        weight_bytes: Bytes of weights, gradients and moments, in float32.
        activation_bytes: About the bytes of activations of one batch, in bfloat16.
    """

    name: str
    steps: int
    source_tokens: int
    positions: int
    learned_tokens: int
    flops: int
    weight_bytes: int
    activation_bytes: int


def plan(recipe: Recipe, checkpoint: Checkpoint, mixtures: Sequence[Mixture]) -> list[StagePlan]:
    """Estimate what each stage takes, from the blocks of its first steps.

    FLOPs are counted as in `training_flops`. Activations are counted as 34 bytes for each
    position and unit of width in each layer, as in Megatron's account (Korthikanti et al. 2022), or 2 with
    checkpointing, and the logits of learned tokens as 8 bytes each.

    Args:
        recipe: The recipe.
        checkpoint: The checkpoint that it starts from.
        mixtures: The data of its stages.

    Returns:
        The plan of each stage.

    Raises:
        CheckpointError: When the shape of encoder or decoder cannot be read.
    """
    plans = []
    for stage, mixture in zip(recipe.stages, mixtures, strict=True):
        count = min(_SAMPLE, stage.steps)
        longest = stage.longest or stage.positions
        sample = [b for step in range(count) for b in mixture.blocks(step, 0, 1, longest)]
        plans.append(_of_stage(stage, checkpoint, sample, stage.steps / count))
    return plans


def _of_stage(
    stage: Stage, checkpoint: Checkpoint, sample: Sequence[Block], times: float
) -> StagePlan:
    shapes = Shapes.of(checkpoint)
    source = sum(len(memory) for block in sample for memory in block.memories)
    learned = sum(sum(block.learned) for block in sample)
    return StagePlan(
        name=stage.name,
        steps=stage.steps,
        source_tokens=round(source * times),
        positions=round(sum(map(len, sample)) * times),
        learned_tokens=round(learned * times),
        flops=round(training_flops(shapes, stage, sample) * times),
        weight_bytes=_weight_bytes(stage, checkpoint, shapes.lclm, shapes.decoder),
        activation_bytes=_activation_bytes(stage, shapes.lclm, shapes.decoder, sample),
    )


def _weight_bytes(
    stage: Stage, checkpoint: Checkpoint, lclm: LclmShape, decoder: DecoderShape
) -> int:
    width = lclm.adapter_width * (lclm.encoder_width + lclm.decoder_width)
    tables = {
        "encoder": int(checkpoint.encoder_config["vocab_size"]) * lclm.encoder.hidden_size,
        "decoder": decoder.vocabulary * decoder.transformer.hidden_size,
        "adapter": 0,
    }
    layers = {
        "encoder": lclm.encoder.matrix_parameters,
        "decoder": decoder.transformer.matrix_parameters,
        "adapter": width,
    }
    shapes = {"encoder": lclm.encoder, "decoder": decoder.transformer}
    total = 0
    for part in PARTS:
        total += 4 * (layers[part] + tables[part])
        if part in stage.lora:
            shape = shapes[part]
            rows = 2 * (shape.num_attention_heads + shape.num_key_value_heads) * shape.head_dim
            rows += 3 * shape.intermediate_size + 7 * shape.hidden_size
            total += 16 * stage.lora[part] * shape.num_hidden_layers * rows
        elif part in stage.rates:
            total += 12 * (layers[part] + tables[part])
    return total


def _activation_bytes(
    stage: Stage, lclm: LclmShape, decoder: DecoderShape, sample: Sequence[Block]
) -> int:
    """Of the largest batch that there can be."""
    total = sum(map(len, sample))
    share = min(1.0, stage.positions / max(1, total))
    source = sum(len(memory) for block in sample for memory in block.memories) * share
    learned = sum(sum(block.learned) for block in sample) * share
    per_unit = 2 if stage.checkpointing else 34
    layers = decoder.transformer.num_hidden_layers * decoder.transformer.hidden_size
    bytes_: float = per_unit * layers * min(stage.positions, total)
    bytes_ += per_unit * lclm.encoder.num_hidden_layers * lclm.encoder.hidden_size * source
    return round(bytes_ + 8 * decoder.vocabulary * learned)
