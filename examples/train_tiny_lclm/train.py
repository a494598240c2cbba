"""Train the bundled checkpoint, in the paper's order: the decoder on pasted text, then all on latents.

    python examples/train_tiny_lclm/train.py --work runs/tiny --out checkpoint/

Stage A trains the decoder alone on pasted text: first to copy random tokens, then questions and
"Repeat passage 2."; the context grows 1 → 2 → 4 documents, each time that 90% of the answers' tokens
are right. Stage B starts the encoder from the decoder's first layers and trains all three parts on
latents, every fourth step still on pasted text, with the same growth, to 8 documents.

Interrupt it at will: it goes on from the last saved step (every 100 steps), with the same data, since a
step's batch depends on the step's number alone.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from data import Task, make_batch
from model import COMPRESSION_RATIO, TinyLCLM
from safetensors.torch import load_file, save_file
from tokenizer import train_tokenizer
from tokenizers import Tokenizer

from lclm_rag.prompting import PromptTemplate, load_frame

LEVELS = (0, 1, 2, 4, 8)
"""Documents in a context; level 0 is copying of random tokens alone."""
CONTEXTS = {1: 12, 2: 8, 4: 6, 8: 3}
QUESTIONS = 12
SAVE_EVERY = 100


@dataclass
class Progress:
    """Where training stands; `step` counts over both stages."""

    step: int = 0
    stage: str = "A"
    stage_start: int = 0
    level: int = 0
    level_start: int = 0
    token_accuracy: float = 0.0
    exact: float = 0.0
    seconds: float = 0.0


def make_template() -> tuple[PromptTemplate, object]:
    tokenizer = train_tokenizer()
    as_json = tokenizer.backend_tokenizer.to_str()
    inert = Tokenizer.from_str(as_json)
    inert.encode_special_tokens = True
    frame = load_frame("numbered")
    template = PromptTemplate(
        markup=Tokenizer.from_str(as_json),
        inert=inert,
        opening="<|im_start|>user\n",
        closing="<|im_end|>\n<|im_start|>assistant\n",
        frame=frame,
        instruction=frame.instruction,
    )
    return template, tokenizer


def make_optimizers(model: TinyLCLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings, norms and biases."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def save_state(folder: Path, model: TinyLCLM, optimizers: list, progress: Progress) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if "lm_head" not in k}
    for i, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"optimizer.{i}.{index}.{key}"] = torch.as_tensor(value)
    meta = {"progress": json.dumps(asdict(progress))}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "state.tmp", meta)
    (folder / "state.tmp").replace(folder / "state.safetensors")


def load_state(folder: Path, model: TinyLCLM, optimizers: list) -> Progress:
    path = folder / "state.safetensors"
    if not path.exists():
        return Progress()
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        progress = Progress(**json.loads(f.metadata()["progress"]))
    tensors = load_file(path)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(weights, strict=False)
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return progress


def rate(progress: Progress, steps_b: int) -> float:
    """A short warm-up in each stage; in stage B a linear fall over the last 37%."""
    done = progress.step - progress.stage_start
    warm = min(1.0, (done + 1) / 50)
    if progress.stage == "A":
        return warm
    return warm * min(1.0, max(0.02, (1 - done / steps_b) / 0.37))


def train(
    work: Path, out: Path, steps_b: int, max_level_a: int, stop_at: int | None = None
) -> None:
    """Train until stage B has had `steps_b` steps; `stop_at`: save and end before that step."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    template, tokenizer = make_template()
    model = TinyLCLM(tokenizer)
    optimizers = make_optimizers(model)
    base_rates = [o.param_groups[0]["lr"] for o in optimizers]
    progress = load_state(work, model, optimizers)
    log = (work / "log.jsonl").open("a")
    while not (progress.stage == "B" and progress.step - progress.stage_start >= steps_b):
        started = time.monotonic()
        rng = random.Random(progress.step)
        at_level = rng.random() < 0.7
        level = progress.level if at_level else rng.randint(0, progress.level)
        documents = max(1, LEVELS[level])
        latents = progress.stage == "B" and (progress.level == 0 or rng.random() < 0.75)
        task = draw_task(rng, progress)
        batch = make_batch(
            template,
            COMPRESSION_RATIO,
            seed=progress.step,
            contexts=32 if task == "copy" else CONTEXTS[documents],
            documents=documents,
            questions=QUESTIONS,
            latents=latents,
            task=task,
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, right, whole = model.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, base in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate(progress, steps_b)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        accuracy, exact = right.float().mean().item(), whole.float().mean().item()
        counts = at_level and task == counted_task(progress) and latents == (progress.stage == "B")
        if counts:
            progress.token_accuracy += 0.05 * (accuracy - progress.token_accuracy)
            progress.exact += 0.05 * (exact - progress.exact)
        progress.step += 1
        progress.seconds += time.monotonic() - started
        record = {
            "step": progress.step, "stage": progress.stage, "documents": documents,
            "latents": latents, "task": task, "loss": round(loss.item(), 4),
            "tokens": round(accuracy, 4), "exact": round(exact, 4),
            "seconds": round(progress.seconds, 1),
        }  # fmt: skip
        log.write(json.dumps(record) + "\n")
        if progress.step % 20 == 0:
            log.flush()
            print(
                f"{progress.step:6d} {progress.stage} documents<={LEVELS[progress.level]} "
                f"tokens {progress.token_accuracy:.3f} exact {progress.exact:.3f} "
                f"loss {loss.item():.3f} {progress.seconds / 60:.1f} min",
                flush=True,
            )
        _advance(progress, model, max_level_a)
        if progress.step % SAVE_EVERY == 0 or progress.step == stop_at:
            save_state(work, model, optimizers, progress)
        if progress.step == stop_at:
            return
    save_state(work, model, optimizers, progress)
    model.save_checkpoint(tokenizer, out)
    print(f"checkpoint written to {out}")


def counted_task(progress: Progress) -> Task:
    """What the present level is about."""
    return "copy" if LEVELS[progress.level] == 0 else "questions"


def draw_task(rng: random.Random, progress: Progress) -> Task:
    if LEVELS[progress.level] == 0:
        return "copy"
    return rng.choices(("questions", "repeat", "copy"), (0.8, 0.1, 0.1))[0]


def _advance(progress: Progress, model: TinyLCLM, max_level_a: int) -> None:
    """More documents, or the next stage, once the present level is mastered."""
    # Random tokens copied from latents level off just above 88%, at the full learning rate.
    needed = 0.88 if progress.stage == "B" and LEVELS[progress.level] == 0 else 0.9
    if progress.token_accuracy < needed or progress.step - progress.level_start < 60:
        return
    last_a = progress.stage == "A" and LEVELS[progress.level] >= max_level_a
    if progress.level < len(LEVELS) - 1 and not last_a:
        progress.level += 1
    elif progress.stage == "A":
        model.start_encoder_from_decoder()
        progress.stage, progress.stage_start, progress.level = "B", progress.step, 0
    else:
        return
    progress.level_start = progress.step
    progress.token_accuracy = progress.exact = 0.0


def export(work: Path, out: Path) -> None:
    """Write the checkpoint of the last saved step, as it stands."""
    _, tokenizer = make_template()
    model = TinyLCLM(tokenizer)
    progress = load_state(work, model, make_optimizers(model))
    model.save_checkpoint(tokenizer, out)
    print(f"step {progress.step} written to {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"), help="state and log")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny/checkpoint"))
    parser.add_argument("--steps", type=int, default=2900, help="steps of stage B")
    parser.add_argument("--documents-a", type=int, default=4, help="where stage A ends")
    parser.add_argument("--export", action="store_true", help="write the state as it is, and end")
    arguments = parser.parse_args()
    if arguments.export:
        export(arguments.work, arguments.out)
    else:
        train(arguments.work, arguments.out, arguments.steps, arguments.documents_a)
