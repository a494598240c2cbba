"""What a build holds in memory does not grow with the corpus."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BUILD = """
import resource, sys
from lclm_rag.cli.main import _run
for corpus in sys.argv[1:]:
    columns = ["--metadata-columns", "lang"]
    assert _run(["build", corpus, "--kb", corpus + ".kb", "--device", "cpu", *columns]) == 0
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss counts in other units")
def test_a_large_corpus_takes_hardly_more_memory_than_a_small_one(tmp_path: Path) -> None:
    corpora = []
    for name, filling in (("small", 1_000), ("large", 100_000)):
        with (tmp_path / f"{name}.jsonl").open("w") as lines:
            for i in range(1_500):
                record = {"id": f"d{i}", "text": f"Text {i} of some words. " * 3, "lang": "en"}
                lines.write(json.dumps(record | {"html": "x" * filling}) + "\n")
        corpora.append(str(tmp_path / f"{name}.jsonl"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *corpora], capture_output=True, text=True, check=True
    )
    peaks = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak")]
    assert Path(corpora[1]).stat().st_size > 150_000_000
    assert peaks[1] - peaks[0] < 60_000_000
