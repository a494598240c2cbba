"""The training loop: the same steps on one process or many, and after kill -9 from the last saved state.

A step's blocks depend on its number alone, and nothing else is random, so a run that was killed and went on
ends with the weights of one that was not.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce

from lclm_rag.errors import CheckpointError
from lclm_rag.estimate.matrix_rate import matrix_product_rate
from lclm_rag.training.blocks import Block
from lclm_rag.training.flops import Shapes, training_flops
from lclm_rag.training.model import TrainedLCLM
from lclm_rag.training.packing import group_by_budget, pack
from lclm_rag.training.recipe import Recipe, Stage

__all__ = [
    "Draw",
    "Progress",
    "append_line",
    "compute_dtype",
    "load_newest",
    "stages_begun",
    "train",
]

Draw = Callable[[Stage, int, int, int], Sequence[Block]]
"""Stage, step in the stage, rank, number of processes → the blocks of that step for that process."""

_STATE = "state-"


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        stage: The number of the stage, from 0.
        step: Steps done in the stage.
        source_tokens: Encoder tokens that were compressed, in all stages.
        learned_tokens: Tokens that were learned.
        skipped: Steps that were left out because their gradient was not finite.
        seconds: How long the steps took.
    """

    stage: int = 0
    step: int = 0
    source_tokens: int = 0
    learned_tokens: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass
class _Sums:
    """What is summed up over a step, by objective: loss, right tokens, learned tokens."""

    by_objective: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, loss: float, right: float, tokens: float) -> None:
        of = self.by_objective.setdefault(name, [0.0, 0.0, 0.0])
        for index, value in enumerate((loss, right, tokens)):
            of[index] += value

    def figures(self) -> dict[str, dict[str, float]]:
        """Loss and share of right tokens of each objective, over all processes."""
        total = _Sums()
        for part in gather_object([self.by_objective]):
            for name, (loss, right, tokens) in part.items():
                total.add(name, loss, right, tokens)
        return {
            name: {"loss": round(loss / n, 5), "right": round(right / n, 5), "tokens": int(n)}
            for name, (loss, right, n) in sorted(total.by_objective.items())
        }


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype to compute in: bfloat16 where the processor multiplies it fast, else float32.

    Processors with AVX2 alone multiply bfloat16 ten times slower than float32.

    Args:
        device: Where to compute.

    Returns:
        torch.bfloat16 or torch.float32.
    """
    if device.type == "cuda":
        return torch.bfloat16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def train(
    model: TrainedLCLM,
    recipe: Recipe,
    draw: Draw,
    folder: Path,
    *,
    stop_at: int | None = None,
    on_step: Callable[[Progress, dict[str, Any]], None] = lambda progress, record: None,
) -> Progress:
    """Train a model by a recipe, from the last state in a folder.

    Args:
        model: The model, as the recipe starts it.
        recipe: The recipe.
        draw: Gives the blocks of each step.
        folder: Where states and the log (`log.jsonl`, a line for each step) are kept; `matrix_share` is what
            a step computes in a second, as a share of what a large matrix product does.
        stop_at: End after so many steps in all, with a saved state; None trains to the end of the recipe.
        on_step: Called after each step with the progress and the step's line of the log.

    Returns:
        How far it is.
    """
    processes = PartialState(cpu=model.device.type == "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    saved = _newest(folder)
    progress = Progress() if saved is None else _read_progress(saved)
    done = recipe.steps_before(progress.stage) + progress.step
    matrix_rate = matrix_product_rate(model.device, model.compute_dtype, tries=3)
    for index, stage in enumerate(recipe.stages):
        # Stages that are done are prepared, too: LoRA weights that they added are there.
        _set_trained(model, stage)
        if index < progress.stage:
            continue
        optimizers = _optimizers(model, stage)
        if saved is not None:
            _load(saved, model, optimizers if progress.step else ())
            saved = None
        if index > progress.stage:
            progress = _with(progress, stage=index, step=0)
        with ExitStack() as context:
            if stage.checkpointing:
                context.enter_context(model.gradient_checkpointing())
            while progress.step < stage.steps and (stop_at is None or done < stop_at):
                progress, record = _step(
                    model, stage, optimizers, draw, progress, processes, matrix_rate
                )
                done += 1
                if processes.is_main_process:
                    append_line(folder / "log.jsonl", {"step": done, "stage": stage.name, **record})
                on_step(progress, record)
                last = progress.step == stage.steps or done == stop_at
                if done % recipe.save_every == 0 or last:
                    _save(folder, done, model, optimizers, progress, processes)
        if stop_at is not None and done >= stop_at:
            break
    return progress


def stages_begun(folder: Path) -> int:
    """Count the stages of which a training has a state.

    Args:
        folder: The folder of its states.

    Returns:
        The number of stages, the one that the last state is in included; 0 if there is no state.
    """
    saved = _newest(folder)
    return 0 if saved is None else _read_progress(saved).stage + 1


def load_newest(folder: Path, model: TrainedLCLM, recipe: Recipe) -> Progress:
    """Load the last state of a training.

    Args:
        folder: The folder of its states.
        model: The model, as the recipe starts it; it gets the weights of the state.
        recipe: The recipe.

    Returns:
        How far the training is.

    Raises:
        CheckpointError: When there is no state.
    """
    saved = _newest(folder)
    if saved is None:
        raise CheckpointError(f"{folder} has no state of a training.")
    progress = _read_progress(saved)
    for stage in recipe.stages[: progress.stage + 1]:
        _set_trained(model, stage)
    _load(saved, model, ())
    return progress


def _step(
    model: TrainedLCLM,
    stage: Stage,
    optimizers: Sequence[torch.optim.Optimizer],
    draw: Draw,
    progress: Progress,
    processes: PartialState,
    matrix_rate: float,
) -> tuple[Progress, dict[str, Any]]:
    started = time.perf_counter()
    blocks = draw(stage, progress.step, processes.process_index, processes.num_processes)
    counts = torch.tensor(
        [
            sum(sum(block.learned) for block in blocks),
            sum(len(memory) for block in blocks for memory in block.memories),
            training_flops(Shapes.of(model.checkpoint), stage, blocks),
        ],
        device=model.device,
        dtype=torch.int64,
    )
    learned, compressed, flops = reduce(counts, "sum").tolist()
    share = stage.rate(progress.step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * share
    sums = _Sums()
    for group_of_blocks in group_by_budget(blocks, stage.positions):
        batch = pack(group_of_blocks, model.checkpoint.config, model.placeholder, model.marker_id)
        half = model.compute_dtype != torch.float32
        with torch.autocast(model.device.type, model.compute_dtype, enabled=half):
            losses = model(batch)
        # So that the sum over batches and processes is the mean over all tokens of the step.
        (losses.tokens.sum() / learned).backward()
        for number, name in enumerate(batch.names):
            mine = (batch.objectives == number).to(model.device)
            values = losses.tokens.detach()[mine]
            sums.add(name, float(values.sum()), float(losses.right[mine].sum()), len(values))
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Without latents anywhere, encoder and adapter have no gradient, and their optimizer does not move.
    idle = set() if compressed else {id(p) for p in model.compressing_parameters()}
    _reduce_gradients([p for p in parameters if id(p) not in idle], processes)
    norm = torch.nn.utils.clip_grad_norm_(parameters, stage.clip)
    # The norm is the same on all processes, so all of them leave the step out or none.
    finite = bool(norm.isfinite())
    for optimizer in optimizers:
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    record = {
        "objectives": sums.figures(),
        "rate": round(share, 6),
        "norm": round(float(norm), 5) if finite else None,
        "source_tokens": compressed,
        "tokens_per_second": round((learned + compressed) / seconds, 1),
        "matrix_share": round(flops / seconds / matrix_rate / processes.num_processes, 4),
        "seconds": round(seconds, 3),
    }
    return (
        Progress(
            stage=progress.stage,
            step=progress.step + 1,
            source_tokens=progress.source_tokens + compressed,
            learned_tokens=progress.learned_tokens + learned,
            skipped=progress.skipped + (not finite),
            seconds=progress.seconds + seconds,
        ),
        record,
    )


def _reduce_gradients(parameters: Iterable[torch.nn.Parameter], processes: PartialState) -> None:
    """Sum the gradients over all processes. One that has none here may have one elsewhere."""
    if processes.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)


def _set_trained(model: TrainedLCLM, stage: Stage) -> None:
    parts: Any = tuple(stage.rates)
    lora: Any = stage.lora
    model.train_only(parts, lora, embeddings=stage.embeddings)


def _optimizers(model: TrainedLCLM, stage: Stage) -> list[torch.optim.Optimizer]:
    """AdamW with a group for each part and for the matrices of its layers, or Muon for these."""
    by_adam: list[dict[str, Any]] = []
    by_muon: list[dict[str, Any]] = []
    for part, rate in stage.rates.items():
        module = getattr(model, part)
        tables = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in tables]
        of_matrices = {id(p) for p in matrices}
        others = [p for p in trained if id(p) not in of_matrices]
        decay = stage.weight_decay
        if part in stage.muon:
            by_muon.append({"params": matrices, "highest": stage.muon[part], "weight_decay": decay})
        else:
            by_adam.append({"params": matrices, "highest": rate, "weight_decay": decay})
        by_adam.append({"params": others, "highest": rate, "weight_decay": 0.0})
    if model.memory_rows.requires_grad:
        rows = {"params": [model.memory_rows], "highest": stage.memory_rate, "weight_decay": 0.0}
        by_adam.append(rows)
    adam, muon = ([g for g in groups if g["params"]] for groups in (by_adam, by_muon))
    optimizers: list[torch.optim.Optimizer] = []
    if adam:
        optimizers.append(torch.optim.AdamW(adam, lr=1.0, betas=(0.9, 0.95)))
    if muon:
        optimizers.append(torch.optim.Muon(muon, lr=1.0))
    return optimizers


# --- states -----------------------------------------------------------------------------------------


def _newest(folder: Path) -> Path | None:
    return max(folder.glob(f"{_STATE}*"), default=None)


def _read_progress(state: Path) -> Progress:
    return Progress(**json.loads((state / "progress.json").read_text()))


def _with(progress: Progress, **changes: Any) -> Progress:
    return Progress(**{**asdict(progress), **changes})


def _trained(model: TrainedLCLM) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if name in model.touched)


def _save(
    folder: Path,
    done: int,
    model: TrainedLCLM,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
    processes: PartialState,
) -> None:
    """Put a state in place by renaming a folder, and only then remove the one before it."""
    from safetensors.torch import save_file

    if not processes.is_main_process:
        return
    target, temporary = folder / f"{_STATE}{done:09d}", folder / "state.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    weights = {name: p.detach().contiguous() for name, p in _trained(model)}
    save_file(weights, temporary / "weights.safetensors")
    names = {id(p): name for name, p in model.named_parameters()}
    moments = {
        f"{names[id(p)]}/{key}": torch.as_tensor(value).contiguous()
        for optimizer in optimizers
        for p, values in optimizer.state.items()
        for key, value in values.items()
    }
    save_file(moments, temporary / "optimizer.safetensors")
    (temporary / "progress.json").write_text(json.dumps(asdict(progress)))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for older in folder.glob(f"{_STATE}*"):
        if older != target:
            shutil.rmtree(older)


def _load(state: Path, model: TrainedLCLM, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load the weights, and what optimizers keep; without these, the weights alone."""
    from safetensors.torch import load_file

    parameters = dict(model.named_parameters())
    for name, value in load_file(state / "weights.safetensors").items():
        with torch.no_grad():
            parameters[name].copy_(value)
        model.touched.add(name)
    if not optimizers:
        return
    owner = {
        id(p): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for key, value in load_file(state / "optimizer.safetensors").items():
        name, _, kind = key.rpartition("/")
        parameter = parameters[name]
        there = value if kind == "step" else value.to(parameter.device)
        owner[id(parameter)].state[parameter][kind] = there


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a step's line to a log; lines of later steps, which a killed run had not saved, are replaced.

    Args:
        path: The log, of JSON lines.
        record: The line, with `step`.
    """
    if path.is_file() and _last_step(path) >= record["step"]:
        lines = path.read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["step"] < record["step"]]
        path.write_text("".join(f"{line}\n" for line in kept))
    with path.open("a") as log:
        log.write(json.dumps(record) + "\n")


def _last_step(path: Path) -> int:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 8192))
        lines = [line for line in log.read().splitlines() if line.endswith(b"}")]
    return int(json.loads(lines[-1])["step"]) if lines else 0
