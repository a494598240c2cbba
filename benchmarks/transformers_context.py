"""What a context costs the transformers decoder: pasted text against stored latents at 4×, 8× and 16×.

\b
    python benchmarks/transformers_context.py                       # a small random shape, on a CPU
    python benchmarks/transformers_context.py --shape published \\
        --source-tokens 8192,16384,32768,65536,131072               # on a GPU, bfloat16

Time to first token and, on a GPU, peak memory beyond the weights, for one question. Latents are drawn at
random: their values do not change the time. The same decoder reads all ratios.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from random_checkpoint import PUBLISHED, SMALL, make_checkpoint
from shared import label_sizes, machine, numbers, write_results

from lclm_rag import Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import all_answered
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.prompting import SoftPrompt, Span

RATIOS = (4, 8, 16)


@dataclass(frozen=True)
class Measured:
    """context: "text" or "latents 4×". first_token: seconds, the least of several runs. peak_bytes: GPU
    memory beyond the weights; None on a CPU."""

    context: str
    source_tokens: int
    positions: int
    first_token: float
    peak_bytes: int | None


def prompt_of(checkpoint: Checkpoint, source_tokens: int, ratio: int | None) -> SoftPrompt:
    """A context of text tokens (ratio None) or of latents, and a question of 32 tokens."""
    torch.manual_seed(0)
    question = torch.randint(10, 500, (32,)).tolist()
    if ratio is None:
        return SoftPrompt([*torch.randint(10, 500, (source_tokens,)).tolist(), *question])
    count = -(-source_tokens // ratio)
    latents = torch.randn(count, checkpoint.decoder_width) * 0.02
    ids = [checkpoint.placeholder_id] * count + question
    return SoftPrompt(ids, (latents,), (Span(0, count),))


def measure(
    decoder: TransformersDecoder, source_tokens: int, ratio: int | None, repeats: int
) -> Measured:
    prompt = prompt_of(decoder.checkpoint, source_tokens, ratio)
    device = decoder.model.device
    on_gpu = device.type == "cuda"
    one = Sampling(max_tokens=1)
    weights = torch.cuda.memory_allocated(device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(repeats + 1):  # The first warms up.
        (completion,) = all_answered(decoder.complete([prompt], one))
        times.append(completion.first_token)
    return Measured(
        context="text" if ratio is None else f"latents {ratio}×",
        source_tokens=source_tokens,
        positions=prompt.positions,
        first_token=min(times[1:]),
        peak_bytes=torch.cuda.max_memory_allocated(device) - weights if on_gpu else None,
    )


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.option("--shape", type=click.Choice(["published", "small"]), default="small")
@click.option("--source-tokens", default="1024,2048,4096,8192", show_default=True, callback=numbers)
@click.option("--repeats", default=3, show_default=True)
@click.option(
    "--out",
    default="benchmarks/results/transformers_context",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Without ending: .json and .png are written.",
)
def main(shape: str, source_tokens: list[int], repeats: int, out: Path) -> None:
    results: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"published": PUBLISHED, "small": SMALL}[shape]
        checkpoint = make_checkpoint(Path(folder) / "checkpoint", chosen, 16)
        decoder = TransformersDecoder.from_pretrained(checkpoint)
        for size in source_tokens:
            for ratio in (None, *RATIOS):
                results.append(measure(decoder, size, ratio, repeats))
                click.echo(f"{results[-1]}", err=True)
    about = {"machine": machine(), "shape": shape, "dtype": str(decoder.model.dtype)}
    write_results(out, about, results)
    table(results)
    plot(results, about, out.with_suffix(".png"))


def text_of(results: list[Measured], result: Measured) -> Measured:
    return next(
        r for r in results if (r.context, r.source_tokens) == ("text", result.source_tokens)
    )


def table(results: list[Measured]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="Ratios are to pasted text, in the same run")
    for name in ("source tokens", "context"):
        shown.add_column(name)
    for name in ("positions", "first token", "ratio", "peak memory", "ratio"):
        shown.add_column(name, justify="right")
    for result in results:
        text = text_of(results, result)
        peak = "–" if result.peak_bytes is None else f"{result.peak_bytes / 2**30:.2f} GiB"
        less = "–" if not text.peak_bytes else f"{(result.peak_bytes or 0) / text.peak_bytes:.2f}"
        shown.add_row(
            f"{result.source_tokens:,}",
            result.context,
            f"{result.positions:,}",
            f"{result.first_token * 1000:,.0f} ms",
            f"{result.first_token / text.first_token:.2f}",
            peak,
            less,
            end_section=result.context.endswith("16×"),
        )
    Console(width=110).print(shown)


def plot(results: list[Measured], about: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with_memory = results[0].peak_bytes is not None
    figure, axes = plt.subplots(
        1, 1 + with_memory, figsize=(5 * (1 + with_memory), 4), squeeze=False, layout="constrained"
    )
    for context in dict.fromkeys(result.context for result in results):
        chosen = [r for r in results if r.context == context]
        sizes = [r.source_tokens for r in chosen]
        axes[0][0].plot(sizes, [r.first_token for r in chosen], marker="o", label=context)
        if with_memory:
            gib = [(r.peak_bytes or 0) / 2**30 for r in chosen]
            axes[0][1].plot(sizes, gib, marker="o", label=context)
    titles = ("time to first token, s", "peak memory beyond the weights, GiB")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title)
        label_sizes(axis, sizes)
        axis.legend()
    where = about["machine"]["gpu"] or f"{about['machine']['cores']} CPU cores"
    figure.suptitle(f"transformers, random weights of the {about['shape']} shape\n{where}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
