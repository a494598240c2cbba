"""Recipes: what is trained in each stage, at what rate, on what, until when. A recipe is a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import cos, pi
from pathlib import Path
from typing import Any, get_args

from lclm_rag.training.model import Part

__all__ = ["Recipe", "Stage", "read_recipe"]


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: Its name in logs.
        rates: The highest learning rate of each part that is trained; parts that are not named stay as they
            are. The embeddings of the memory tokens are trained in any case.
        steps: How many steps it has.
        blocks: How many blocks are in a step, on all processes together.
        positions: The most decoder positions that are computed at once; a step of more is accumulated.
        longest: The most decoder positions of a block; default: `positions`. Longer texts are cut, longer
            questions and chats left out.
        memory_rate: The rate of the memory tokens' embeddings while the decoder is not trained.
        warmup: Steps in which the rate rises from 0.
        last_rate: The share of the highest rate at which the cosine ends.
        weight_decay: For the matrices of layers; nothing else decays.
        muon: The highest rate at which Muon trains the matrices of a part's layers, by part; the rest of the
            part, and all of a part that is not named, is trained by AdamW at its rate in `rates`.
        clip: The norm to which gradients are cut.
        embeddings: Whether the embedding tables of encoder and decoder are trained with them.
        checkpointing: Whether activations are computed again instead of kept.
        lora: The rank of LoRA weights that are trained in place of a part's own, by part.
        data: What it learns from, as `lclm_rag.training.data` reads it.
    """

    name: str
    rates: Mapping[str, float]
    steps: int
    blocks: int
    positions: int = 16_384
    longest: int | None = None
    memory_rate: float = 1e-3
    warmup: int = 50
    last_rate: float = 0.1
    weight_decay: float = 0.0
    muon: Mapping[str, float] = field(default_factory=dict)
    clip: float = 1.0
    embeddings: bool = True
    checkpointing: bool = False
    lora: Mapping[str, int] = field(default_factory=dict)
    data: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.rates:
            raise ValueError(f"Stage {self.name} trains nothing: give rates.")
        for entry in ("rates", "lora", "muon"):
            unknown = sorted(getattr(self, entry).keys() - set(get_args(Part)))
            if unknown:
                raise ValueError(
                    f"Stage {self.name}: {entry} names {unknown[0]!r}; parts are "
                    f"{', '.join(get_args(Part))}."
                )
            untrained = sorted(getattr(self, entry).keys() - self.rates.keys())
            if untrained:
                raise ValueError(
                    f"Stage {self.name}: {entry} of {untrained[0]}, which has no rate."
                )
        for entry in ("steps", "blocks", "positions"):
            if getattr(self, entry) < 1:
                raise ValueError(f"Stage {self.name}: {entry} must be at least 1.")

    def rate(self, step: int) -> float:
        """The share of the highest rate in a step, counted from 0: a linear rise, then half a cosine.

        Args:
            step: The step.

        Returns:
            The share, above 0.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.last_rate + (1 - self.last_rate) * (1 + cos(pi * min(1.0, done))) / 2


@dataclass(frozen=True)
class Recipe:
    """A whole training.

    Attributes:
        start: The checkpoint that it starts from: a folder or a hub id.
        stages: The stages, in order.
        seed: What order and choice of the data depend on.
        save_every: Steps between two saved states.
        questions: A file of questions, as `lclm_rag.training.evaluate.read_questions` takes it, that are
            answered during training; None for none.
        evaluate_every: Steps between two evaluations; one more is made at the end of each stage.
        max_tokens: The most tokens of an answer in an evaluation.
        folder: The recipe's folder, from which its paths are seen.
    """

    start: str
    stages: tuple[Stage, ...]
    seed: int = 0
    save_every: int = 100
    questions: str | None = None
    evaluate_every: int = 500
    max_tokens: int = 48
    folder: Path = Path()

    @property
    def steps(self) -> int:
        """The steps of all stages."""
        return self.steps_before(len(self.stages))

    def steps_before(self, stage: int) -> int:
        """The steps of the stages before one.

        Args:
            stage: The stage's number, from 0.

        Returns:
            How many steps of the whole training these are.
        """
        return sum(each.steps for each in self.stages[:stage])

    def place(self, name: str) -> str:
        """A path of the recipe, seen from its folder; a hub id, or another path, stays as it is.

        Args:
            name: The name of a checkpoint, a data set or a file.

        Returns:
            The path or name.
        """
        beside = self.folder / name
        return str(beside) if beside.exists() else name


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: The TOML file, with the entries of `Recipe`, and a table `stages` for each stage.

    Returns:
        The recipe.

    Raises:
        ValueError: When it cannot be read, or its entries are not those of a recipe; the message names them.
    """
    try:
        entries = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Recipe {path} cannot be read: {error}.") from error
    stages = entries.pop("stages", None)
    if not isinstance(stages, list) or not stages:
        raise ValueError(f"Recipe {path} has no stages.")
    try:
        made = [_made(Stage, {**stage, "data": tuple(stage.get("data", ()))}) for stage in stages]
        places = {
            "stages": tuple(made),
            "folder": Path(entries.get("folder", path.parent)).resolve(),
        }
        recipe: Recipe = _made(Recipe, {**entries, **places})
    except (ValueError, TypeError) as error:
        raise ValueError(f"Recipe {path}: {error}") from error
    return recipe


def _made(kind: type[Any], entries: Mapping[str, Any]) -> Any:
    known = [f.name for f in fields(kind)]
    unknown = sorted(entries.keys() - set(known))
    if unknown:
        raise ValueError(f"unknown entry {unknown[0]!r}; it has {', '.join(known)}.")
    return kind(**entries)
