"""The FLOPs of training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.estimate.shapes import DecoderShape, LclmShape
from lclm_rag.training.blocks import Block
from lclm_rag.training.recipe import Stage

__all__ = ["Shapes", "training_flops"]


@dataclass(frozen=True)
class Shapes:
    """The sizes of a checkpoint that FLOPs depend on.

    Attributes:
        lclm: Those of encoder and adapter.
        decoder: Those of the decoder.
        ratio: Source tokens to one latent.
        window: Tokens that the encoder reads at once.
    """

    lclm: LclmShape
    decoder: DecoderShape
    ratio: int
    window: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Shapes:
        """Read the sizes of a checkpoint.

        Args:
            checkpoint: The checkpoint.

        Returns:
            The sizes.

        Raises:
            CheckpointError: When a config.json lacks a size.
        """
        config = checkpoint.config
        lclm, decoder = LclmShape.of(checkpoint), DecoderShape.of(checkpoint)
        return cls(lclm, decoder, config.compression_ratio, config.encoder_window_size)


def training_flops(shapes: Shapes, stage: Stage, blocks: Sequence[Block]) -> int:
    """Count the FLOPs of learning some blocks, forward and backward.

    A forward pass is counted as in `lclm_rag.estimate`. A backward pass takes twice that for a part that is
    trained, and once for one that gradients only pass through.

    Args:
        shapes: The checkpoint's sizes.
        stage: What is trained.
        blocks: The blocks.

    Returns:
        The number of FLOPs.
    """
    layers = shapes.decoder.transformer
    memories = [len(memory) for block in blocks for memory in block.memories]
    latents = sum(-(-length // shapes.ratio) for length in memories)
    # Causal: half of the pairs, window by window.
    read = sum(length * min(length, shapes.window) // 2 for length in memories)
    encoding = shapes.lclm.encoder.flops(sum(memories), read)
    encoding += shapes.lclm.adapter_flops(latents, 0)
    learned = sum(sum(block.learned) for block in blocks)
    decoding = layers.flops(sum(map(len, blocks)), sum(map(_pairs, blocks)))
    decoding += shapes.decoder.output_flops * learned
    teachers = [block.teacher for block in blocks if block.teacher is not None]
    teaching = layers.flops(sum(map(len, teachers)), sum(map(_pairs, teachers)))
    teaching += shapes.decoder.output_flops * sum(sum(block.learned) for block in teachers)
    # The memory tokens are trained in any case, so gradients pass through the decoder.
    passes = 3 if "decoder" in stage.rates and "decoder" not in stage.lora else 2
    compressing = {"encoder", "adapter"} & stage.rates.keys()
    encoder_passes = 3 if "encoder" in stage.rates else (2 if compressing else 1)
    again = encoding + decoding if stage.checkpointing else 0
    return encoding * encoder_passes + decoding * passes + teaching + again


def _pairs(block: Block) -> int:
    """Pairs of query and key that attention looks at."""
    context = len(block) - sum(block.tails)
    return context**2 // 2 + sum(tail * context + tail**2 // 2 for tail in block.tails)
