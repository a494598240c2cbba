"""The tables that estimate prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.filesize import decimal
from rich.table import Column, Table

from lclm_rag.cli.formatting import say
from lclm_rag.cli.progress import stdout
from lclm_rag.estimate.devices import Gpu
from lclm_rag.estimate.index import SERVER_CORES, IndexPlan
from lclm_rag.estimate.serving import Context, Questions
from lclm_rag.estimate.store import CorpusSize, StorePlan


def show_size(size: CorpusSize, passage_tokens: int, bytes_per_token: float | None) -> None:
    """Print the size of the corpus: documents, text, tokens, passages."""
    how = "counted" if bytes_per_token is None else f"at {bytes_per_token:g} bytes a token"
    say(f"{'documents':16}{size.documents:,}")
    say(f"{'text':16}{decimal(size.text_bytes)}")
    say(f"{'source tokens':16}{size.tokens:,}, {how}")
    say(f"{'passages':16}{size.passages:,}, of at most {passage_tokens:,} tokens")


def show_stores(stores: Sequence[StorePlan]) -> None:
    """Print a table of the stores: a row for each ratio and space, a column for each codec."""
    # Codecs of the same size share a column.
    columns: dict[tuple[int, ...], list[str]] = {}
    for codec in stores[0].bytes:
        columns.setdefault(tuple(store.bytes[codec] for store in stores), []).append(codec)
    rows = [
        [f"{s.compression_ratio}x", f"{s.space} {s.width}", f"{s.latents:,}", *map(decimal, sizes)]
        for s, sizes in zip(stores, zip(*columns, strict=True), strict=True)
    ]
    codecs = [", ".join(names) for names in columns.values()]
    _table("The store on disk, text included", ["ratio", "space, width", "latents", *codecs], rows)


def show_compressing(stores: Sequence[StorePlan], gpus: Iterable[Gpu]) -> None:
    """Print a table of GPU hours and costs for the store that takes the most FLOPs to compress."""
    costliest = max(stores, key=lambda store: store.flops)
    rows = []
    for gpu in gpus:
        row = [gpu.name, f"{gpu.flops / 1e12:,.0f}", f"{costliest.gpu_hours[gpu.name]:,.2f}"]
        price = f"${gpu.dollars_per_hour:,.2f}"
        rows.append([*row, price, _money(costliest.gpu_cost[gpu.name])])
    columns = ["GPU", "peak TFLOP/s", "GPU hours", "an hour", "cost"]
    _table(f"Compressing: {costliest.flops:.2e} FLOPs", columns, rows)


def show_index(index: IndexPlan, replicas: int, node_bytes: float) -> None:
    """Print what the passage index takes: memory, disk and Qdrant servers."""
    say("\nThe passage index")
    say(f"{'memory':16}{decimal(index.ram_bytes)}, of one copy")
    say(f"{'disk':16}{decimal(index.disk_bytes)}, of one copy")
    servers = (
        f"{index.nodes:,} of {node_bytes / 2**30:g} GiB and {SERVER_CORES} cores, {replicas} copies"
    )
    say(f"{'Qdrant servers':16}{'none: the embedded index will do' if index.embedded else servers}")


def show_contexts(contexts: Sequence[Context], questions: Questions, gpu: Gpu) -> None:
    """Print a table that compares the contexts: prompt positions, throughput, GPUs and cost."""
    labels = ["prompt positions", "questions/s, one GPU", f"GPUs for {questions.per_second:,g}/s"]
    labels += ["GPU cost of 1,000", "paid back, questions"]
    columns = []
    for context in contexts:
        column = [f"{context.positions:,}"]
        if each := context.serving:
            column += [f"{1 / each.gpu_seconds:,.3g}", f"{each.gpus:,}", _money(each.cost_per_1000)]
            column += [f"{context.paid_back_after:,.0f}" if context.paid_back_after else "–"]
        columns.append(column + ["does not fit"] * (len(labels) - len(column)))
    lengths = f"{questions.question_tokens} tokens of question, {questions.answer_tokens} of answer"
    title = f"Answering on {gpu.name}: {questions.top_k} passages, {lengths}"
    _table(title, ["context", *(c.name for c in contexts)], zip(labels, *columns, strict=True))


def show_assumptions(
    names: Iterable[str], bytes_per_token: float | None, utilization: float, of_encoder: float
) -> None:
    """Print what the estimate assumes, and what it leaves out."""
    guess = f"a token is {bytes_per_token:g} bytes of text; " if bytes_per_token else ""
    stdout.print(
        f"\nSizes of {', '.join(dict.fromkeys(names))}; FLOPs of the costliest store.\nAssumed: {guess}a "
        f"GPU reaches {utilization:.0%} of its peak ({of_encoder:.0%} while it compresses), is kept busy and "
        "finds nothing in a prefix cache; its price, which differs between providers.\nNot counted: CPUs, "
        "disks, network; the GPU that makes dense vectors; room for peaks.",
        soft_wrap=True,
        markup=False,
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    numbers = [Column(name, justify="right") for name in columns[1:]]
    table = Table(columns[0], *numbers, title=f"\n{title}")
    for row in rows:
        table.add_row(*row)
    stdout.print(table)


def _money(dollars: float) -> str:
    return f"${dollars:,.0f}" if dollars >= 100 else f"${dollars:.{2 if dollars >= 1 else 4}f}"
