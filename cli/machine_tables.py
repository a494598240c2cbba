"""The tables of estimate about machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lclm_rag.estimate.cluster import ClusterPlan, Needs
    from lclm_rag.estimate.limits import Limit
    from lclm_rag.estimate.serving import Serving
    from lclm_rag.estimate.store import CorpusSize

__all__ = ["show_machines"]


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
    from lclm_rag.estimate.machines import SERVER_CORES

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
    row("paid back, questions", *each(lambda s: _paid_back(plan, s)))
    stdout.print(table)
    for prompt in plan.too_long:
        click.echo(
            f"As {prompt.form}: {prompt.positions:,} positions, more than the decoder takes."
        )


def _show_limits(plan: ClusterPlan) -> None:
    from rich.table import Table

    from lclm_rag.cli.progress import stdout
    from lclm_rag.estimate.limits import next_limit, split_by

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
    from lclm_rag.estimate.machines import terms_of

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


def _paid_back(plan: ClusterPlan, serving: Serving) -> str:
    from lclm_rag.estimate.serving import TEXT

    text = plan.serving[-1]
    if serving is text or text.prompt.form != TEXT:
        return "–"
    after = plan.paid_back_after(serving)
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
