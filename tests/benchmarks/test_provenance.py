"""No result hides that its benchmark or the checkpoint has changed since."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
FIELDS = {"commit", "date", "command", "versions", "benchmark", "code", "checkpoint"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    made = json.loads(path.read_text("utf-8"))["provenance"]
    assert made.keys() == FIELDS
    assert re.fullmatch(r"[0-9a-f]{40}\+?", made["commit"])
    assert re.match(r"\d{4}-\d\d-\d\dT", made["date"])
    assert made["command"].startswith(("python benchmarks/", "lclm-rag eval "))
    assert made["versions"]
    assert (ROOT / "benchmarks" / made["benchmark"]).is_file()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """What the tables and the page are made from."""
    for folder in (
        "benchmarks",
        "docs",
        "lclm_rag/evaluation",
        "lclm_rag/checkpoints/tiny-lclm-4x",
    ):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    shutil.copytree(
        ROOT / "examples" / "train_tiny_lclm", tmp_path / "examples" / "train_tiny_lclm"
    )
    return tmp_path


def tables(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "benchmarks" / "tables.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("changed", "table"),
    [
        ("benchmarks/build_memory.py", "build_memory"),
        ("lclm_rag/evaluation/intervals.py", "latent_reranking"),
        ("lclm_rag/evaluation/datasets/fact_sheets.toml", "passage_order"),
        ("lclm_rag/checkpoints/tiny-lclm-4x/model_config.json", "conversation"),
    ],
)
def test_a_page_that_does_not_say_so_is_noticed(copied: Path, changed: str, table: str) -> None:
    assert tables(copied, "--check").returncode == 0
    with (copied / changed).open("a") as file:
        file.write("\n")
    checked = tables(copied, "--check")
    assert checked.returncode == 1
    assert re.search(rf"\b{table}\b", checked.stderr)
    assert tables(copied).returncode == 0
    page = (copied / "docs" / "benchmarks.md").read_text("utf-8")
    part = re.search(rf"<!-- table: {table} -->.*?<!-- end -->", page, re.DOTALL)
    assert part
    assert re.search(
        r"[Oo]f commit [0-9a-f]{8} \(2026-\d\d-\d\d\); since then .* changed\.", part[0]
    )
    assert tables(copied, "--check").returncode == 0
