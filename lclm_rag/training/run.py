"""A run: a recipe carried out in a folder, with its data, its states and its evaluations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting import PromptTemplate
from lclm_rag.torch_setup import resolve_device
from lclm_rag.training.blocks import Block
from lclm_rag.training.data import Mixture, read_mixture
from lclm_rag.training.evaluate import evaluate, read_questions
from lclm_rag.training.loop import Draw, Progress, append_line, compute_dtype, load_newest, train
from lclm_rag.training.model import TrainedLCLM
from lclm_rag.training.recipe import Recipe, Stage

__all__ = ["carry_out", "mixtures", "open_model", "restored"]

_log = logging.getLogger(__name__)


def open_model(recipe: Recipe, device: str = "auto") -> TrainedLCLM:
    """Load the checkpoint that a recipe starts from, in float32.

    Args:
        recipe: The recipe.
        device: As for `Compressor.from_pretrained`.

    Returns:
        The model; it computes in the dtype that is fast on the device.

    Raises:
        CheckpointError: When the checkpoint cannot be found or loaded.
        ValueError: When the device is not valid.
    """
    on = resolve_device(device)
    model = TrainedLCLM(Checkpoint.open(recipe.place(recipe.start)), on, torch.float32)
    model.compute_dtype = compute_dtype(on)
    return model


def mixtures(recipe: Recipe, checkpoint: Checkpoint) -> list[Mixture]:
    """Open the data of every stage, before anything is trained.

    Args:
        recipe: The recipe.
        checkpoint: The checkpoint that blocks are made for.

    Returns:
        The mixture of each stage.

    Raises:
        ValueError: When an entry of a stage's data is not valid.
        CorpusError: When a source cannot be read.
    """
    template = PromptTemplate.of(checkpoint)
    opened = []
    for number, stage in enumerate(recipe.stages):
        data = [
            {**part, "source": recipe.place(part["source"])} if "source" in part else part
            for part in stage.data
        ]
        seed = recipe.seed + number
        opened.append(read_mixture(checkpoint, template, data, seed, stage.blocks))
    return opened


def carry_out(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    stop_at: int | None = None,
    on_step: Callable[[Progress, dict[str, Any]], None] = lambda progress, record: None,
    on_evaluation: Callable[[dict[str, Any]], None] = lambda record: None,
) -> TrainedLCLM:
    """Train by a recipe, from the last state in a folder.

    Args:
        recipe: The recipe.
        folder: Where states, `log.jsonl` and `evaluations.jsonl` are kept.
        device: As for `Compressor.from_pretrained`.
        stop_at: End after so many steps in all; None goes to the end of the recipe.
        on_step: Called after each step, with the progress and the step's line of the log.
        on_evaluation: Called with each line of the evaluations.

    Returns:
        The trained model.

    Raises:
        CheckpointError: When the checkpoint cannot be found or loaded.
        CorpusError: When a source or the questions cannot be read, or no block can be made of a record.
        ValueError: When the device, or an entry of the data, is not valid.
    """
    model = open_model(recipe, device)
    of_stage = mixtures(recipe, model.checkpoint)
    template = PromptTemplate.of(model.checkpoint)
    questions = None
    if recipe.questions is not None:
        questions = read_questions(Path(recipe.place(recipe.questions)))

    def after_step(progress: Progress, record: dict[str, Any]) -> None:
        on_step(progress, record)
        done = recipe.steps_before(progress.stage) + progress.step
        ends = progress.step == recipe.stages[progress.stage].steps
        if ends or done % recipe.save_every == 0:
            _tell_counts(recipe.stages[progress.stage], of_stage[progress.stage])
        due = done % recipe.evaluate_every == 0 or ends
        if questions is not None and due and PartialState().is_main_process:
            found = evaluate(model, template, questions, max_tokens=recipe.max_tokens)
            line = {"step": done, "source_tokens": progress.source_tokens, **found}
            append_line(folder / "evaluations.jsonl", line)
            on_evaluation(line)

    train(model, recipe, _draw(recipe, of_stage), folder, stop_at=stop_at, on_step=after_step)
    return model


def restored(recipe: Recipe, folder: Path, device: str = "cpu") -> tuple[TrainedLCLM, Progress]:
    """Load the last state of a run, to evaluate or to export it.

    Args:
        recipe: The run's recipe.
        folder: The run's folder.
        device: As for `Compressor.from_pretrained`.

    Returns:
        The model, and how far the run is.

    Raises:
        CheckpointError: When the run has no state, or its start cannot be found.
    """
    model = open_model(recipe, device)
    return model, load_newest(folder, model, recipe)


def _draw(recipe: Recipe, of_stage: Sequence[Mixture]) -> Draw:
    def draw(stage: Stage, step: int, rank: int, world: int) -> list[Block]:
        mixture = of_stage[recipe.stages.index(stage)]
        return mixture.blocks(step, rank, world, stage.longest or stage.positions)

    return draw


def _tell_counts(stage: Stage, mixture: Mixture) -> None:
    """Log what was cut and left out of the data since the last time."""
    words = {"cut": "cut", "refused": "left out as too long", "bad": "left out as unreadable"}
    for (objective, what), count in sorted(mixture.counts.items()):
        _log.info("Stage %s: %s examples of %s %s.", stage.name, count, objective, words[what])
    mixture.counts.clear()
