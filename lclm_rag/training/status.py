"""How far a run is, from the files in its folder; loads no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lclm_rag.errors import CheckpointError
from lclm_rag.training.recipe import Recipe

__all__ = ["read_lines", "read_status"]

_LAST = 50
"""Steps whose losses are averaged."""


def read_status(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Read how far a run is.

    Args:
        recipe: The run's recipe.
        folder: The run's folder.

    Returns:
        `step` of `steps`, the `stage`, what is in `Progress`; over the last steps loss and share of right
        tokens of each objective, `tokens_per_second`, and `matrix_share`, None if the log has none; and all
        `evaluations`.

    Raises:
        CheckpointError: When nothing was trained there yet.
    """
    log = folder / "log.jsonl"
    if not log.is_file():
        raise CheckpointError(f"{folder} has no log of a training yet.")
    lines = read_lines(log)
    last = lines[-_LAST:]
    sums: dict[str, list[float]] = {}
    for line in last:
        for name, figures in line["objectives"].items():
            of = sums.setdefault(name, [0.0, 0.0, 0.0])
            for index, key in enumerate(("loss", "right")):
                of[index] += figures[key] * figures["tokens"]
            of[2] += figures["tokens"]
    seconds = sum(line["seconds"] for line in last)
    shares = [(line["matrix_share"], line["seconds"]) for line in last if "matrix_share" in line]
    return {
        "step": lines[-1]["step"],
        "steps": recipe.steps,
        "stage": lines[-1]["stage"],
        "source_tokens": sum(line["source_tokens"] for line in lines),
        "learned_tokens": sum(_tokens(line) - line["source_tokens"] for line in lines),
        "seconds": sum(line["seconds"] for line in lines),
        "skipped": sum(line["norm"] is None for line in lines),
        "objectives": {
            name: {"loss": loss / tokens, "right": right / tokens}
            for name, (loss, right, tokens) in sums.items()
        },
        "tokens_per_second": sum(_tokens(line) for line in last) / seconds,
        "matrix_share": sum(a * b for a, b in shares) / sum(b for _, b in shares)
        if shares
        else None,
        "evaluations": read_lines(folder / "evaluations.jsonl"),
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a log of a run.

    Args:
        path: `log.jsonl` or `evaluations.jsonl`.

    Returns:
        Its lines, without one that is being written; none if there is no such file yet.
    """
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _tokens(line: dict[str, Any]) -> int:
    learned = sum(figures["tokens"] for figures in line["objectives"].values())
    return int(line["source_tokens"]) + int(learned)
