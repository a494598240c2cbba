"""What to run first where there is a GPU: it takes the risks of the CUDA path one by one, the largest first.

\b
    python benchmarks/gpu_day.py --minutes 10
    python benchmarks/gpu_day.py --minutes 30 --checkpoint latent-context/0.6b-4b-LCLM-16x
    python benchmarks/gpu_day.py --tiny              # tries the steps out, on a CPU, in seconds

Each step prints what it found. A step that fails is noted, and the next one begins; one that the time left is
too short for is left out, and said to be. The JSON is written after each step.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from random_checkpoint import PUBLISHED, PUBLISHED_ENCODER, TINY, Shape, make_checkpoint
from shared import machine
from transformers.utils.logging import disable_progress_bar
from transformers_context import measure as first_token_of
from transformers_context import prompt_of

from lclm_rag import Document, KnowledgeBase, Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.decoding import all_answered
from lclm_rag.estimate.matrix_rate import matrix_product_rate
from lclm_rag.estimate.shapes import TransformerShape
from lclm_rag.store.codecs import CODECS, Encoding, decode

AUTHORS = {
    "niah_single_1": 96.8,
    "niah_single_2": 90.0,
    "niah_single_3": 55.2,
    "niah_multikey_1": 86.4,
    "niah_multikey_2": 82.2,
    "niah_multikey_3": 49.0,
    "niah_multivalue": 74.1,
    "niah_multiquery": 81.45,
}
"""RULER at 4,096 tokens and 16×, by the authors: greedy, 128 tokens, no repetition penalty. In percent."""

_WITHIN = 2.0
"""Points by which ours may miss them."""


class SkippedError(Exception):
    """A step that cannot run here; the message says why."""


@dataclass
class Day:
    """What the steps share.

    Attributes:
        folder: For checkpoints and stores.
        device: "cuda", or "cpu" where there is none.
        tiny: Whether to try the steps out on small sizes.
        checkpoint: A checkpoint with real weights; None if there is none.
        ruler: Where the evaluation set is: a folder, or its id on the hub.
        questions: The questions of each task of RULER.
        ends: When the time is over, by `time.monotonic`.
        made: The random checkpoints, by the name of their shape.
    """

    folder: Path
    device: str
    tiny: bool
    checkpoint: str | None
    ruler: str
    questions: int
    ends: float
    made: dict[str, Checkpoint] = field(default_factory=dict)

    def random(self, name: str) -> Checkpoint:
        """A random checkpoint: "encoder" (the published encoder, a small decoder) or "whole"."""
        if name not in self.made:
            shape: Shape = {"encoder": PUBLISHED_ENCODER, "whole": PUBLISHED}[name]
            shape = TINY if self.tiny else shape
            self.made[name] = make_checkpoint(self.folder / name, shape, 16, self.device)
        return self.made[name]

    def need_cuda(self) -> None:
        if self.device != "cuda":
            raise SkippedError("no CUDA device")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def token_ids(vocabulary: int, lengths: list[int]) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(5, min(vocabulary, 700), n).tolist() for n in lengths]


# --- the steps ------------------------------------------------------------------------------------------


def load_and_compress(day: Day) -> dict[str, Any]:
    """The encoder loads and compresses on CUDA."""
    begun = time.perf_counter()
    compressor = Compressor.from_pretrained(day.checkpoint or "bundled", day.device)
    loaded = time.perf_counter() - begun
    latents = compressor.compress(["A text.", "A longer text of some words. " * 200])
    wait()
    finite = all(bool(each.isfinite().all()) for each in latents)
    if not finite:
        raise RuntimeError("latents are not finite")
    return {
        "device": str(compressor.device),
        "dtype": str(compressor.dtype),
        "seconds_to_load": loaded,
        "seconds": time.perf_counter() - begun,
    }


def same_latents(day: Day) -> dict[str, Any]:
    """The same latents on the CPU in float32 and on CUDA in bfloat16, whatever lengths share a batch."""
    checkpoint = Checkpoint.open(day.checkpoint or "bundled")
    here = Compressor.from_pretrained(checkpoint, "cpu", "float32")
    there = Compressor.from_pretrained(checkpoint, day.device, "bfloat16")
    longest = 300 if day.tiny else 3_000
    lengths = [1, 2, 15, 16, 17, 63, 250, longest // 3, longest // 3 + 1, longest]
    texts = token_ids(checkpoint.encoder_tokenizer.get_vocab_size(), lengths)
    expected, _ = here.compress_together(texts, "encoder")
    found, counts = there.compress_together(texts, "encoder")
    alone = [there.compress_together([ids], "encoder")[0] for ids in texts]
    found, together = found.float().cpu(), found
    cosine = torch.cosine_similarity(found, expected)
    worst = {n: float(part.min()) for n, part in zip(lengths, cosine.split(counts), strict=True)}
    error = float((found - expected).norm() / expected.norm())
    beside = float((together - torch.cat(alone)).float().norm() / together.float().norm())
    if not (cosine.min() > 0.98 and error < 0.1 and beside < 0.05):
        raise RuntimeError(f"they differ: {error=:.4f}, {beside=:.4f}, cosine by length {worst}")
    return {"relative_error": error, "batch_against_alone": beside, "least_cosine": worst}


def syncs_of_codecs(day: Day) -> dict[str, Any]:
    """Nothing between a batch's tokens and its bytes waits for the GPU, with each codec."""
    day.need_cuda()
    compressor = Compressor.from_pretrained("bundled", day.device)
    texts = token_ids(700, [900, 300, 17, 1_024, 5] * 20)
    waits = {}
    for codec in CODECS:
        Encoding.start(compressor.compress_together(texts, "encoder")[0], codec).result()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                latents, _ = compressor.compress_together(texts, "encoder")
                encoding = Encoding.start(latents, codec)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        rows = encoding.result()
        back = decode(rows, codec, latents.shape[1], torch.float32)
        error = float((back - latents.float().cpu()).norm() / latents.float().cpu().norm())
        places = [
            f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchron" in str(w.message)
        ]
        waits[codec] = {"waits": len(places), "where": sorted(set(places)), "error": error}
    return waits


def packing_check(day: Day) -> dict[str, Any]:
    """The published shape passes the check that it may be packed, in bfloat16 and with uneven norms too."""
    from transformers import AutoModel

    from lclm_rag.compression.attention import PackedEncoder

    folder = day.random("encoder").encoder_model_folder
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    for dtype in dtypes:
        for uneven in (0.0, 1.0):
            model = AutoModel.from_pretrained(folder, dtype=dtype).to(day.device).eval()
            torch.manual_seed(0)
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.data.mul_(
                        torch.randn_like(weight, dtype=torch.float32).mul(uneven).exp()
                    )
            PackedEncoder(model, 1_024)  # It raises if it is refused.
            del model
    return {"passed": [str(dtype) for dtype in dtypes]}


def encoder_speed(day: Day) -> dict[str, Any]:
    """The encoder of the published shape: as transformers has it, with fused norms, compiled."""
    from torch.profiler import ProfilerActivity, profile

    checkpoint = day.random("encoder")
    shape = TransformerShape.of(checkpoint.encoder_config)
    sizes = [512, 1_024] if day.tiny else [8_192, 16_384, 32_768, 65_536, 131_072]
    dtype = torch.bfloat16 if day.device == "cuda" else torch.float32
    rate = matrix_product_rate(torch.device(day.device), dtype)
    ways = ("eager", "fused", "compiled") if day.device == "cuda" else ("eager", "fused")
    figures: dict[str, Any] = {"matrix_tflops": rate / 1e12}
    table = ""
    for way in ways:
        compressor = Compressor.from_pretrained(
            checkpoint, day.device, token_budget=max(sizes), compile=way == "compiled"
        )
        if way == "eager":
            for module in compressor.encoder.model.modules():
                module.__dict__.pop("forward", None)  # The norm of transformers, not ours.
        encoder = compressor.encoder
        begun = time.perf_counter()
        rows = []
        for tokens in sizes:
            lengths = [min(1_024, tokens)] * max(1, tokens // 1_024)
            ids = torch.randint(5, 700, (sum(lengths),), device=day.device)
            positions = torch.arange(lengths[0], device=day.device).repeat(len(lengths))
            times = []
            for _ in range(2 if day.tiny else 6):  # The first warms up.
                wait()
                start = time.perf_counter()
                encoder(ids, positions, lengths)
                wait()
                times.append(time.perf_counter() - start)
            seconds = statistics.median(times[1:])
            flops = shape.flops(sum(lengths), sum(n * (n + 1) // 2 for n in lengths))
            rows.append(
                {
                    "tokens": tokens,
                    "tokens_per_second": tokens / seconds,
                    "share_of_matrix_rate": flops / seconds / rate,
                    "first_call_seconds": times[0],
                }
            )
            click.echo(f"  {way:9}{tokens:>8,} {tokens / seconds:>12,.0f} tokens/s", err=True)
        figures[way] = {"rows": rows, "seconds_in_all": time.perf_counter() - begun}
        if day.device == "cuda":
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                encoder(ids, positions, lengths)
                wait()
            table = seen.key_averages().table(sort_by="device_time_total", row_limit=15)
            click.echo(table, err=True)
            figures[way]["profile"] = table.splitlines()
            figures[way]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
    return figures


def build(day: Day) -> dict[str, Any]:
    """A build of long documents, and how busy the GPU was."""
    checkpoint = day.random("encoder")
    documents, sentences = (2, 25) if day.tiny else (2_000, 250)
    words = " ".join(
        f"Sentence {i} says some words about thing {i % 97}." for i in range(sentences)
    )
    texts = (Document(f"d{n}", f"Document {n}. {words}") for n in range(documents))
    found: dict[str, Any] = {"documents": documents}
    with KnowledgeBase.create(
        day.folder / "kb", checkpoint=checkpoint.path, device=day.device
    ) as kb:
        _ = kb.compressor  # Loading is not what is measured.
        with _watched_gpu(day) as shares:
            begun = time.perf_counter()
            report = kb.add(texts)
            seconds = time.perf_counter() - begun
    found |= {"tokens": report.tokens, "seconds": seconds}
    found["tokens_per_second"] = report.tokens / seconds
    if shares:
        found["gpu_busy"] = statistics.mean(shares)
    return found


@contextmanager
def _watched_gpu(day: Day) -> Iterator[list[float]]:
    """The shares of time that nvidia-smi reports while the context lasts, five a second."""
    shares: list[float] = []
    if day.device != "cuda" or shutil.which("nvidia-smi") is None:
        yield shares
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with subprocess.Popen([*query, "-i", "0", "-lms", "200"], stdout=subprocess.PIPE) as watcher:

        def read() -> None:
            assert watcher.stdout is not None
            shares.extend(float(line) / 100 for line in watcher.stdout if line.strip().isdigit())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield shares
        finally:
            watcher.terminate()
            reader.join(5)


def first_tokens(day: Day) -> dict[str, Any]:
    """Time to the first token of a long context: pasted text against latents at 16×."""
    from lclm_rag.decoding.transformers import TransformersDecoder

    decoder = TransformersDecoder.from_pretrained(day.random("whole"), day.device)
    sizes = [256] if day.tiny else [8_192, 32_768, 131_072]
    rows = []
    for size in sizes:
        for ratio in (16, None):
            try:
                found = first_token_of(decoder, size, ratio, 1 if day.tiny else 3)
            except Exception as error:  # Pasted text may not fit; latents still count.
                rows.append({"source_tokens": size, "ratio": ratio, "error": _line(error)})
                continue
            rows.append(
                {
                    "source_tokens": size,
                    "context": found.context,
                    "first_token": found.first_token,
                    "peak_bytes": found.peak_bytes,
                }
            )
            click.echo(f"  {size:>8,} {found.context:14}{found.first_token:8.3f} s", err=True)
    return {"rows": rows}


def out_of_memory(day: Day) -> dict[str, Any]:
    """Out of memory on purpose: compressing and decoding go on with smaller batches."""
    day.need_cuda()
    from lclm_rag.decoding.transformers import TransformersDecoder

    checkpoint = day.random("encoder")
    compressor = Compressor.from_pretrained(checkpoint, day.device, token_budget=2_000_000)
    decoder = TransformersDecoder.from_pretrained(checkpoint, day.device)
    texts = token_ids(700, [1_024] * 1_000)
    prompts = [prompt_of(checkpoint, 2_000, None) for _ in range(32)]
    with _all_but(3 * 2**30):
        latents, _ = compressor.compress_together(texts, "encoder")
        wait()
    with _all_but(2**28):
        outcomes = list(decoder.complete(prompts, Sampling(max_tokens=4)))
    failed = [_line(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
    if failed or not bool(latents.isfinite().all()):
        raise RuntimeError(f"{len(failed)} of {len(prompts)} prompts failed: {failed[:1]}")
    return {"budget": compressor.token_budget, "latents": len(latents), "answered": len(outcomes)}


@contextmanager
def _all_but(bytes_left: int) -> Iterator[None]:
    """Take the GPU's memory, all but so much."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(0, free - bytes_left), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()


def vllm_engine(day: Day) -> dict[str, Any]:
    """vLLM starts beside the compressor, and takes text, items and mixed prompts of a long context."""
    day.need_cuda()
    if importlib.util.find_spec("vllm") is None:
        raise SkippedError("vLLM is not installed")
    from lclm_rag.decoding.vllm import VLLMDecoder

    checkpoint = day.random("whole")
    compressor = Compressor.from_pretrained(checkpoint, day.device)
    compressor.compress(["Some words. " * 5_000])
    begun = time.perf_counter()
    decoder = VLLMDecoder.from_pretrained(checkpoint, day.device)
    found: dict[str, Any] = {
        "seconds_to_start": time.perf_counter() - begun,
        "context_length": decoder.context_length,
    }
    try:
        size = min(131_072, decoder.context_length - 1_024)
        for name, one, ratio in (
            ("items", decoder, 16),
            ("mixed", decoder.with_inputs("mixed"), 16),
            ("text", decoder, None),
        ):
            prompt = prompt_of(checkpoint, size, ratio)
            times = []
            for salt in ("a", "b", "b"):  # The last finds its prefix in the cache.
                salted = type(prompt)(
                    prompt.token_ids, prompt.latents, prompt.spans, prompt.space, salt
                )
                (one_answer,) = all_answered(one.complete([salted], Sampling(max_tokens=8)))
                times.append(one_answer.first_token)
            found[name] = {"source_tokens": size, "first_token": times[1], "cached": times[2]}
            click.echo(f"  {name:8}{times[1]:8.3f} s, cached {times[2]:8.3f} s", err=True)
    finally:
        decoder.close()
    return found


def authors_figures(day: Day) -> dict[str, Any]:
    """RULER's needles at 4,096 tokens with the published weights, beside the authors' own figures."""
    if day.checkpoint is None:
        raise SkippedError("no weights: give --checkpoint")
    day.need_cuda()
    out = day.folder / "ruler"
    command = ["lclm-rag", "eval", "lclm-eval/ruler", "--source", day.ruler, "--out", str(out)]
    command += ["--checkpoint", day.checkpoint, "--context", "latents", "--alone", "0"]
    command += ["--count", str(day.questions), "--device", day.device]
    for task in AUTHORS:
        command += ["--task", f"*{task}_4096"]
    done = subprocess.run(
        [sys.executable, "-m", "lclm_rag.cli", *command[1:]], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    categories = json.loads((out / "report.json").read_text())["categories"]
    rows = {}
    for task, wanted in AUTHORS.items():
        scores = [c["modes"]["latents"] for name, c in categories.items() if task in name]
        found = 100 * statistics.mean(scores)
        rows[task] = {"ours": found, "authors": wanted, "within": abs(found - wanted) <= _WITHIN}
        click.echo(f"  {task:18}{found:7.1f}{wanted:7.1f}", err=True)
    return rows


STEPS: dict[str, tuple[Callable[[Day], dict[str, Any]], float]] = {
    "load": (load_and_compress, 30),
    "same_latents": (same_latents, 20),
    "waits": (syncs_of_codecs, 15),
    "packing_check": (packing_check, 30),
    "encoder": (encoder_speed, 90),
    "build": (build, 60),
    "first_token": (first_tokens, 90),
    "out_of_memory": (out_of_memory, 30),
    "vllm": (vllm_engine, 150),
    "ruler": (authors_figures, 300),
}
"""The steps in their order: each with the seconds without which it is not begun."""


# --- the day --------------------------------------------------------------------------------------------


def run_step(day: Day, name: str) -> dict[str, Any]:
    """One step's outcome: its figures, why it was left out, or how it failed."""
    step, seconds = STEPS[name]
    left = day.ends - time.monotonic()
    needed = 0.0 if day.tiny else seconds
    if left <= needed:
        return {"outcome": f"skipped: {left:.0f} s are left, and it may take {needed:.0f} s"}
    begun = time.monotonic()
    try:
        with _at_most(left):
            figures = step(day)
        return {"outcome": "done", "took": time.monotonic() - begun, **figures}
    except SkippedError as reason:
        return {"outcome": f"skipped: {reason}"}
    except Exception as error:
        trace = traceback.format_exc().splitlines()[-12:]
        return {"outcome": f"failed: {_line(error)}", "took": time.monotonic() - begun, "at": trace}
    finally:
        if day.device == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End what runs within the context, once Python has its turn, after so many seconds."""

    def over(*_: object) -> None:
        raise TimeoutError("the time is over")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.option("--minutes", default=10.0, show_default=True, help="For all steps together.")
@click.option("--step", "steps", multiple=True, type=click.Choice(list(STEPS)), help="Only this.")
@click.option("--tiny", is_flag=True, help="Small sizes: tries the steps out.")
@click.option("--checkpoint", help="With real weights: a folder or a hub id.")
@click.option("--ruler", default="latent-context/lclm-eval", show_default=True, help="Its data.")
@click.option("--questions", default=100, show_default=True, help="Of each task of RULER.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "gpu_day.json",
    help="The JSON.",
)
def main(
    minutes: float,
    steps: tuple[str, ...],
    tiny: bool,
    checkpoint: str | None,
    ruler: str,
    questions: int,
    out: Path,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny:
        raise click.ClickException("There is no CUDA device here; --tiny tries the steps out.")
    disable_progress_bar()
    ends = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {"machine": machine(), "tiny": tiny, "minutes": minutes, "steps": {}}
    with tempfile.TemporaryDirectory() as folder:
        day = Day(Path(folder), device, tiny, checkpoint, ruler, questions, ends)
        for name in steps or STEPS:
            click.echo(f"{name}: {STEPS[name][0].__doc__}", err=True)
            result = run_step(day, name)
            found["steps"][name] = result
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1) + "\n")
            click.echo(f"  {result['outcome']}", err=True)
    click.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
