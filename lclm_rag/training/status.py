"""How far a run is, from the files in its folder; loads no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lclm_rag.errors import CheckpointError
from lclm_rag.training.recipe import Recipe

__all__ = ["read_status"]

_LAST = 50
"""Steps whose losses are averaged."""


def read_status(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Read how far a run is.

    Args:
        recipe: The run's recipe.
        folder: The run's folder.

    Returns:
        `step` of `steps`, the `stage`, what is in `Progress`, loss and share of right tokens of each
        objective over the last steps, and all `evaluations`.

    Raises:
        CheckpointError: When nothing was trained there yet.
    """
    log = folder / "log.jsonl"
    if not log.is_file():
        raise CheckpointError(f"{folder} has no log of a training yet.")
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    sums: dict[str, list[float]] = {}
    for line in lines[-_LAST:]:
        for name, figures in line["objectives"].items():
            of = sums.setdefault(name, [0.0, 0.0, 0.0])
            for index, key in enumerate(("loss", "right")):
                of[index] += figures[key] * figures["tokens"]
            of[2] += figures["tokens"]
    evaluations = folder / "evaluations.jsonl"
    found = evaluations.read_text().splitlines() if evaluations.is_file() else []
    return {
        "step": lines[-1]["step"],
        "steps": sum(stage.steps for stage in recipe.stages),
        "stage": lines[-1]["stage"],
        "source_tokens": sum(line["source_tokens"] for line in lines),
        "learned_tokens": sum(
            figures["tokens"] for line in lines for figures in line["objectives"].values()
        ),
        "seconds": sum(line["seconds"] for line in lines),
        "skipped": sum(line["norm"] is None for line in lines),
        "objectives": {
            name: {"loss": loss / tokens, "right": right / tokens}
            for name, (loss, right, tokens) in sums.items()
        },
        "evaluations": [json.loads(line) for line in found],
    }
