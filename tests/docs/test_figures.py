"""The figures of the documentation are those of the committed results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lclm_rag.evaluation.datasets.parts import check_part

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
SHORT_TABLE = {
    "pasted text": "text",
    "pasted text, the best passage alone": "text:1",
    "latents": "latents",
    "latents, expanded": "latents+expand",
    "closed book": "closed-book",
}
TABLE = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)


def check(page: Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "tables.py", "--check", page]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_tables_are_those_that_the_results_give() -> None:
    checked = check(PAGE)
    assert checked.returncode == 0, checked.stderr


def test_one_other_digit_in_a_table_is_noticed(tmp_path: Path) -> None:
    def with_another_digit(table: re.Match[str]) -> str:
        rows = re.sub(r"\d", lambda d: str((int(d[0]) + 1) % 10), table[2], count=1)
        return table[0].replace(table[2], rows)

    page = PAGE.read_text("utf-8")
    names = [name for name, _ in TABLE.findall(page)]
    changed = tmp_path / "benchmarks.md"
    changed.write_text(TABLE.sub(with_another_digit, page), "utf-8")
    checked = check(changed)
    assert checked.returncode == 1
    assert ", ".join(names) in checked.stderr


def test_a_table_that_is_missing_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(PAGE.read_text("utf-8").replace("<!-- table: codecs -->", ""), "utf-8")
    checked = check(page)
    assert checked.returncode == 1
    assert re.search(r"\bcodecs\b", checked.stderr)


def test_what_was_measured_stands_in_tables_alone() -> None:
    code = r"^```.*?^```$|`[^`\n]*`"
    prose = re.sub(code, "", TABLE.sub("", PAGE.read_text("utf-8")), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"\d[\d.,]*\s?(?:%|×|[kKMGT]i?B\b|[mµ]?s\b|times\b)", prose) == []


def test_every_result_is_on_the_page() -> None:
    page = PAGE.read_text("utf-8")
    names = [path.name for path in RESULTS.glob("*.json")]
    assert names
    assert [name for name in names if f"(benchmarks_results/{name})" not in page] == []


@pytest.mark.parametrize("document", ["README.md", "docs/index.md"])
def test_the_short_table_of_contexts_is_that_of_the_results(document: str) -> None:
    modes = json.loads((RESULTS / "eval_exact_strings_top4.json").read_text("utf-8"))["modes"]
    row = re.compile(r"^\| \**([a-z, ]+?)\** \| ([\d.]+%) \| ([\d.–]+) \| (\d+) \|$", re.MULTILINE)
    shown = row.findall((ROOT / document).read_text("utf-8"))
    assert shown == [
        (
            title,
            f"{100 * modes[mode]['score']['mean']:.1f}%",
            f"{100 * modes[mode]['score']['low']:.1f}–{100 * modes[mode]['score']['high']:.1f}",
            f"{modes[mode]['positions']:.0f}",
        )
        for title, mode in SHORT_TABLE.items()
    ]


def test_a_figure_that_is_reported_comes_from_questions_to_report_on() -> None:
    asked = {}
    for path in RESULTS.glob("eval_*.json"):
        found = json.loads(path.read_text("utf-8"))
        # Older ones, of before there were parts, are said to be of their commit.
        if "part" in found["settings"]["questions"]:
            check_part(found["settings"], "report")
            asked[path.stem] = len(found["answers"])
    assert len(asked) >= 4
    assert min(asked.values()) >= 100
    for name in ("codecs", "codec_variants", "expansion_rules"):
        found = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        assert found.get("part", "choose") == "choose"


def test_latents_beat_one_pasted_passage_where_the_first_hit_is_often_wrong() -> None:
    """What the page "When to use it, and when not" says, both ways."""
    twins, exact = (
        json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["modes"]
        for name in ("eval_near_duplicates", "eval_exact_strings_top4")
    )
    assert twins["latents"]["score"]["low"] > twins["text:1"]["score"]["high"]
    assert twins["latents"]["positions"] <= twins["text:1"]["positions"]
    assert exact["text:1"]["score"]["mean"] >= exact["latents+expand"]["score"]["mean"]
    assert exact["text:1"]["positions"] < exact["latents+expand"]["positions"]


@pytest.mark.parametrize("name", ["eval_exact_strings_top4", "eval_exact_strings_top8"])
def test_expansion_is_as_accurate_as_text_at_less_than_half_the_positions(name: str) -> None:
    modes: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["modes"]
    text, expanded = modes["text"], modes["latents+expand"]
    assert expanded["score"]["mean"] >= text["score"]["mean"] - 0.01
    assert expanded["positions"] < text["positions"] / 2
    assert expanded["computed_positions"] < text["computed_positions"] / 2


@pytest.mark.parametrize(
    "document",
    [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_its_pictures_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text) + re.findall(
        r'<img[^>]*src="([^"]+)', text
    )
    own = [picture for picture in pictures if "://" not in picture]
    assert [picture for picture in own if not (document.parent / picture).is_file()] == []
