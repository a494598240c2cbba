"""The tables that eval prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lclm_rag.cli.progress import stdout
from lclm_rag.evaluation.datasets.published import published_scores

__all__ = ["print_comparison", "print_report"]

_MOST_COLUMNS = 5
"""Contexts that fit beside each other on a screen; more of them become the rows."""
_SHORT = {
    "score, %": "score, %",
    "  95% interval": "95% interval",
    "exact match, %": "exact, %",
    "prompt positions": "positions",
    "time to first token, ms": "first token, ms",
}
"""What is shown of each if there are more, and the headings of the columns."""


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report: a table with a column for each context, notes, and the scores by category.

    The scores by category are left out if there is only one category.

    Args:
        report: The content of report.json.
    """
    settings, contexts = report["settings"], report["modes"]
    rows = {"": list(contexts)} | {n: cells for n, cells in _rows(report).items() if any(cells)}
    if len(contexts) > _MOST_COLUMNS:
        shown = {"": "", **_SHORT}
        rows = {heading: rows[name] for name, heading in shown.items() if name in rows}
        columns = list(rows)
        lines = list(zip(*rows.values(), strict=True))
    else:
        columns = ["", *contexts]
        lines = [(name, *cells) for name, cells in rows.items() if name]
    title = (
        f"{settings['set']}: {report['questions']} questions, checkpoint {settings['checkpoint']}"
    )
    stdout.print(_table(title, columns, lines))
    for note in _notes(report):
        stdout.print(note, style="dim", soft_wrap=True)
    if len(report["categories"]) > 1:
        stdout.print(_categories(report))


def _rows(report: Mapping[str, Any]) -> dict[str, list[str]]:
    figures: list[Mapping[str, Any]] = list(report["modes"].values())
    differences = [report["differences"].get(context) for context in report["modes"]]
    top_k = report["settings"]["top_k"]
    rows = {
        "score, %": [_percent(f["score"]) for f in figures],
        "  95% interval": [_interval(f["score"]) for f in figures],
        f"  less {report['reference']}": [
            "" if d is None else f"{100 * d['mean']:+.1f}" for d in differences
        ],
        "    95% interval": [
            "" if d is None else f"{100 * d['low']:+.1f} … {100 * d['high']:+.1f}"
            for d in differences
        ],
        "    better, worse; p": [
            "" if d is None else f"{d['better']}, {d['worse']}; {d['p']:.2g}" for d in differences
        ],
    }
    shares = {
        "exact match, %": "exact_match",
        "verbatim, %": "verbatim",
        "token F1, %": "f1",
        "contains, %": "contains",
        "recall@1, %": "recall_at_1",
        "recall, %" if top_k is None else f"recall@{top_k}, %": "recall",
        "hit rate, %" if top_k is None else f"hit rate@{top_k}, %": "hit",
        "grounded, %": "grounded",
    }
    rows |= {title: [_percent(f[name]) for f in figures] for title, name in shares.items()}
    numbers = {
        "prompt positions": ("positions", 1, ".0f"),
        "  computed, all rounds": ("computed_positions", 1, ".0f"),
        "rounds": ("rounds", 1, ".2f"),
        "passages expanded": ("expanded", 1, ".2f"),
        "KV cache at its peak, MiB": ("kv_bytes", 2**-20, ".2f"),
        "peak GPU memory, MiB": ("peak_memory", 2**-20, ".0f"),
        "time to first token, ms": ("first_token", 1000, ".0f"),
        "whole answer, ms": ("seconds", 1000, ".0f"),
    }
    rows |= {
        title: ["" if f[name] is None else f"{f[name] * factor:{digits}}" for f in figures]
        for title, (name, factor, digits) in numbers.items()
    }
    rows["first token: quartiles, ms; questions"] = [_spread(f) for f in figures]
    return rows


def _spread(figures: Mapping[str, Any]) -> str:
    """The quartiles of the time to the first token, and of how many questions they are."""
    quartiles = figures["first_token_quartiles"]
    if quartiles is None:
        return ""
    return f"{1000 * quartiles[0]:.0f}–{1000 * quartiles[1]:.0f}; {figures['timed']}"


def _interval(figure: Mapping[str, float] | None) -> str:
    return "" if figure is None else f"{100 * figure['low']:.1f}–{100 * figure['high']:.1f}"


def _notes(report: Mapping[str, Any]) -> list[str]:
    notes = []
    store = report["store"]
    if store["source_tokens"]:
        per_token = store["bytes"] / store["source_tokens"]
        notes.append(f"The store takes {per_token:.1f} bytes for each source token, text included.")
    if report["reference"] is not None and not report["reference"].startswith("text"):
        notes.append(f"Differences are those to {report['reference']}: pasted text was not asked.")
    for context, figures in report["modes"].items():
        if figures["errors"]:
            notes.append(
                f"{context}: {figures['errors']} questions were refused and score 0, such as: "
                f"{figures['first_error']}"
            )
        if figures["left_out"]:
            notes.append(
                f"{context}: {figures['left_out']:.2f} passages a question had no room in the prompt."
            )
        if figures["prepared"]:
            notes.append(
                f"{context}: {figures['prepared']:.2f} s of the time to first token are for cutting the text."
            )
    if report["unfinished"]:
        notes.append(f"Not finished, and left out: {', '.join(report['unfinished'])}.")
    return notes


def _categories(report: Mapping[str, Any]) -> Table:
    """The scores by category, with the authors' own beside them if they gave any."""
    contexts, categories = report["modes"], report["categories"]
    authors = published_scores(report["settings"]["set"])
    rows = [
        [
            name or "–",
            str(category["questions"]),
            *(_of_category(category, context) for context in contexts),
            *([_published(authors.get(name))] if authors.keys() & categories.keys() else []),
        ]
        for name, category in categories.items()
    ]
    columns = ["category", "questions", *contexts]
    columns += ["latents 16×, by the authors"] if len(rows[0]) > len(columns) else []
    title = (
        f"score by category, %; in brackets the p of McNemar's test against {report['reference']}"
    )
    if len(contexts) <= _MOST_COLUMNS:
        return _table(title, columns, rows)
    lines = list(zip(columns, *rows, strict=True))
    return _table(title, lines[0], lines[1:])


def _of_category(category: Mapping[str, Any], context: str) -> str:
    score = _percent(category["modes"][context])
    difference = category["differences"].get(context)
    return score if difference is None else f"{score} ({difference['p']:.2g})"


def _published(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column holds names, and whose others hold figures."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    return table


def print_comparison(comparison: Mapping[str, Any], a: Path, b: Path) -> None:
    """Print a table of the differences between two reports, B less A.

    Args:
        comparison: The result of `lclm_rag.evaluation.report.compare`.
        a: The path of report A.
        b: The path of report B.
    """
    table = Table(
        title=f"B less A, {comparison['questions']} questions that both asked", title_justify="left"
    )
    table.add_column("context")
    for heading in ("A, %", "B, %", "difference", "95% interval", "better", "worse"):
        table.add_column(heading, justify="right")
    for context, figures in comparison["modes"].items():
        difference = figures["difference"]
        table.add_row(
            context,
            f"{100 * figures['a']:.1f}",
            f"{100 * figures['b']:.1f}",
            f"{100 * difference['mean']:+.1f}",
            f"{100 * difference['low']:+.1f} … {100 * difference['high']:+.1f}",
            str(difference["better"]),
            str(difference["worse"]),
        )
    stdout.print(f"A: {a}\nB: {b}")
    stdout.print(table)
    if comparison["only_a"] or comparison["only_b"]:
        stdout.print(
            f"Left out: {comparison['only_a']} questions that only A asked, {comparison['only_b']} only B.",
            style="dim",
        )
    for name, (before, after) in comparison["settings"].items():
        stdout.print(f"{name}: A {before}, B {after}", style="dim", soft_wrap=True)


def _percent(figure: Mapping[str, float] | None) -> str:
    return "" if figure is None else f"{100 * figure['mean']:.1f}"
