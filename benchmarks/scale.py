"""How much faster more workers are: encoders on Ray, beside as many bare encoder processes.

For each number of workers a corpus of made texts is compressed on Ray. The same number of processes that do
nothing but run the encoder, each over its share of as many tokens, tells what the machines can give: they
share memory bandwidth and clock rate, Ray or not. Rates are of workers at work; starting Ray and loading
models is left out, and told beside.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from compressor import LENGTHS, SHAPES, bare_encoder, make_texts
from random_checkpoint import make_checkpoint
from shared import machine, numbers, write_results

from lclm_rag import KnowledgeBase, RayEngine
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.cli.progress import stdout
from lclm_rag.connectors.corpora import corpus_parts

PARTS = 24
"""Files of the corpus: so many shards at least, so that no worker waits long for the others' last."""


@dataclass(frozen=True)
class Result:
    """tokens_per_second: of all workers while they work. efficiency: compared with so many times one.
    bare_…: the same of bare encoder processes. seconds: of the whole `add`, with starting."""

    workers: int
    tokens: int
    tokens_per_second: float
    efficiency: float
    bare_tokens_per_second: float
    bare_efficiency: float
    seconds: float


@click.command()
@click.option("--workers", default="1,2", show_default=True, callback=numbers)
@click.option("--shape", type=click.Choice(list(SHAPES)), default="30m", show_default=True)
@click.option("--tokens", default=36_864, show_default=True, help="Of the corpus.")
@click.option("--address", help="Of a Ray cluster.  [default: this machine]")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Empty, and the same for all machines.  [default: a temporary one]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "scale",
    help="Where the JSON goes.",
)
def main(
    workers: list[int], shape: str, tokens: int, address: str | None, folder: Path | None, out: Path
) -> None:
    with working_folder(folder) as place:
        checkpoint = make_checkpoint(place / "checkpoint", SHAPES[shape], ratio=16)
        texts = make_texts(checkpoint, LENGTHS["mixed: log-normal, median 300"], tokens)
        (place / "corpus").mkdir()
        for part in range(PARTS):
            lines = [
                json.dumps({"id": f"{part}-{i}", "text": t})
                for i, t in enumerate(texts[part::PARTS])
            ]
            (place / "corpus" / f"{part}.jsonl").write_text("\n".join(lines))
        lengths = list(map(len, checkpoint.encoder_token_ids(texts)))
        rates, results = [], []
        for count in workers:
            stdout.print(f"{count} on Ray …")
            on_ray, read, seconds = rate_on_ray(place, checkpoint, count, address)
            stdout.print(f"{count} bare …")
            bare = rate_of_processes(checkpoint, lengths, count)
            rates.append((on_ray, bare))
            efficiency = [
                now / first * workers[0] / count
                for now, first in zip(rates[-1], rates[0], strict=True)
            ]
            results.append(Result(count, read, on_ray, efficiency[0], bare, efficiency[1], seconds))
            stdout.print(results[-1])
    write_results(out, {"machine": machine()}, results)


@contextmanager
def working_folder(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def rate_on_ray(
    place: Path, checkpoint: Checkpoint, workers: int, address: str | None
) -> tuple[float, int, float]:
    """Tokens a second of all workers while they are busy, tokens, and the seconds of it all."""
    begun = time.perf_counter()
    with KnowledgeBase.create(place / f"kb-{workers}", checkpoint.path) as kb:
        parts = corpus_parts(str(place / "corpus" / "*.jsonl"))
        report = kb.add(parts, engine=RayEngine(encoders=workers, address=address))
    busy = sum(worker.tokens / worker.seconds for worker in report.workers)
    return busy, report.tokens, time.perf_counter() - begun


def rate_of_processes(checkpoint: Checkpoint, lengths: list[int], count: int) -> float:
    """Tokens a second of so many processes side by side."""
    context = multiprocessing.get_context("spawn")
    ready, times = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=run_bare, args=(checkpoint.path, lengths[i::count], i, ready, times))
        for i in range(count)
    ]
    for process in processes:
        process.start()
    rates = [times.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def run_bare(path: Path, lengths: list[int], number: int, ready: Any, times: Any) -> None:
    from transformers import AutoModel

    gpus = torch.cuda.device_count()
    torch.set_num_threads(1)
    device = f"cuda:{number % gpus}" if gpus else "cpu"
    dtype = torch.bfloat16 if gpus else torch.float32
    model = AutoModel.from_pretrained(path / "encoder", dtype=dtype).to(device).eval()
    budget = 65_536 if gpus else 4_096
    bare_encoder(model, lengths[:2], budget)
    ready.wait()
    begun = time.perf_counter()
    bare_encoder(model, lengths, budget)
    if gpus:
        torch.cuda.synchronize(device)
    times.put(sum(lengths) / (time.perf_counter() - begun))


if __name__ == "__main__":
    main()
