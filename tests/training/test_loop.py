"""The training loop: it goes on where it was killed, shares its work, and leaves out what is not finite."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.prompting import PromptTemplate
from lclm_rag.training.loop import compute_dtype, train
from lclm_rag.training.model import TrainedLCLM
from lclm_rag.training.recipe import Recipe, Stage, read_recipe
from support import training_run
from support.checkpoints import MakeCheckpoint
from support.training_run import RECIPE, copying, run

CPU = torch.device("cpu")


def weights(model: TrainedLCLM) -> dict[str, torch.Tensor]:
    """All that is in use: once the decoder is trained, the memory tokens are rows of its table."""
    in_use = {"memory_rows"} & model.touched
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name != "memory_rows" or in_use
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def figures(line: dict[str, Any]) -> dict[str, Any]:
    """Of a line of the log, what does not depend on the clock."""
    clocked = ("seconds", "tokens_per_second", "matrix_share")
    return {k: v for k, v in line.items() if k not in clocked}


@pytest.mark.parametrize("muon", [{}, {"encoder": 0.02, "decoder": 0.01}])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, muon: dict[str, float]
) -> None:
    """Bit for bit, across the end of a stage, with AdamW and with Muon."""
    start = make_checkpoint()
    recipe = replace(RECIPE, stages=(RECIPE.stages[0], replace(RECIPE.stages[1], muon=muon)))
    whole, progress = run(start, tmp_path / "whole", recipe)
    assert (progress.stage, progress.step, progress.skipped) == (1, 5, 0)
    for stop in (1, 3, 4, 8):
        parted, progress = run(start, tmp_path / "parted", recipe, stop_at=stop)
    assert (progress.stage, progress.step) == (1, 5)
    for name, expected in weights(whole).items():
        assert torch.equal(weights(parted)[name], expected), name
    logs = [lines(tmp_path / name) for name in ("whole", "parted")]
    assert [figures(line) for line in logs[0]] == [figures(line) for line in logs[1]]
    assert [line["step"] for line in logs[0]] == list(range(1, 9))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_its_last_state(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    start, folder = make_checkpoint(), tmp_path / "killed"
    program = [sys.executable, training_run.__file__, start, folder, "8", "0.5"]
    process = subprocess.Popen(program, env=_environment())
    for _ in range(600):
        if (folder / "log.jsonl").is_file() and len(lines(folder)) >= 5:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (state,) = folder.glob("state-*")
    assert int(state.name.removeprefix("state-")) in (3, 4)
    resumed, _ = run(start, folder)
    whole, _ = run(start, tmp_path / "whole")
    for name, expected in weights(whole).items():
        assert torch.equal(weights(resumed)[name], expected), name
    assert [line["step"] for line in lines(folder)] == list(range(1, 9))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(training_run.__file__).parents[1])}


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    start, folder = make_checkpoint(), tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = [training_run.__file__, start, folder, "8"]
    subprocess.run([*launch, *program], env=_environment(), check=True)
    run(start, tmp_path / "one")
    for one, two in zip(lines(tmp_path / "one"), lines(folder), strict=True):
        assert one["source_tokens"] == two["source_tokens"]
        for name, expected in one["objectives"].items():
            assert two["objectives"][name]["tokens"] == expected["tokens"]
            assert two["objectives"][name]["loss"] == pytest.approx(expected["loss"], abs=2e-3)
        assert two["norm"] == pytest.approx(one["norm"], rel=1e-2)


def test_a_step_that_is_not_finite_is_left_out(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Checkpoint.open(make_checkpoint())
    model = TrainedLCLM(opened, CPU, torch.float32)
    draw = copying(PromptTemplate.of(opened), 4)
    stage = replace(RECIPE.stages[1], steps=3)
    recipe = Recipe("", (stage,))
    seen = [weights(model)]
    plain = model.latents

    def latents(row: Any) -> torch.Tensor:
        found = plain(row)
        return found * float("nan") if len(seen) == 2 else found

    monkeypatch.setattr(model, "latents", latents)
    progress = train(model, recipe, draw, tmp_path, on_step=lambda *_: seen.append(weights(model)))
    assert progress.skipped == 1
    moved = [
        any(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(seen)
    ]
    assert moved == [True, False, True]
    assert [line["norm"] is None for line in lines(tmp_path)] == [False, True, False]
    assert all(value.isfinite().all() for value in seen[-1].values())


def test_encoder_and_adapter_stand_still_in_steps_without_latents(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    opened = Checkpoint.open(make_checkpoint())
    model = TrainedLCLM(opened, CPU, torch.float32)
    draw = copying(PromptTemplate.of(opened), 4, plain_steps=[1])
    seen = [weights(model)]
    stage = replace(RECIPE.stages[1], steps=3)
    train(
        model,
        Recipe("", (stage,)),
        draw,
        tmp_path,
        on_step=lambda *_: seen.append(weights(model)),
    )
    for before, after, compressed in zip(seen, seen[1:], (True, False, True), strict=False):
        for part in ("encoder.", "adapter."):
            moved = [not torch.equal(before[n], after[n]) for n in before if n.startswith(part)]
            assert any(moved) == compressed
        assert not torch.equal(
            before["decoder.model.norm.weight"], after["decoder.model.norm.weight"]
        )


def test_only_what_a_stage_trains_moves(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    start = make_checkpoint()
    before = weights(TrainedLCLM(Checkpoint.open(start), CPU, torch.float32))
    model, _ = run(start, tmp_path, Recipe("", RECIPE.stages[:1]))
    changed = {
        name
        for name, value in weights(model).items()
        if name not in before or not torch.equal(value, before[name])
    }
    assert {n for n in changed if not n.startswith("adapter.")} == {"memory_rows"}
    # They are written where the library reads them.
    table = "decoder.model.embed_tokens.weight"
    model.save(start, torch.float32)
    written = weights(TrainedLCLM(Checkpoint.open(start), CPU, torch.float32))[table]
    rows = (written != before[table]).any(1).nonzero()[:, 0].tolist()
    template = PromptTemplate.of(model.checkpoint)
    assert sorted(rows) == sorted(
        template.special_id(token) for token in ("<|memory_start|>", "<|memory_end|>")
    )
    assert torch.equal(written[rows[0]], model.memory_rows[0]) or torch.equal(
        written[rows[0]], model.memory_rows[1]
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_weights_learn_and_are_written_merged(
    tmp_path: Path, make_checkpoint: MakeCheckpoint, checkpointing: bool
) -> None:
    start = make_checkpoint()
    rates = {"encoder": 1e-3, "adapter": 1e-3, "decoder": 1e-2}
    stage = Stage(
        "lora",
        rates,
        steps=4,
        blocks=4,
        warmup=1,
        lora={"decoder": 4},
        checkpointing=checkpointing,
    )
    model, _ = run(start, tmp_path / "a", Recipe("", (stage,)))
    parted, _ = run(start, tmp_path / "b", Recipe("", (stage,)), stop_at=2)
    parted, _ = run(start, tmp_path / "b", Recipe("", (stage,)))
    for name, expected in weights(model).items():
        assert torch.equal(weights(parted)[name], expected), name
    assert any(bool(p.abs().max() > 0) for n, p in model.named_parameters() if "lora_B" in n)
    model.save(start, torch.float32)
    written = TrainedLCLM(Checkpoint.open(start), CPU, torch.float32)
    draw = copying(PromptTemplate.of(model.checkpoint), 4)
    from lclm_rag.training.packing import pack

    batch = pack(draw(stage, 9, 0, 1), model.checkpoint.config, model.placeholder)
    with torch.no_grad():
        torch.testing.assert_close(written(batch).tokens, model(batch).tokens)
    assert Compressor.from_pretrained(start, device="cpu").compress(["Some words."])


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts", [("adapter",), ("encoder", "adapter"), ("encoder", "adapter", "decoder")]
)
def test_a_few_hundred_steps_bend_the_curve(
    tmp_path: Path, checkpoint: Checkpoint, parts: tuple[str, ...]
) -> None:
    """From the bundled checkpoint: random tokens of its vocabulary are copied better and better."""
    rates = dict.fromkeys(parts, 1e-3)
    stage = Stage("copy", rates, steps=300, blocks=8, warmup=20)
    run(checkpoint.path, tmp_path, Recipe("", (stage,), save_every=1_000))
    losses = [line["objectives"]["copy"]["loss"] for line in lines(tmp_path)]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


# --- recipes ----------------------------------------------------------------------------------------

RECIPE_FILE = """
start = "checkpoint/"
seed = 3

[[stages]]
name = "adapter"
steps = 100
blocks = 64
[stages.rates]
adapter = 1e-3

[[stages]]
name = "sft"
steps = 200
blocks = 64
[stages.rates]
encoder = 6e-5
adapter = 6e-5
decoder = 3e-5
[stages.lora]
decoder = 64
[[stages.data]]
path = "answers.jsonl"
objective = "answer"
"""


def test_a_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE_FILE)
    recipe = read_recipe(path)
    assert (recipe.start, recipe.seed) == ("checkpoint/", 3)
    adapter, sft = recipe.stages
    assert (adapter.rates, sft.lora) == ({"adapter": 1e-3}, {"decoder": 64})
    assert sft.data == ({"path": "answers.jsonl", "objective": "answer"},)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 100", "step = 100", "unknown entry 'step'"),
        ("steps = 100", "", "steps"),
        ("adapter = 1e-3", "adaptor = 1e-3", "rates names 'adaptor'"),
        ("blocks = 64", "blocks = 0", "blocks must be at least 1"),
        ("[stages.lora]\ndecoder", "[stages.lora]\nhead", "lora names 'head'"),
        ("[stages.lora]\ndecoder = 64", "[stages.muon]\nhead = 0.1", "muon names 'head'"),
        ("start =", "start", "cannot be read"),
    ],
)
def test_a_recipe_that_is_wrong_says_what_and_where(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE_FILE.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"recipe.toml") as refusal:
        read_recipe(path)
    assert message in str(refusal.value)


def test_the_rate_rises_and_falls() -> None:
    stage = Stage("x", {"adapter": 1.0}, steps=100, blocks=1, warmup=10, last_rate=0.1)
    rates = [stage.rate(step) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "dtype"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ],
)
def test_the_dtype_is_one_that_the_processor_is_fast_in(
    avx512_bf16: bool, amx: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert compute_dtype(CPU) is dtype
    assert compute_dtype(torch.device("cuda")) is torch.bfloat16
