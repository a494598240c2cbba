"""The command for the day there is a GPU runs to its end, whatever is missing or fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "gpu_day.py"

pytestmark = pytest.mark.slow


def run(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, COMMAND, "--out", out, *options]
    nowhere = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=nowhere)


def outcomes(out: Path) -> dict[str, Any]:
    steps: dict[str, Any] = json.loads(out.read_text())["steps"]
    return {name: step["outcome"] for name, step in steps.items()}


def test_its_steps_run_on_a_cpu_but_for_those_that_need_a_gpu(tmp_path: Path) -> None:
    done = run(tmp_path / "day.json", "--tiny")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "day.json").read_text())
    assert outcomes(tmp_path / "day.json") == {
        **dict.fromkeys(["load", "same_latents", "packing_check"], "done"),
        **dict.fromkeys(["encoder", "build", "first_token"], "done"),
        **dict.fromkeys(["waits", "out_of_memory", "vllm"], "skipped: no CUDA device"),
        "ruler": "skipped: no weights: give --checkpoint",
    }


def test_a_step_that_fails_is_noted_and_the_next_one_begins(tmp_path: Path) -> None:
    options = ["--tiny", "--checkpoint", "./nowhere", "--step", "load", "--step", "packing_check"]
    done = run(tmp_path / "day.json", *options)
    assert done.returncode == 0, done.stderr
    found = outcomes(tmp_path / "day.json")
    assert found["load"].startswith("failed: There is no checkpoint folder './nowhere'")
    assert found["packing_check"] == "done"


def test_what_the_time_does_not_suffice_for_is_said(tmp_path: Path) -> None:
    done = run(tmp_path / "day.json", "--tiny", "--minutes", "0", "--step", "load")
    assert done.returncode == 0, done.stderr
    assert outcomes(tmp_path / "day.json")["load"].startswith("skipped: ")
    done = run(tmp_path / "day.json")
    assert done.returncode == 1
    assert "There is no CUDA device here; --tiny tries the steps out." in done.stderr
