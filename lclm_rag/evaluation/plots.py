"""Plots of accuracy against its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw", "require_matplotlib"]

_Figure = Callable[[Mapping[str, Any]], float | None]


def require_matplotlib() -> None:
    """Select matplotlib's file backend.

    Raises:
        ImportError: When matplotlib is not installed; the message says what to install.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'lclm-rag[eval]'.") from error
    matplotlib.use("Agg")


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Plot accuracy against time to first token, memory and compression ratio, as PNG files.

    A plot is skipped if no context has a figure for it.

    Args:
        report: A report, as `read_report` gives it.
        folder: The existing folder to write to.

    Returns:
        The files written, `accuracy_<name>.png` in `folder`.

    Raises:
        ImportError: When matplotlib is not installed.
    """
    require_matplotlib()
    pasted = report["modes"].get("text")

    def ratio(figures: Mapping[str, Any]) -> float | None:
        if pasted is None or not figures["positions"] or not pasted["positions"]:
            return None
        return float(pasted["positions"] / figures["positions"])

    measured = any(f["peak_memory"] for f in report["modes"].values())
    plots: list[tuple[str, str, _Figure]] = [
        (
            "first_token",
            "median time to first token, ms",
            lambda f: None if f["first_token"] is None else f["first_token"] * 1000,
        ),
        (
            "memory",
            "peak GPU memory, MiB" if measured else "KV cache of the prompt at its peak, MiB",
            lambda f: _mebibytes(f["peak_memory"] if measured else f["kv_bytes"]),
        ),
        ("ratio", "prompt positions: how many times fewer than pasted text", ratio),
    ]
    written = []
    for name, label, figure in plots:
        points = {
            context: figure(f) for context, f in report["modes"].items() if context != "closed-book"
        }
        known = {context: x for context, x in points.items() if x is not None}
        if known:
            path = folder / f"accuracy_{name}.png"
            _scatter(report, known, label, path)
            written.append(path)
    return written


def _mebibytes(size: float | None) -> float | None:
    return None if size is None else size / 2**20


def _scatter(
    report: Mapping[str, Any], points: Mapping[str, float], label: str, path: Path
) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")
    for context, x in points.items():
        score = report["modes"][context]["score"]
        mean, low, high = (100 * score[k] for k in ("mean", "low", "high"))
        drawn = axes.errorbar(x, mean, yerr=[[mean - low], [high - mean]], fmt="o", capsize=3)
        axes.annotate(
            context,
            (x, mean),
            xytext=(7, 5),
            textcoords="offset points",
            color=drawn[0].get_color(),
            fontsize=9,
        )
    closed = report["modes"].get("closed-book")
    if closed is not None:
        axes.axhline(100 * closed["score"]["mean"], color="grey", linestyle=":", linewidth=1)
        axes.annotate("closed book", (0.01, 100 * closed["score"]["mean"]), fontsize=8,
                      xycoords=("axes fraction", "data"), color="grey", va="bottom")  # fmt: skip
    axes.set_xlabel(label)
    axes.set_ylabel("score, % (95% interval)")
    axes.set_ylim(-3, 106)
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
    axes.set_title(f"{report['settings']['set']}, {report['questions']} questions", fontsize=10)
    figure.savefig(path)
    pyplot.close(figure)
