"""The figures on accuracy in the README are those that were committed with the command that made them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def report(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (ROOT / "benchmarks" / "results" / f"{name}.json").read_text()
    )
    return found


def table_after(words: str) -> dict[str, list[str]]:
    """{first cell: other cells} of the first table behind these words."""
    lines = README.partition(words)[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = {}
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        first, *others = (cell.strip(" *`") for cell in line.strip("|").split("|"))
        rows[first] = others
    return rows


def shown(figures: dict[str, Any]) -> list[str]:
    """Score, interval, positions, time to first token."""
    score = figures["score"]
    return [
        f"{100 * score['mean']:.1f}%",
        f"{100 * score['low']:.1f}–{100 * score['high']:.1f}",
        f"{figures['positions']:.0f}",
        f"{1000 * figures['first_token']:.0f} ms",
    ]


MODES = {
    "pasted text": "text",
    "latents": "latents",
    "latents, expanded": "latents+expand",
    "closed book": "closed-book",
}


def test_exact_strings() -> None:
    found = report("eval_exact_strings_top4")
    table = table_after("## Exact strings: skim, then expand")
    assert list(table) == list(MODES)
    for row, mode in MODES.items():
        categories = [
            f"{100 * found['categories'][name]['modes'][mode]:.1f}%"
            for name in ("registry code", "record id", "other facts")
        ]
        assert table[row] == shown(found["modes"][mode]) + categories
    text, expanded = found["modes"]["text"], found["modes"]["latents+expand"]
    assert expanded["score"]["mean"] >= text["score"]["mean"] - 0.01
    assert expanded["positions"] < text["positions"] / 2
    assert expanded["computed_positions"] < text["computed_positions"] / 2


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("What you might use instead, at the positions", "eval_others"),
        ("RULER's needle tasks at 4,096 tokens", "eval_ruler_4k"),
    ],
)
def test_other_tables(words: str, name: str) -> None:
    found = report(name)
    table = table_after(words)
    titles = {mode: title for title, mode in MODES.items()}
    assert [titles.get(mode, mode) for mode in found["modes"]] == list(table)
    for mode, figures in found["modes"].items():
        assert table[titles.get(mode, mode)] == shown(figures)


def test_its_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture
