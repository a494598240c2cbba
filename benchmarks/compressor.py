"""How fast the compressor is: against the plain way, the encoder alone, and what the machine can multiply.

The plain way is the loop that the paper's code has: 128 windows at a time in the order in which they come,
padded on the left to the longest of all, a mask, and one mean after another in Python. Sorted, it takes them
by length and pads each batch to its own longest window, which the paper's code does not. The bare encoder is
the forward pass of transformers over as many tokens in as many windows, all of one length, so that nothing is
padded; no tokenizing, no pooling. Each round runs all ways one after another; ratios are medians over the
rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from random_checkpoint import PUBLISHED, THIRTY_MILLION, make_checkpoint
from rich.progress import Progress
from shared import machine, write_results
from transformers import AutoModel

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.cli.progress import stdout
from lclm_rag.compression import Compressor
from lclm_rag.compression.windows import cut_windows
from lclm_rag.estimate.matrix_rate import matrix_product_rate
from lclm_rag.estimate.shapes import TransformerShape

SHAPES = {"30m": THIRTY_MILLION, "published": PUBLISHED}
LENGTHS: dict[str, Callable[[np.random.Generator], float]] = {
    "mixed: log-normal, median 300": lambda random: random.lognormal(np.log(300), 0.8),
    "short: log-normal, median 60": lambda random: random.lognormal(np.log(60), 0.7),
    "full windows": lambda random: 1024,
}
"""Tokens of a text; longer ones than a window are several windows."""

WAYS = (
    *("plain", "plain, sorted", "bare encoder"),
    *("compressor", "compressor, from text", "compressor, compiled"),
)

_PLAIN_WINDOWS = 128
"""At once, in the plain way."""


@dataclass(frozen=True)
class Result:
    """tokens_per_second: of the source, best round. share: of the measured rate of matrix products, in FLOPs
    that the task needs (padding does not count). to_plain, to_bare: speed compared with these, median."""

    lengths: str
    texts: int
    tokens: int
    way: str
    tokens_per_second: float
    share: float
    to_plain: float
    to_bare: float


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="30m", show_default=True)
@click.option(
    "--tokens", default=8_192, show_default=True, help="Of each distribution; 4000000 on a GPU."
)
@click.option("--rounds", default=5, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--token-budget", type=int, help="[default: the compressor's]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "compressor",
    help="Where JSON and plot go.",
)
def main(
    shape: str, tokens: int, rounds: int, device: str, token_budget: int | None, out: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        checkpoint = make_checkpoint(Path(folder) / "checkpoint", SHAPES[shape], ratio=16)
        compressor = Compressor.from_pretrained(checkpoint, device, token_budget=token_budget)
        compiled = Compressor.from_pretrained(
            checkpoint, device, token_budget=token_budget, compile=True
        )
        plain = plain_encoder(compressor)
        rates: list[float] = []
        task = progress.add_task("", total=len(LENGTHS) * rounds * len(WAYS))
        results = []
        for name, length in LENGTHS.items():
            progress.update(task, description=name)
            texts = make_texts(checkpoint, length, tokens)
            results += measure(
                name,
                texts,
                compressor,
                compiled,
                plain,
                rates,
                rounds,
                lambda: progress.advance(task),
            )
    # The best that the machine gave in any round: it is not equally fast all the time.
    rate = max(rates)
    results = [replace(result, share=result.share / rate) for result in results]
    about = {
        "machine": machine(),
        "device": str(compressor.device),
        "dtype": str(compressor.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "token_budget": compressor.token_budget,
        "encoder_parameters": sum(p.numel() for p in plain.parameters()),
        "matrix_product_tflops": rate / 1e12,
    }
    write_results(out, about, results)
    show(results, rate)
    plot(results, out.with_suffix(".png"))


def make_texts(
    checkpoint: Checkpoint, length: Callable[[np.random.Generator], float], tokens: int
) -> list[str]:
    """Texts of so many tokens in all, of common words, one token each."""
    random = np.random.default_rng(0)
    vocabulary = checkpoint.encoder_tokenizer.get_vocab()
    words = sorted(word[1:] for word in vocabulary if word[:1] == "Ġ" and word[1:].isalpha())
    words = [word for word in words if len(checkpoint.encoder_token_ids([f" {word}"])[0]) == 1]
    texts = []
    while tokens > 0:
        count = max(1, min(tokens, int(length(random))))
        texts.append(" " + " ".join(random.choice(words, count)))
        tokens -= count
    return texts


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Until the device has done it."""
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def measure(
    name: str,
    texts: list[str],
    compressor: Compressor,
    compiled: Compressor,
    plain: Any,
    rates: list[float],
    rounds: int,
    on_run: Callable[[], None],
) -> list[Result]:
    checkpoint = compressor.checkpoint
    token_ids = checkpoint.encoder_token_ids(texts)
    windows = cut_windows(token_ids, checkpoint.config, None)
    lengths = windows.lengths.tolist()
    shape = TransformerShape.of(checkpoint.encoder_config)
    flops = shape.flops(sum(lengths), sum(n * (n + 1) // 2 for n in lengths))
    runs: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain_way(plain, token_ids, compressor),
        "plain, sorted": lambda: plain_way(plain, token_ids, compressor, in_order=False),
        "bare encoder": lambda: bare_encoder(plain, lengths, compressor.token_budget),
        "compressor": lambda: compressor.compress_together(token_ids, "encoder")[0].cpu(),
        "compressor, from text": lambda: compressor.compress(texts, "encoder")[-1].cpu(),
        "compressor, compiled": lambda: compiled.compress_together(token_ids, "encoder")[0].cpu(),
    }
    for each in (compressor, compiled):
        each.compress(texts[:2])  # What is loaded, allocated and compiled once.
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        rates.append(matrix_product_rate(compressor.device, compressor.dtype))
        for way in WAYS:
            times[way].append(seconds(runs[way], compressor.device))
            on_run()
    tokens = sum(lengths)
    # `share` is FLOP/s here, and a share once all rates are known.

    def ratio(way: str, to: str) -> float:
        return statistics.median(b / a for a, b in zip(times[way], times[to], strict=True))

    return [
        Result(
            lengths=name,
            texts=len(texts),
            tokens=tokens,
            way=way,
            tokens_per_second=tokens / min(times[way]),
            share=flops / min(times[way]),
            to_plain=ratio(way, "plain"),
            to_bare=ratio(way, "bare encoder"),
        )
        for way in WAYS
    ]


def plain_encoder(compressor: Compressor) -> Any:
    """The encoder of a compressor's checkpoint, as transformers loads it."""
    folder = compressor.checkpoint.encoder_model_folder
    model = AutoModel.from_pretrained(folder, dtype=compressor.dtype)
    return model.to(compressor.device).eval()


@torch.inference_mode()
def plain_way(
    model: Any, token_ids: list[list[int]], compressor: Compressor, *, in_order: bool = True
) -> list[torch.Tensor]:
    """Encoder space, window by window; with `in_order` False, by length."""
    config = compressor.checkpoint.config
    size, ratio = config.encoder_window_size, config.compression_ratio
    windows = [ids[i : i + size] for ids in token_ids for i in range(0, len(ids), size)]
    longest = max(map(len, windows))
    if not in_order:
        windows.sort(key=len)
    latents = []
    for first in range(0, len(windows), _PLAIN_WINDOWS):
        batch = windows[first : first + _PLAIN_WINDOWS]
        if not in_order:
            longest = len(batch[-1])
        padded = torch.tensor([[0] * (longest - len(w)) + list(w) for w in batch])
        mask = torch.tensor([[0] * (longest - len(w)) + [1] * len(w) for w in batch])
        hidden = model(
            input_ids=padded.to(compressor.device),
            attention_mask=mask.to(compressor.device),
            use_cache=False,
        ).last_hidden_state
        for row, window in zip(hidden, batch, strict=True):
            own = row[longest - len(window) :]
            latents.append(
                torch.stack([own[i : i + ratio].mean(0) for i in range(0, len(own), ratio)])
            )
    return [each.cpu() for each in latents]


@torch.inference_mode()
def bare_encoder(model: Any, lengths: Sequence[int], budget: int) -> None:
    """As many tokens in as many windows, all of one length."""
    each = max(1, round(sum(lengths) / len(lengths)))
    at_once = max(1, budget // each)
    device = next(model.parameters()).device
    for first in range(0, len(lengths), at_once):
        rows = min(at_once, len(lengths) - first)
        ids = torch.ones(rows, each, dtype=torch.long, device=device)
        model(input_ids=ids, use_cache=False)


def show(results: Sequence[Result], rate: float) -> None:
    from rich.table import Table

    table = Table(title=f"matrix product: {rate / 1e12:.2f} TFLOP/s")
    for column in ("lengths", "way", "tokens/s", "share", "× plain", "× bare"):
        table.add_column(column, justify="left" if column in ("lengths", "way") else "right")
    for r in results:
        table.add_row(
            r.lengths,
            r.way,
            f"{r.tokens_per_second:,.0f}",
            f"{r.share:.0%}",
            f"{r.to_plain:.2f}",
            f"{r.to_bare:.2f}",
        )
    stdout.print(table)


def plot(results: Sequence[Result], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(WAYS)
    for i, way in enumerate(WAYS):
        found = [r for r in results if r.way == way]
        places = [n + (i - (len(WAYS) - 1) / 2) * width for n in range(len(found))]
        bars = axis.bar(places, [r.tokens_per_second for r in found], width, label=way)
        axis.bar_label(bars, [f"{r.to_plain:.1f}×" for r in found], fontsize=8)
    axis.set_xticks(range(len(LENGTHS)), list(LENGTHS))
    axis.set_ylabel("source tokens a second")
    axis.legend(fontsize=8, ncols=len(WAYS), loc="upper center")
    axis.margins(y=0.25)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
