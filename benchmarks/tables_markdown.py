"""What the tables of docs/benchmarks.md are made with: committed results, numbers with units, Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shared import changed_since

__all__ = [
    "MODEL",
    "RESULTS",
    "duration",
    "machine_of",
    "markdown",
    "names",
    "percent",
    "results",
    "runs",
    "size",
    "source",
    "times",
]

RESULTS = Path(__file__).parent / "results"
"""docs/benchmarks_results links here, so that the site serves JSON and plots."""

MODEL = {"bundled": "the bundled checkpoint"}
"""Checkpoints by the name that results have for them; others are shown by that name."""


def results(name: str) -> dict[str, Any]:
    """Reads one committed result.

    Args:
        name: Of the file in `RESULTS`, without `.json`.

    Returns:
        The whole object, as the benchmark wrote it.
    """
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


def names() -> list[str]:
    """Lists all committed results, by the names that `results` takes."""
    return sorted(path.stem for path in RESULTS.glob("*.json"))


def machine_of(found: dict[str, Any]) -> tuple[str, ...] | None:
    """Tells what a result was measured on.

    Args:
        found: The whole object of a result.

    Returns:
        Cores, GPU, and versions of Python, torch, transformers and vLLM; None where it does not say.
    """
    noted = found.get("machine", found)
    if "cores" not in noted:
        return None
    parts = ("cores", "gpu", "python", "torch", "transformers", "vllm")
    return tuple(str(noted.get(part) or "none") for part in parts)


def runs(name: str) -> list[dict[str, Any]]:
    """Reads the rows of one committed result: one object for each thing measured."""
    rows: list[dict[str, Any]] = results(name)["results"]
    return rows


def markdown(
    columns: Sequence[str], rows: Iterable[Sequence[str]], notes: str, left: int = 1
) -> str:
    """Lays out one table.

    Args:
        columns: Titles.
        rows: Cells, as many in each row as there are columns.
        notes: One line below the table: what was measured on what, and where the JSON is.
        left: How many columns, from the first on, are aligned left; the others are numbers.

    Returns:
        Markdown without a line break at its end.
    """
    lines = [columns, [*["---"] * left, *["---:"] * (len(columns) - left)], *rows]
    for line in lines:
        if len(line) != len(columns):
            raise ValueError(f"{line} does not have the {len(columns)} cells of {columns}.")
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{notes}".rstrip()


def source(*names: str) -> str:
    """Links the JSON files that a table was made from, as the last sentences of its notes.

    A result that its benchmark or the checkpoint has outrun is said to be of its commit.
    """
    links = [f"[{name}.json](benchmarks_results/{name}.json)" for name in names]
    return " ".join([f"Data: {', '.join(links)}.", *_outrun(names)])


def _outrun(names: Sequence[str]) -> list[str]:
    """One sentence for each commit and what has changed since."""
    by_commit: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        found = results(name)
        if changed := changed_since(found):
            made = found["provenance"]
            since = (str(made["commit"])[:8], made["date"][:10], " and ".join(changed))
            by_commit.setdefault(since, []).append(name)
    said = []
    for (commit, date, changed), of_it in by_commit.items():
        which = "" if len(of_it) == len(names) else f"{', '.join(of_it)}: "
        of = f"{which}of commit" if which else "Of commit"
        said.append(f"{of} {commit} ({date}); since then {changed} changed.")
    return said


def percent(share: float, digits: int = 1) -> str:
    """Shows a share of 1: 0.976 is 97.6%."""
    return f"{100 * share:.{digits}f}%"


def times(ratio: float, digits: int = 2) -> str:
    """Shows a ratio: 1.93×."""
    return f"{ratio:.{digits}f}×"


def duration(seconds: float | None) -> str:
    """Shows seconds with at least two digits: 0.28 ms, 18 ms, 2.5 s, 290 s; a dash where there are none."""
    if seconds is None:
        return "–"
    unit, value = ("s", seconds) if seconds >= 1 else ("ms", 1000 * seconds)
    return f"{value:,.{0 if value >= 10 else 1 if value >= 1 else 2}f} {unit}"


def size(mib: float | None) -> str:
    """Shows an amount of memory or disk, given in MiB: 9.2 MiB, 2.6 GiB; a dash where there is none."""
    if mib is None:
        return "–"
    unit, value = ("GiB", mib / 1024) if mib >= 1024 else ("MiB", mib)
    return f"{value:,.{0 if value >= 100 else 1}f} {unit}"
