"""What vLLM's answers cost, by how the passages reach it. One engine, same passages, one run.

\b
    python benchmarks/vllm_inputs.py                                       # the bundled checkpoint, on a CPU
    python benchmarks/vllm_inputs.py --shape published --ratio 16 \\
        --source-tokens 8192,32768,131072 --engine-option max_model_len=140000   # on a GPU

Each way starts with passages at hand (text, and latents as a store keeps them, in encoder space):

\b
text          the passages' text pasted into the prompt
text, warm    the same, as a second question about the same passages: their KV is in the prefix cache
mixed         latents through the adapter here, then one tensor of prompt embeddings
items         latents as items of the `latent` modality; the adapter is in the engine
items, seen   the same, where the engine has had the passages before, in another order and company: nothing
              but identifiers is sent; their KV is computed again
items, warm   as a second question about the same passages
two-stage     as the paper's own code: encode at question time, 128 windows at once and padded to the longest,
              write the prompt's embeddings to a .pt file, read it, decode pure embeddings

Time to first token runs from the passages at hand to the first token. Weights do not change the time, so
a random checkpoint of the published shape stands for the published one.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch
from compressor import plain_encoder, plain_way
from random_checkpoint import PUBLISHED, SMALL, make_checkpoint
from shared import label_sizes, machine, numbers, write_results

from lclm_rag import PassageKey, Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.decoding import all_answered
from lclm_rag.decoding.server import embedding_table
from lclm_rag.decoding.vllm import VLLMDecoder
from lclm_rag.evaluation.datasets.fact_sheets import fact_sheets
from lclm_rag.prompting import PromptPassage, PromptTemplate, SoftPrompt, assemble

WAYS = ("text", "text, warm", "mixed", "items", "items, seen", "items, warm", "two-stage")
QUESTIONS = ("Who is it and where was it?", "What was the year of it, and why?")


@dataclass(frozen=True)
class Passage:
    """A stored passage: latents [n, encoder width]."""

    key: PassageKey
    text: str
    latents: torch.Tensor


@dataclass(frozen=True)
class Measured:
    """One way at one size and concurrency.

    questions: asked. first_token: seconds, median; quartiles around it. questions_per_second: over all.
    positions: of a prompt, mean. kv_blocks: the most that were in use at once.
    """

    way: str
    source_tokens: int
    concurrency: int
    questions: int
    first_token: float
    quartiles: tuple[float, float]
    questions_per_second: float
    positions: float
    kv_blocks: int


class Bench:
    """The engine, and the ways to ask it."""

    def __init__(self, checkpoint: Checkpoint, decoder: VLLMDecoder, max_tokens: int) -> None:
        self.checkpoint = checkpoint
        self.items = decoder
        self.mixed = decoder.with_inputs("mixed")
        self.compressor = Compressor.from_pretrained(checkpoint)
        self.plain = plain_encoder(self.compressor)
        self.template = PromptTemplate.of(checkpoint)
        self.sampling = Sampling(max_tokens=max_tokens)
        self.encoding = threading.Lock()  # One prompt at a time, as on a GPU.

    def passages(self, count: int) -> list[Passage]:
        """Fact sheets, compressed."""
        sheets = list(itertools.islice(fact_sheets(seed=7, held_out=True), count))
        texts = [sheet.document.text for sheet in sheets]
        latents = self.compressor.compress(texts, space="encoder")
        return [
            Passage(PassageKey(f"{n:06}", 0), text, rows.cpu())
            for n, (text, rows) in enumerate(zip(texts, latents, strict=True))
        ]

    def ask(self, way: str, passages: Sequence[Passage], question: str) -> tuple[float, int]:
        """(seconds from the passages at hand to the first token, positions of the prompt)."""
        started = time.perf_counter()
        if way == "two-stage":
            return self._two_stage(passages, question, started)
        if way.startswith("text"):
            prompt = self._prompt(passages, [None] * len(passages), question, "decoder")
        elif way == "mixed":
            prompt = self._prompt(passages, self._projected(passages), question, "decoder")
        else:
            prompt = self._prompt(passages, [p.latents for p in passages], question, "encoder")
        decoder = self.mixed if way == "mixed" else self.items
        ready = time.perf_counter() - started
        (completion,) = all_answered(decoder.complete([prompt], self.sampling))
        return ready + completion.first_token, prompt.positions

    def _projected(self, passages: Sequence[Passage]) -> list[torch.Tensor]:
        counts = [len(p.latents) for p in passages]
        rows = self.compressor.project(torch.cat([p.latents for p in passages]), counts).cpu()
        return list(rows.split(counts))

    def _prompt(
        self,
        passages: Sequence[Passage],
        latents: Sequence[torch.Tensor | None],
        question: str,
        space: Any,
    ) -> SoftPrompt:
        given = [
            PromptPassage(p.key, p.text, rows) for p, rows in zip(passages, latents, strict=True)
        ]
        budget = self.items.context_length - self.sampling.max_tokens
        assembled = assemble(self.template, given, self.template.ends(question), budget, space)
        if assembled.left_out:
            raise click.ClickException(
                f"{len(assembled.left_out)} of {len(passages)} passages do not fit into a context of "
                f"{self.items.context_length}; take fewer source tokens."
            )
        return assembled.prompt

    def _two_stage(
        self, passages: Sequence[Passage], question: str, started: float
    ) -> tuple[float, int]:
        with self.encoding:
            ids = self.checkpoint.encoder_token_ids([p.text for p in passages])
            windows = plain_way(self.plain, ids, self.compressor)  # One for each: sheets are short.
            counts = [len(rows) for rows in windows]
            rows = self.compressor.project(torch.cat(windows), counts).cpu()
            latents = list(rows.split(counts))
        prompt = self._prompt(passages, latents, question, "decoder")
        embeds = self._embedding_table[torch.tensor(prompt.token_ids)]
        for span, rows in zip(prompt.spans, prompt.latents, strict=True):
            embeds[span.start : span.start + span.length] = rows.to(embeds.dtype)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(embeds, Path(folder) / "prompt.pt")
            # The way that is measured; the file is our own.
            read = torch.load(Path(folder) / "prompt.pt", weights_only=True)
        asked = time.perf_counter() - started
        return asked + self._pure_embeddings(read), prompt.positions

    def _pure_embeddings(self, embeds: torch.Tensor) -> float:
        """Seconds to the first token of a prompt without token ids."""
        from vllm import SamplingParams

        engine = self.items.engine
        how = SamplingParams(max_tokens=self.sampling.max_tokens, temperature=0.0)

        async def run() -> float:
            (rendered,) = await engine.renderer.render_cmpl_async([{"prompt_embeds": embeds}])
            async for output in engine.generate(rendered, how, f"pure-{time.perf_counter_ns()}"):
                metrics = output.metrics
            return float(metrics.first_token_latency)

        return self.items.thread.run(run)

    @cached_property
    def _embedding_table(self) -> torch.Tensor:
        table: torch.Tensor = embedding_table(self.checkpoint)[:]
        return table.to(self.items.latent_dtype)

    def forget(self) -> None:
        """Empty the engine's caches."""
        engine = self.items.engine
        for reset in (engine.reset_mm_cache, engine.reset_encoder_cache, engine.reset_prefix_cache):
            self.items.thread.run(reset)

    @contextmanager
    def watched_blocks(self) -> Iterator[Callable[[], int]]:
        """Yields a function that tells the most KV blocks that were in use at once so far.

        From the engine's own gauge, which it sets at every step; read every few milliseconds.
        """
        from prometheus_client import REGISTRY

        (gauge,) = [
            metric for metric in REGISTRY.collect() if metric.name == "vllm:kv_cache_usage_perc"
        ]
        labels = gauge.samples[0].labels
        blocks = self.items.engine.vllm_config.cache_config.num_gpu_blocks
        most, done = 0.0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.003):
                now = REGISTRY.get_sample_value("vllm:kv_cache_usage_perc", labels)
                most = max(most, now or 0.0)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield lambda: round(most * blocks)
        finally:
            done.set()
            thread.join()


def measure(
    bench: Bench, way: str, contexts: list[list[Passage]], source_tokens: int, concurrency: int
) -> Measured:
    """Ask a question about each context, `concurrency` at a time."""
    bench.forget()
    first, second = QUESTIONS
    if way.endswith("warm"):
        for passages in contexts:
            bench.ask(way, passages, first)
    if way == "items, seen":
        # Each passage was seen in another context: its item is known, its place in a prefix is not.
        shifted = [p for passages in contexts for p in passages]
        shifted = shifted[1:] + shifted[:1]
        size = len(contexts[0])
        for start in range(0, len(shifted), size):
            bench.ask(way, shifted[start : start + size], first)
        bench.items.thread.run(bench.items.engine.reset_prefix_cache)
    with bench.watched_blocks() as most_blocks, ThreadPoolExecutor(concurrency) as pool:
        started = time.perf_counter()
        asked = list(pool.map(lambda passages: bench.ask(way, passages, second), contexts))
        seconds = time.perf_counter() - started
        time.sleep(0.02)
        blocks = most_blocks()
    low, median, high = statistics.quantiles([first for first, _ in asked], method="inclusive")
    return Measured(
        way=way,
        source_tokens=source_tokens,
        concurrency=concurrency,
        questions=len(asked),
        first_token=median,
        quartiles=(low, high),
        questions_per_second=len(asked) / seconds,
        positions=statistics.mean(positions for _, positions in asked),
        kv_blocks=blocks,
    )


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.option("--checkpoint", default="bundled", show_default=True, help="Folder or hub id.")
@click.option(
    "--shape",
    type=click.Choice(["published", "small"]),
    help="Random weights of this shape instead of a checkpoint.",
)
@click.option("--ratio", default=16, show_default=True, help="Compression ratio of a --shape.")
@click.option("--source-tokens", default="1024,2048,4096,8192", show_default=True, callback=numbers)
@click.option("--concurrency", default="1,8,32", show_default=True, callback=numbers)
@click.option(
    "--least-questions",
    default=20,
    show_default=True,
    type=click.IntRange(min=2),
    help="At a low concurrency.",
)
@click.option("--max-tokens", default=8, show_default=True, help="Generated for a question.")
@click.option("--engine-option", "engine_options", multiple=True, metavar="NAME=JSON")
@click.option(
    "--out",
    default="benchmarks/results/vllm_inputs",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Without ending: .json and .png are written.",
)
def main(
    checkpoint: str,
    shape: str | None,
    ratio: int,
    source_tokens: list[int],
    concurrency: list[int],
    least_questions: int,
    max_tokens: int,
    engine_options: tuple[str, ...],
    out: Path,
) -> None:
    options: dict[str, Any] = {"max_num_seqs": max(concurrency)}
    if not torch.cuda.is_available():
        options |= {"enforce_eager": True, "kv_cache_memory_bytes": 4 * 2**30}
    for text in engine_options:
        name, _, value = text.partition("=")
        options[name] = json.loads(value)
    with tempfile.TemporaryDirectory() as folder:
        if shape is None:
            opened = Checkpoint.open(checkpoint)
        else:
            opened = make_checkpoint(
                Path(folder) / "checkpoint", {"published": PUBLISHED, "small": SMALL}[shape], ratio
            )
        decoder = VLLMDecoder.from_pretrained(opened, **options)
        try:
            bench = Bench(opened, decoder, max_tokens)
            results = run(bench, source_tokens, concurrency, least_questions)
            about = {
                "machine": machine(),
                "checkpoint": (shape and f"random, {shape} shape") or opened.name,
                "compression_ratio": opened.config.compression_ratio,
                "dtype": str(decoder.engine.model_config.dtype),
                "block_size": decoder.engine.vllm_config.cache_config.block_size,
                "engine_options": options,
                "max_tokens": max_tokens,
            }
        finally:
            decoder.close()
    write_results(out, about, results)
    table(results)
    plot(results, about, out.with_suffix(".png"))


def run(
    bench: Bench, sizes: list[int], concurrency: list[int], least_questions: int
) -> list[Measured]:
    from rich.progress import Progress

    results = []
    most = max(max(concurrency), least_questions)
    with Progress() as progress:
        task = progress.add_task("", total=len(sizes) * len(concurrency) * len(WAYS))
        sample = bench.passages(32)
        texts = [passage.text for passage in sample]
        each = statistics.mean(map(len, bench.compressor.checkpoint.encoder_token_ids(texts)))
        for size in sizes:
            in_context = max(1, round(size / each))
            stored = bench.passages(in_context * most)
            contexts = [stored[n * in_context : (n + 1) * in_context] for n in range(most)]
            for way in WAYS:  # What is compiled or allocated at first use is not measured.
                bench.ask(way, contexts[0], QUESTIONS[0])
            for at_once, way in itertools.product(concurrency, WAYS):
                progress.update(task, description=f"{size} tokens, {at_once} at once, {way}")
                chosen = contexts[: max(at_once, least_questions)]
                results.append(measure(bench, way, chosen, size, at_once))
                progress.advance(task)
    return results


def by_text(results: list[Measured], result: Measured) -> Measured:
    return next(
        r
        for r in results
        if (r.way, r.source_tokens, r.concurrency)
        == ("text", result.source_tokens, result.concurrency)
    )


def table(results: list[Measured]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="Ratios are to pasted text, in the same run")
    for name in ("source tokens", "at once", "way"):
        shown.add_column(name)
    for name in ("positions", "first token", "ratio", "questions/s", "ratio", "KV blocks"):
        shown.add_column(name, justify="right")
    for result in results:
        text = by_text(results, result)
        shown.add_row(
            f"{result.source_tokens:,}",
            str(result.concurrency),
            result.way,
            f"{result.positions:,.0f}",
            f"{result.first_token * 1000:,.0f} ms",
            f"{result.first_token / text.first_token:.2f}",
            f"{result.questions_per_second:.2f}",
            f"{result.questions_per_second / text.questions_per_second:.2f}",
            str(result.kv_blocks),
            end_section=result.way == WAYS[-1],
        )
    Console(width=110).print(shown)


def plot(results: list[Measured], about: dict[str, Any], path: Path) -> None:
    """Time to first token alone, and throughput at the highest concurrency, as ratios to pasted text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    least = min(result.concurrency for result in results)
    most = max(result.concurrency for result in results)
    titles = (
        f"time to first token, {least} at once\n(pasted text = 1, lower is better)",
        f"questions per second, {most} at once\n(pasted text = 1, higher is better)",
    )
    for axis, title, at_once in zip(axes, titles, (least, most), strict=True):
        for way in WAYS:
            chosen = [r for r in results if (r.way, r.concurrency) == (way, at_once)]
            first = axis is axes[0]
            ratios = [
                r.first_token / by_text(results, r).first_token
                if first
                else r.questions_per_second / by_text(results, r).questions_per_second
                for r in chosen
            ]
            axis.plot([r.source_tokens for r in chosen], ratios, marker="o", label=way)
        axis.set_title(title)
        label_sizes(axis, sorted({r.source_tokens for r in results}))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    where = about["machine"]["gpu"] or f"{about['machine']['cores']} CPU cores"
    figure.suptitle(f"{about['checkpoint']}, {about['compression_ratio']}×, {where}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
