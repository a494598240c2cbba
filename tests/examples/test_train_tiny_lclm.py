"""The bundled checkpoint's recipe: its data say what the library will ask, and one command trains it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase, Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting import PromptTemplate
from lclm_rag.training.examples import Questions, example_of
from lclm_rag.training.objectives import answer, expand
from lclm_rag.training.recipe import read_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_tiny_lclm"
BUNDLED_FILES = ("model_config.json", "encoder/config.json", "decoder/config.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    program = [sys.executable, str(EXAMPLE / "data.py"), "--work", str(folder), "--records", "20"]
    subprocess.run(program, check=True)
    return folder


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_answers_stand_in_the_passages_and_strings_in_those_that_are_named(data: Path) -> None:
    for count in (1, 2, 4, 8):
        for name in ("sheets", "strings"):
            made = records(data / f"{name}-{count}.jsonl")
            assert len(made) == 20
            for record in made:
                assert len(record["passages"]) == count
                assert record["questions"]
                for ask in record["questions"]:
                    found = ask["answer"].strip()
                    assert any(found in passage for passage in record["passages"]), ask
                    if "number" in ask:
                        assert found in record["passages"][ask["number"] - 1]
    named = [
        ask for r in records(data / "strings-8.jsonl") for ask in r["questions"] if "number" in ask
    ]
    assert named


def test_held_out_names_are_not_trained_on(data: Path) -> None:
    trained = {
        passage
        for path in data.glob("s*-?.jsonl")
        for r in records(path)
        for passage in r["passages"]
    }
    asked = records(data / "questions.jsonl")
    assert len(asked) == 100
    for record in asked:
        assert not trained & set(record["passages"])
        assert record["answers"][0] in " ".join(record["passages"])


def test_its_prompts_are_those_of_a_knowledge_base(
    data: Path, checkpoint: Checkpoint, template: PromptTemplate
) -> None:
    """Several questions, several passages: the tokens that the library has for each question alone."""
    record = next(r for r in records(data / "strings-2.jsonl") if len(r["questions"]) > 1)
    example = example_of(record)
    assert isinstance(example, Questions)
    for block in (answer(checkpoint, template, example), expand(checkpoint, template, example)):
        assert len(block.tails) == len(example.asks)
        assert len(block.memories) == 2


@pytest.mark.slow
def test_one_command_trains_a_checkpoint_of_the_bundled_shape(
    data: Path, checkpoint: Checkpoint
) -> None:
    """A step of each stage; then a knowledge base is built with what came of it."""
    asked = (data / "questions.jsonl").read_text("utf-8").splitlines(keepends=True)
    (data / "questions.jsonl").write_text("".join(asked[:2]), "utf-8")
    program = [sys.executable, str(EXAMPLE / "train.py"), "--work", str(data), "--steps", "1"]
    subprocess.run(program, check=True)
    made = data / "latents"
    for name in BUNDLED_FILES:
        ours, theirs = (
            json.loads((folder / name).read_text()) for folder in (made, checkpoint.path)
        )
        for setting in theirs.keys() & ours.keys() - {"transformers_version", "dtype"}:
            assert ours[setting] == theirs[setting], (name, setting)
    stages = [line["stage"] for line in records(data / "latents-run" / "log.jsonl")]
    assert stages == [stage.name for stage in read_recipe(data / "latents.toml").stages]
    with KnowledgeBase.create(data / "kb", str(made)) as kb:
        kb.add([Document("a", "Ada Lovelace has the badge BX-17.")])
        assert kb.query("Which badge?", 1, sampling=Sampling(max_tokens=4)).sources
    # What is done is not done again.
    again = subprocess.run(program, check=True, capture_output=True, text=True)
    assert "lclm-rag train" not in again.stdout
