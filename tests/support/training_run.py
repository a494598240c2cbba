"""A small training, also as a program: `python training_run.py CHECKPOINT FOLDER STEPS [PAUSE]`."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting import PromptTemplate
from lclm_rag.training.blocks import Block, BlockBuilder
from lclm_rag.training.loop import Draw, Progress, train
from lclm_rag.training.model import TrainedLCLM
from lclm_rag.training.recipe import Recipe, Stage

__all__ = ["RECIPE", "copying", "run"]

RECIPE = Recipe(
    start="",
    stages=(
        Stage("adapter", {"adapter": 1e-3}, steps=3, blocks=6, positions=120, warmup=2),
        Stage(
            "all",
            {"encoder": 3e-4, "adapter": 1e-3, "decoder": 3e-4},
            steps=5,
            blocks=6,
            positions=120,
            warmup=2,
            weight_decay=0.1,
        ),
    ),
    save_every=2,
)


def copying(template: PromptTemplate, ratio: int, *, plain_steps: Sequence[int] = ()) -> Draw:
    """Blocks that copy random tokens from a memory; in some steps none has a memory."""

    def draw(stage: Stage, step: int, rank: int, world: int) -> list[Block]:
        blocks = []
        for number in range(rank, stage.blocks, world):
            chance = random.Random(f"{stage.name}/{step}/{number}")
            tokens = [chance.randrange(300, 700) for _ in range(chance.randrange(5, 14))]
            built = BlockBuilder(template, ratio, "plain" if step in plain_steps else "copy")
            built.given(template.markup_ids("<|im_start|>"))
            if step not in plain_steps:
                built.memory(tokens)
            blocks.append(built.said(tokens).block())
        return blocks

    return draw


def run(
    checkpoint: Path, folder: Path, recipe: Recipe = RECIPE, stop_at: int | None = None
) -> tuple[TrainedLCLM, Progress]:
    """Train on copying, on the CPU, from the state in the folder."""
    opened = Checkpoint.open(checkpoint)
    model = TrainedLCLM(opened, torch.device("cpu"), torch.float32)
    draw = copying(PromptTemplate.of(opened), opened.config.compression_ratio)
    return model, train(model, recipe, draw, folder, stop_at=stop_at)


if __name__ == "__main__":
    start, out, steps, pause = (*sys.argv[1:], "0")[:4]
    torch.set_num_threads(1)
    opened = Checkpoint.open(start)
    trained = TrainedLCLM(opened, torch.device("cpu"), torch.float32)
    blocks_of = copying(PromptTemplate.of(opened), opened.config.compression_ratio)
    train(
        trained,
        RECIPE,
        blocks_of,
        Path(out),
        stop_at=int(steps),
        on_step=lambda progress, record: time.sleep(float(pause)),
    )
