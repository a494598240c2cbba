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


MADE_NOW = """
import json, pathlib, shared
for path in pathlib.Path("results").glob("*.json"):
    found = json.loads(path.read_text())
    if path.name.startswith("eval_") and "part" not in found["settings"]["questions"]:
        continue  # Of before there were parts: must not pass for new.
    made = found["provenance"]
    made["code"] = shared.code_digest(made["benchmark"])
    made["checkpoint"] = shared.checkpoint_digest()
    path.write_text(json.dumps(found))
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """What the tables and the page are made from, as if the results were made by this very code."""
    example = "examples/train_tiny_lclm"
    checkpoint = "lclm_rag/checkpoints/tiny-lclm-4x"
    for folder in ("benchmarks", "docs", "lclm_rag/evaluation", checkpoint, example):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    subprocess.run([sys.executable, "-c", MADE_NOW], cwd=tmp_path / "benchmarks", check=True)
    assert tables(tmp_path).returncode == 0
    return tmp_path


def tables(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "benchmarks" / "tables.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_page_that_does_not_say_so_is_noticed(copied: Path) -> None:
    changed = {
        "build_memory": "benchmarks/build_memory.py",
        "latent_reranking": "lclm_rag/evaluation/intervals.py",
        "passage_order": "lclm_rag/evaluation/datasets/fact_sheets.toml",
        "conversation": "lclm_rag/checkpoints/tiny-lclm-4x/model_config.json",
    }
    for path in changed.values():
        with (copied / path).open("a") as file:
            file.write("\n")
    checked = tables(copied, "--check")
    assert checked.returncode == 1
    assert changed.keys() <= set(re.findall(r"\w+", checked.stderr))
    assert "grounding" not in checked.stderr
    assert tables(copied).returncode == 0
    page = (copied / "docs" / "benchmarks.md").read_text("utf-8")
    for table in changed:
        part = re.search(rf"<!-- table: {table} -->.*?<!-- end -->", page, re.DOTALL)
        assert part
        said = r"[Oo]f commit [0-9a-f]{8} \(\d{4}-\d\d-\d\d\); since then .* changed\."
        assert re.search(said, part[0])
