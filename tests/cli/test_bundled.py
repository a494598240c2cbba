"""What the bundled checkpoint cannot read is said, in place of the noise that it answers."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest

from lclm_rag.cli.bundled import NOISE, _is_sheet
from lclm_rag.evaluation.datasets.exact_strings import with_exact_strings
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from support.commands import Run

ROOT = Path(__file__).parents[2]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / "guides").glob("*.md")]


@pytest.fixture
def notes(tmp_path: Path, run: Run) -> Path:
    """A knowledge base of a README and of the fact sheet in the quickstart."""
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "README.md").write_text(
        "# Zebra\n\nZebra sorts mail. Install it with `pip install zebra`, then run `zebra init`. It keeps "
        "its rules in a file, which costs nothing to share.\n"
    )
    (folder / "velun.txt").write_text("Town guide: Velun. The mayor of Velun is Gedul Gizel.")
    code, _, err = run("build", folder, "--kb", tmp_path / "kb")
    assert code == 0, err
    assert "tiny-lclm-4x, which answers from made-up fact sheets only." in err
    return tmp_path / "kb"


def test_an_answer_from_other_texts_is_not_shown_and_one_line_says_why(
    run: Run, notes: Path
) -> None:
    asked = ("query", "--kb", notes, "How is zebra installed?", "--max-tokens", "8")
    code, out, err = run(*asked)
    assert (code, err.splitlines()) == (0, [NOISE])
    assert out.startswith("(no answer)\n\n")
    assert "README.md#0" in out
    assert out.endswith("\n  checkpoint: bundled\n")
    code, out, err = run(*asked, "--json")
    assert (code, err.splitlines()) == (0, [NOISE])
    assert json.loads(out)["sources"][0]["document_id"] == "README.md"


def test_an_answer_from_a_fact_sheet_is_shown(
    run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "Who is the mayor of Velun?"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{asked}\n".encode())))
    for question in (asked, "-"):
        code, out, err = run("query", "--kb", notes, question)
        assert (code, err) == (0, "")
        assert out.startswith("Gedul Gizel\n")


def test_a_chat_says_it_once(run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "Who is the mayor of Velun?\nHow is zebra installed?\nWhat sorts mail?\n\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(asked.encode())))
    code, out, err = run("chat", "--kb", notes, "--max-tokens", "8", "--no-history")
    assert (code, err.count(NOISE)) == (0, 1)
    assert out.startswith("Gedul Gizel\n")


def test_every_fact_sheet_is_known_and_no_page_of_prose(sheets: list[FactSheet]) -> None:
    rng = random.Random(3)
    for sheet in sheets:
        assert _is_sheet(sheet.document.text)
        assert _is_sheet(with_exact_strings(sheet, rng).document.text)
    for page in PROSE:
        text = page.read_text("utf-8")
        for start in range(0, len(text), 1500):
            assert not _is_sheet(text[start : start + 1500]), text[start : start + 1500]
    assert not _is_sheet("")
