"""The part of estimate that is about machines: its options and its tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.options import CODEC, together

if TYPE_CHECKING:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.estimate import CorpusSize
    from lclm_rag.estimate_cluster import ClusterPlan, Needs
    from lclm_rag.estimate_limits import Limit
    from lclm_rag.estimate_serving import Serving

__all__ = ["MACHINE_OPTIONS", "as_plain", "machine_options", "planned", "show_machines"]

# As in lclm_rag.estimate, which imports numpy.
GPUS = ["H200 SXM", "H100 SXM", "L40S", "A100", "RTX 4090", "L4"]

_MOST_PASSAGES = 10**15
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def _count(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """A callback: 250000, 250k, 100M, 2.5B."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kmb]?)", value.strip().lower())
    number = float(found[1].replace("_", "")) * _UNITS[found[2]] if found else 0.0
    if not 1 <= number <= _MOST_PASSAGES:
        raise click.BadParameter(f"{value!r} is not a count like 250000, 250k, 100M or 10B.")
    return round(number)


def _finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A callback; what click takes for a float may be infinite."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not finite.")
    return value


def _above_zero(name: str, default: float | None, help: str) -> Any:
    return click.option(
        name,
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=default is not None,
        callback=_finite,
        help=help,
    )


machine_options = together(
    click.option(
        "--passages",
        callback=_count,
        metavar="COUNT",
        help="No CORPUS, but so many passages: 250k, 100M, 10B. Each has --passage-tokens, 512 by default.",
    ),
    _above_zero(
        "--questions-per-second",
        None,
        "Also the machines: to compress, to index, and to answer so many questions.  "
        "[default: 10 with --passages]",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="Passages in a prompt.",
    ),
    click.option(
        "--ratio",
        type=click.Choice(["4", "8", "16"]),
        default="16",
        show_default=True,
        help="Of the published checkpoint in the store.",
    ),
    click.option(
        "--codec",
        type=click.Choice(CODEC),
        default="int4",
        show_default=True,
        help="How latents are stored.",
    ),
    click.option(
        "--space",
        type=click.Choice(["encoder", "decoder"]),
        default="encoder",
        show_default=True,
        help="Latents before the adapter, or after it.",
    ),
    _above_zero("--deadline-hours", 24.0, "For compressing and indexing."),
    click.option(
        "--gpu",
        type=click.Choice(GPUS, case_sensitive=False),
        default="H100 SXM",
        show_default=True,
        metavar="NAME",
        help=f"For compressing and answering: {', '.join(GPUS)}.",
    ),
    _above_zero("--gpu-hour-price", 3.0, "In $. The default is an assumption: give your own."),
    click.option(
        "--dense-width",
        type=click.IntRange(min=0),
        default=1024,
        show_default=True,
        help="Numbers in a dense vector; 0: BM25 alone.",
    ),
    _above_zero("--machine-memory", 64.0, "GiB of each machine that serves or opens an index."),
    click.option(
        "--replicas",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        help="Copies of each shard of the passage index on a Qdrant cluster.",
    ),
)

MACHINE_OPTIONS = (
    "top_k",
    "ratio",
    "codec",
    "space",
    "deadline_hours",
    "gpu",
    "gpu_hour_price",
    "dense_width",
    "machine_memory",
    "replicas",
)


def planned(
    size: CorpusSize,
    checkpoint: Checkpoint | None,
    questions_per_second: float,
    utilization: float,
    options: dict[str, Any],
) -> tuple[Needs, ClusterPlan]:
    """What the options ask for, and what it takes. options: `MACHINE_OPTIONS`."""
    from lclm_rag.estimate_cluster import Needs, plan_cluster
    from lclm_rag.estimate_serving import Questions
    from lclm_rag.model_shapes import PUBLISHED, PUBLISHED_DECODER, DecoderShape, LclmShape

    needs = Needs(
        questions=Questions(questions_per_second, options["top_k"]),
        codec=options["codec"],
        space=options["space"],
        deadline_hours=options["deadline_hours"],
        gpu=options["gpu"],
        gpu_hour_price=options["gpu_hour_price"],
        utilization=utilization,
        dense_width=options["dense_width"],
        machine_bytes=options["machine_memory"] * 2**30,
        replicas=options["replicas"],
    )
    if checkpoint is not None:
        shape, decoder = LclmShape.of(checkpoint), DecoderShape.of(checkpoint)
        return needs, plan_cluster(size, shape, decoder, needs)
    ratio = int(options["ratio"])
    (shape,) = (each for each in PUBLISHED if each.config.compression_ratio == ratio)
    others = [each for each in reversed(PUBLISHED) if each is not shape]
    return needs, plan_cluster(size, shape, PUBLISHED_DECODER, needs, others)


def as_plain(needs: Needs, plan: ClusterPlan) -> dict[str, Any]:
    """For JSON."""
    serving = [
        {**asdict(each), "gpus": each.gpus, "paid_back_after": _paid_back(plan, each)}
        for each in plan.serving
    ]
    limits = [{**asdict(limit), "share": limit.share} for limit in plan.limits]
    return {"needs": asdict(needs), **asdict(plan), "serving": serving, "limits": limits}


def show_machines(size: CorpusSize, needs: Needs, plan: ClusterPlan, names: Sequence[str]) -> None:
    """names: of the checkpoints whose sizes were taken."""
    _show_files(size, needs, plan)
    _show_compressing(needs, plan)
    _show_index(needs, plan)
    _show_serving(needs, plan)
    _show_limits(plan)
    _show_assumptions(size, needs, plan, names)


def _show_files(size: CorpusSize, needs: Needs, plan: ClusterPlan) -> None:
    from rich.filesize import decimal

    files, form = plan.files, plan.serving[0].prompt.form
    click.echo(f"\nThe store: {form}, {needs.codec}, {needs.space} space")
    times = files.bytes / max(1, size.text_bytes)
    _line("bytes", f"{decimal(files.bytes)}, {times:.1f} times the text")
    _line("fragments", f"{files.fragments:,} as built, {files.compacted:,} once compacted")
    _line("manifest", f"{decimal(files.manifest_bytes)}, written anew by each version")
    _line(
        "opening",
        f"{_seconds(files.opening_seconds)} and {decimal(files.opening_memory)} of memory in each "
        f"process, {decimal(files.held_memory)} from then on",
    )


def _show_compressing(needs: Needs, plan: ClusterPlan) -> None:
    from rich.filesize import decimal

    found = plan.compressing
    click.echo(f"\nCompressing within {needs.deadline_hours:g} h")
    _line(
        "GPUs",
        f"{found.gpus:,} {needs.gpu}, one Ray actor each: {found.gpu_hours:,.1f} GPU hours, "
        f"{_money(found.cost)}",
    )
    _line("readers", f"{found.tokens_per_second:,.0f} tokens/s to split and tokenize")
    _line("writer", f"{decimal(round(found.written_bytes_per_second))}/s")


def _show_index(needs: Needs, plan: ClusterPlan) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    from lclm_rag.cli.progress import stdout
    from lclm_rag.estimate_machines import SERVER_CORES

    table = Table(title=f"\nThe passage index: {plan.indexes[0].points:,} points")
    table.add_column("dense vectors")
    for column in ("memory", "disk", "Qdrant servers", "shards"):
        table.add_column(column, justify="right")
    for index in plan.indexes:
        memory, disk = decimal(index.ram_bytes), decimal(index.disk_bytes)
        table.add_row(index.form, memory, disk, f"{index.nodes:,}", f"{index.shards:,}")
    stdout.print(table)
    if not plan.index_server:
        click.echo("The embedded index will do.")
    cores = plan.indexes[0].cores
    click.echo(
        f"Servers of {needs.machine_bytes / 2**30:g} GiB and {SERVER_CORES} cores, {needs.replicas} copies; "
        f"BM25 keeps {f'{cores:,.0f}' if cores >= 10 else f'{cores:.2g}'} cores busy."
    )


def _show_serving(needs: Needs, plan: ClusterPlan) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    from lclm_rag.cli.progress import stdout

    rate = needs.questions.per_second

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    def each(shown: Any) -> list[str]:
        return [shown(serving) for serving in plan.serving]

    table = Table(title=f"\nAnswering on {needs.gpu} from {needs.questions.top_k} passages, as")
    table.add_column("")
    for serving in plan.serving:
        table.add_column(serving.prompt.form, justify="right")
    row("prompt positions", *each(lambda s: f"{s.prompt.positions:,}"))
    row("prefill TFLOP", *each(lambda s: f"{s.prefill_flops / 1e12:,.1f}"))
    row("KV cache", *each(lambda s: decimal(s.kv_bytes)))
    row("questions at once", *each(lambda s: f"{s.at_once:,}"))
    row("questions/s, one GPU", *each(lambda s: f"{1 / s.gpu_seconds:,.3g}"))
    row(f"GPUs for {rate:,g}/s", *each(_gpus))
    row("GPU cost of 1,000", *each(lambda s: _money(s.cost_per_1000)))
    row("read from store", *each(lambda s: f"{decimal(round(rate * s.prompt.read_bytes))}/s"))
    row("sent to vLLM", *each(lambda s: f"{decimal(round(rate * s.prompt.sent_bytes))}/s"))
    row("paid back, questions", *each(lambda s: _paid_back_in_words(plan, s)))
    stdout.print(table)
    for prompt in plan.too_long:
        click.echo(
            f"As {prompt.form}: {prompt.positions:,} positions, more than the decoder takes."
        )


def _show_limits(plan: ClusterPlan) -> None:
    from rich.table import Table

    from lclm_rag.cli.progress import stdout
    from lclm_rag.estimate_limits import next_limit, split_by

    table = Table(title="\nWhat gives out, and where")
    table.add_column("limit")
    table.add_column("at", justify="right")
    table.add_column("here", justify="right")
    table.add_column("then")
    for limit in plan.limits:
        here = "< 1%" if limit.share < 0.01 else f"{limit.share:.0%}"
        if limit.share >= 10:
            here = f"{limit.share:,.0f}x"
        then = limit.remedy or "more knowledge bases"
        table.add_row(limit.what, _reached_at(limit), here, then)
    stdout.print(table)
    if plan.knowledge_bases > 1:
        reason = split_by(plan.limits)
        click.echo(
            f"Too large for one knowledge base ({reason.what}: {_reached_at(reason)}). Make "
            f"{plan.knowledge_bases:,}, and ask them side by side from a program of yours."
        )
    following = [next_limit(plan.limits, unit) for unit in ("passages", "questions/s")]
    if named := [f"{limit.what}, at {_reached_at(limit)}" for limit in following if limit]:
        click.echo(f"Next limit: {'; '.join(named)}.")


def _show_assumptions(
    size: CorpusSize, needs: Needs, plan: ClusterPlan, names: Sequence[str]
) -> None:
    from rich.filesize import decimal

    from lclm_rag.cli.progress import stdout
    from lclm_rag.estimate_machines import terms_of

    asked = needs.questions
    more = decimal(max(0, plan.files.bytes - size.text_bytes))
    stdout.print(
        f"\nSizes of {', '.join(names)}.\n"
        f"Assumed: {needs.utilization:.0%} of the GPU's peak, for FLOPs and for memory; "
        f"${needs.gpu_hour_price:g} a GPU hour; questions of {asked.question_tokens} tokens, answers of "
        f"{asked.answer_tokens}; GPUs kept busy, no prefix cache hits; {terms_of(1):g} BM25 terms a token; "
        "writing, opening and indexing as fast as on two busy CPU cores, the store on a local disk; of an "
        "object store, no passage in the cache.\n"
        f"Not counted: disks (the store is {more} more than the text alone), CPUs and network; the GPU that "
        "makes dense vectors; room for peaks.",
        soft_wrap=True,
        markup=False,
    )


def _line(name: str, value: str) -> None:
    click.echo(f"  {name:14}{value}")


def _gpus(serving: Serving) -> str:
    split = serving.tensor_parallel
    return f"{serving.gpus:,}" + (f", {split} a server" if split > 1 else "")


def _paid_back(plan: ClusterPlan, serving: Serving) -> float | None:
    """None for pasted text itself, where it does not fit into the context, and where it is never."""
    from lclm_rag.estimate_cluster import paid_back_after

    text = plan.serving[-1]
    if serving is text or text.prompt.form != "pasted text":
        return None
    return paid_back_after(plan.compressing, serving, text)


def _paid_back_in_words(plan: ClusterPlan, serving: Serving) -> str:
    text = plan.serving[-1]
    if serving is text or text.prompt.form != "pasted text":
        return "–"
    after = _paid_back(plan, serving)
    return "never" if after is None else _short(after)


def _reached_at(limit: Limit) -> str:
    return f"{_short(limit.reached_at)} {limit.unit}"


def _short(number: float) -> str:
    """Two digits or three: 9.2M, 57."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:,.0f}{unit}" if scaled >= 10 else f"{scaled:.1f}{unit}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _money(amount: float) -> str:
    return f"${amount:,.0f}" if amount >= 100 else f"${amount:,.3g}"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
