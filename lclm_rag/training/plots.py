"""Curves of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from math import nan
from pathlib import Path
from typing import Any

from lclm_rag.errors import CheckpointError
from lclm_rag.evaluation.plots import require_matplotlib
from lclm_rag.training.status import read_lines

__all__ = ["draw_curves"]

_POINTS = 200
"""Points of a curve; each is the mean of the steps around it."""


def draw_curves(folder: Path, path: Path) -> None:
    """Draw a run: tokens that are right in training, losses, and right answers in evaluations.

    Args:
        folder: The run's folder.
        path: The file to write: .png, .svg or .pdf.

    Raises:
        CheckpointError: When nothing was trained there yet.
        ImportError: When matplotlib is not installed.
        ValueError: When the file's name ends in another way.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path}: a plot is a .png, .svg or .pdf file.")
    lines, evaluations = (read_lines(folder / n) for n in ("log.jsonl", "evaluations.jsonl"))
    if not lines:
        raise CheckpointError(f"{folder} has no log of a training yet.")
    require_matplotlib()
    from matplotlib.figure import Figure

    count = 3 if evaluations else 2
    figure = Figure(figsize=(8, 2.6 * count), layout="constrained")
    axes: Any = figure.subplots(count, sharex=True)
    names = sorted({name for line in lines for name in line["objectives"]})
    for axis, key, label in (
        (axes[0], "right", "right tokens, %"),
        (axes[1], "loss", "loss, nats"),
    ):
        scale = 100 if key == "right" else 1
        for number, name in enumerate(names):
            steps, values = _curve(lines, name, key)
            axis.plot(steps, [scale * v for v in values], color=f"C{number}", label=name, lw=1.3)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0, top=100 if key == "right" else None)
    for context, style in (("text", "--"), ("latents", "-"), ("none", ":")):
        found = [line for line in evaluations if context in line]
        if found:
            steps = [line["step"] for line in found]
            values = [100 * line[context]["contains"] for line in found]
            axes[2].plot(steps, values, style, color="0.2", marker="o", ms=3, label=context)
            axes[2].set_ylabel("answers that contain\nthe right one, %")
            axes[2].set_ylim(0, 100)
    ends = [(a["step"], b["stage"]) for a, b in pairwise(lines) if a["stage"] != b["stage"]]
    for axis in axes:
        for step, _ in ends:
            axis.axvline(step, color="0.8", lw=0.8, zorder=0)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, lines[-1]["step"])
    last = lines[-1]["step"]
    starts = [(0, lines[0]["stage"]), *ends]
    for (step, stage), end in zip(starts, [*(step for step, _ in ends), last], strict=True):
        # A short stage has no room for its name.
        if end - step > (0.01 + 0.008 * len(stage)) * last:
            axes[0].text(step, 102, f" {stage}", fontsize=7, color="0.4")
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=150)


def _curve(lines: Sequence[dict[str, Any]], name: str, key: str) -> tuple[list[float], list[float]]:
    """The means of an objective's figure over equal stretches of steps, by learned tokens.

    After each stage stands NaN, which breaks the curve: the next stage may not have that objective.
    """
    size = max(1, -(-lines[-1]["step"] // _POINTS))
    steps: list[float] = []
    values: list[float] = []
    for _, stage in groupby(lines, lambda line: line["stage"]):
        sums: dict[int, list[float]] = {}
        for line in stage:
            if name in line["objectives"]:
                figures = line["objectives"][name]
                of = sums.setdefault((line["step"] - 1) // size, [0.0, 0.0])
                of[0] += figures[key] * figures["tokens"]
                of[1] += figures["tokens"]
        steps += [*((n + 0.5) * size for n in sums), nan]
        values += [*(total / tokens for total, tokens in sums.values()), nan]
    return steps, values
