"""`lclm-rag train`, as a person at a shell sees it: a start, a run that goes on, its status, a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from support.commands import Run

RECIPE = """
start = "bundled"
questions = "questions.jsonl"
evaluate_every = 3
save_every = 2
max_tokens = 12

[[stages]]
name = "adapter"
steps = 3
blocks = 4
rates = {adapter = 1e-5}
[[stages.data]]
objective = "reconstruct"
source = "texts.jsonl"

[[stages]]
name = "all"
steps = 3
blocks = 4
rates = {encoder = 1e-6, adapter = 1e-6, decoder = 1e-6}
[[stages.data]]
objective = "answer"
source = "answers.jsonl"
[[stages.data]]
objective = "copy_random"
weight = 0.5
"""


@pytest.fixture
def recipe(tmp_path: Path, sheets: list[FactSheet]) -> Path:
    """A recipe on fact sheets, with its data beside it."""
    records = [
        {
            "passages": [other.document.text, sheet.document.text],
            "question": sheet.questions[0].question,
            "answer": sheet.questions[0].answer,
        }
        for other, sheet in zip(sheets[:8], sheets[8:16], strict=True)
    ]
    files = {
        "answers.jsonl": records[:6],
        "questions.jsonl": records[6:],
        "texts.jsonl": [{"text": sheet.document.text} for sheet in sheets[16:24]],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_a_run_goes_on_and_becomes_a_checkpoint(run: Run, tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "run"
    code, shown, _ = run("train", "run", recipe, "--out", out, "--device", "cpu", "--stop-at", "4")
    assert code == 0
    assert "step 3: latents 100.0% exact" in shown
    code, shown, _ = run("train", "run", recipe, "--out", out, "--device", "cpu")
    assert code == 0
    assert "step 6: latents 100.0% exact" in shown
    assert "none 0.0% exact" in shown
    code, shown, _ = run("train", "status", out, "--json")
    found = json.loads(shown)
    assert (found["step"], found["steps"], found["stage"], found["skipped"]) == (6, 6, "all", 0)
    assert set(found["objectives"]) == {"reconstruct", "answer", "copy_random"}
    assert [record["step"] for record in found["evaluations"]] == [3, 6]
    assert 0 < found["matrix_share"] < 1
    code, shown, _ = run("train", "status", out, "--plot", tmp_path / "curves.png")
    assert (code, shown.splitlines()[0]) == (0, "6 of 6 steps, in stage all")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    code, _, error = run("train", "status", out, "--plot", tmp_path / "curves.txt")
    assert (code, error.count("\n")) == (1, 1)
    assert "a plot is a .png, .svg or .pdf file" in error
    code, shown, _ = run("train", "evaluate", out, tmp_path / "questions.jsonl", "--json")
    evaluated = json.loads(shown)
    assert (evaluated["step"], evaluated["latents"]["exact"]) == (6, 1.0)
    code, shown, _ = run("train", "export", out, tmp_path / "checkpoint")
    assert (code, "after step 3 of stage 2" in shown) == (0, True)
    code, _, _ = run("build", tmp_path / "texts.jsonl", "--kb", tmp_path / "kb",
                     "--checkpoint", tmp_path / "checkpoint", "--device", "cpu")  # fmt: skip
    assert code == 0


def test_a_dry_run_says_what_it_takes_and_trains_nothing(
    run: Run, tmp_path: Path, recipe: Path
) -> None:
    out = tmp_path / "run"
    code, shown, _ = run("train", "run", recipe, "--out", out, "--dry-run", "--json")
    adapter, everything = json.loads(shown)
    assert (code, out.exists()) == (0, False)
    assert (adapter["name"], adapter["steps"]) == ("adapter", 3)
    assert 0 < adapter["learned_tokens"] < 10_000
    assert adapter["weight_bytes"] < everything["weight_bytes"]
    code, shown, _ = run("train", "run", recipe, "--out", out, "--dry-run")
    assert "H100 SXM" in shown
    stages = [line.split() for line in shown.splitlines() if line[:1] == " "]
    assert [row[0] for row in stages if row][-3:] == ["adapter", "all", "all"]
    assert "<1 s" in shown
    code, _, error = run("train", "run", recipe, "--out", out, "--dry-run", "--gpu", "H1000")
    assert (code, "Unknown GPU 'H1000'" in error) == (2, True)


def test_a_recipe_may_change_but_not_in_what_was_begun(
    run: Run, tmp_path: Path, recipe: Path
) -> None:
    out = tmp_path / "run"
    assert run("train", "run", recipe, "--out", out, "--device", "cpu", "--stop-at", "1")[0] == 0
    recipe.write_text(RECIPE.replace("1e-5", "2e-5"))
    code, _, error = run("train", "run", recipe, "--out", out)
    assert (code, error.count("\n")) == (1, 1)
    assert "is a run of another recipe" in error
    # What is yet to come may be another, from here or from the run's own copy.
    recipe.write_text(RECIPE.replace("1e-6", "2e-6").replace("evaluate_every = 3", "save_every = 1", 1)
                      .replace("save_every = 2\n", ""))  # fmt: skip
    for given, stop in ((recipe, "2"), (out / "recipe.toml", "4")):
        code, _, _ = run("train", "run", given, "--out", out, "--device", "cpu", "--stop-at", stop)
        assert code == 0
    kept = (out / "recipe.toml").read_text()
    assert kept.count("folder = ") == 1
    assert "2e-6" in kept
    recipe.write_text(RECIPE)
    assert run("train", "run", recipe, "--out", out)[0] == 1


def test_a_checkpoint_starts_again_at_another_ratio(
    run: Run, tmp_path: Path, sheets: list[FactSheet]
) -> None:
    code, shown, _ = run("train", "start", "bundled", tmp_path / "8x", "--ratio", "8")
    assert (code, "with a latent for 8 tokens" in shown) == (0, True)
    text = sheets[0].document.text
    (eight,) = Compressor.from_pretrained(tmp_path / "8x", "cpu").compress([text])
    (four,) = Compressor.from_pretrained("bundled", "cpu").compress([text])
    assert len(eight) == -(-len(four) // 2)
    code, _, error = run("train", "start", "bundled", tmp_path / "8", "--ratio", "7")
    assert (code, "divisor of the window of 1024 tokens" in error) == (1, True)
    code, _, error = run("train", "start", "bundled", tmp_path / "8", "--layers", "2")
    assert (code, "only --ratio can be another one, not --layers" in error) == (2, True)
    config = Checkpoint.open(tmp_path / "8x").path / "model_config.json"
    config.write_text(config.read_text().replace('"mean"', '"concat"'))
    assert run("train", "start", tmp_path / "8x", tmp_path / "8", "--ratio", "2")[0] == 1
    assert not (tmp_path / "8").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 3", "stepz = 3", "unknown entry 'stepz'"),
        ('"texts.jsonl"', '"text.jsonl"', "text.jsonl"),
        ('objective = "answer"', 'objective = "answers"', "Unknown objective 'answers'"),
        ('questions = "questions.jsonl"', 'questions = "q.jsonl"', "q.jsonl"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_trained(
    run: Run, tmp_path: Path, recipe: Path, old: str, new: str, message: str
) -> None:
    recipe.write_text(RECIPE.replace(old, new, 1))
    code, _, error = run("train", "run", recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert code in (1, 2)
    assert message in error.splitlines()[-1]
    assert not (tmp_path / "run" / "log.jsonl").exists()
