"""The notebooks run, and print what is committed with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def printed(notebook: Any) -> list[str]:
    """What each cell printed."""
    return [
        "".join(part["text"] for part in cell.get("outputs", ()) if part.get("name") == "stdout")
        for cell in notebook.cells
    ]


def test_there_is_one_for_each_framework_without_a_trace_of_the_machine() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["haystack", "langchain", "llama_index"]
    for path in NOTEBOOKS:
        assert not re.findall(r"/(?:home|root|tmp|work|Users)\b", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_committed_with_it(path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    run = nbformat.read(path, as_version=4)
    NotebookClient(run, timeout=600, kernel_name="python3").execute()
    assert any(printed(committed))
    assert printed(run) == printed(committed)
