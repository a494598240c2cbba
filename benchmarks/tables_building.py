"""The tables of docs/benchmarks.md on compressing a corpus, and on the machines that it will take."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

from tables_markdown import (
    duration,
    machine_of,
    markdown,
    names,
    percent,
    results,
    runs,
    size,
    source,
    times,
)

__all__ = [
    "build_memory",
    "compressor",
    "estimate",
    "estimate_constants",
    "machines",
    "scale",
]

CORPORA = {"1 million passages": ("1M", "10"), "100 million passages": ("100M", "100")}
"""Columns of the estimate: passages and questions a second."""

MACHINE_MEMORY, REPLICAS = 64, 2
"""Given to `lclm-rag estimate`: GiB of a Qdrant server, and copies of the passage index."""


def compressor() -> str:
    """Source tokens a second, for texts of several lengths."""
    found = results("compressor")
    titles = {
        "plain": "the plain loop",
        "plain, sorted": "the plain loop, sorted",
        "bare encoder": "the bare encoder",
    }
    rows = [
        [
            run["lengths"],
            titles.get(run["way"], run["way"]),
            f"{run['tokens_per_second']:,.0f}",
            times(run["to_plain"], 1),
            times(run["to_bare"]),
            percent(run["share"], 0),
        ]
        for run in found["results"]
    ]
    columns = ["texts", "compressed by", "source tokens a second", "to the plain loop"]
    columns += ["to the bare encoder", "share of the matrix product rate"]
    notes = (
        f"An encoder of {found['encoder_parameters'] / 1e6:.0f} million parameters in {found['dtype']} on "
        f"{found['threads']} threads, {found['results'][0]['tokens']:,} tokens of each length; speeds are "
        f"the best round, ratios medians over all rounds: `{found['provenance']['command']}`. "
        f"{source('compressor')}"
    )
    return markdown(columns, rows, notes, left=2)


def scale() -> str:
    """Encoders on Ray, beside as many bare encoder processes."""
    found = runs("scale")
    one = found[0]
    rows = [
        [
            str(run["workers"]),
            *(
                f"{times(run[rate] / one[rate])} ({run[rate]:,.0f})"
                for rate in ("tokens_per_second", "bare_tokens_per_second")
            ),
            f"{times(one['seconds'] / run['seconds'])} ({duration(run['seconds'])})",
            duration(run["seconds"] - run["tokens"] / run["tokens_per_second"]),
        ]
        for run in found
    ]
    columns = [
        "encoders",
        "on Ray: to one (tokens a second)",
        "bare processes: to one (tokens a second)",
    ]
    columns += [
        "the whole `add` on Ray, by the clock: to one (time)",
        "of it starting and committing",
    ]
    notes = f"`{results('scale')['provenance']['command']}`: {one['tokens']:,} tokens. {source('scale')}"
    return markdown(columns, rows, notes)


def build_memory() -> str:
    """Memory of a build from a large JSONL file, above that of a tiny one."""
    found = results("build_memory")
    rows = [
        [
            run["corpus"],
            size(run["corpus_mib"]),
            f"{run['documents']:,}",
            f"{run['tokens']:,}",
            percent(run["text_share"]),
            size(run["peak_mib"]),
        ]
        for run in found["results"]
    ]
    columns = ["corpus", "JSONL", "documents", "source tokens", "compressed share of its bytes"]
    columns += ["resident memory at most"]
    notes = f"The large corpus took {size(found['above_tiny_mib'])} more than the tiny one."
    return markdown(columns, rows, f"{notes} {source('build_memory')}")


def estimate() -> str:
    """What `lclm-rag estimate` works out for two corpora; a calculation, no measurement."""
    plans = [_estimated(*corpus) for corpus in CORPORA.values()]
    rows = [list(cells) for cells in zip(*map(_estimate_rows, plans), strict=True)]
    labels = [
        "store in int4, text included",
        "compressing on one GPU",
        "passage index: memory",
        "passage index: disk",
        "Qdrant servers",
        "GPUs that answer: latents / pasted text",
        "GPU cost of 1,000 questions: latents / pasted text",
        "compressing is paid back after",
    ]
    columns = [""]
    for title, (_, per_second) in CORPORA.items():
        columns.append(f"{title}, {per_second} questions a second")
    plan = plans[0]
    machines, store = plan["machines"], _store(plan)
    gpu = machines["gpu"]
    notes = (
        f"{store['checkpoint'].split('/')[-1]}, latents of width {store['width']}; "
        f"{plan['passage_tokens']} tokens a passage, {machines['questions']['top_k']} passages a question; "
        f"{gpu['name']} at {plan['utilization']:.0%} of its peak and ${gpu['dollars_per_hour']} an hour; "
        f"servers of {MACHINE_MEMORY} GiB, {REPLICAS} copies. "
        f"`lclm-rag estimate --passages 100M --questions-per-second 100`"
    )
    return markdown(columns, [[a, *b] for a, b in zip(labels, rows, strict=True)], notes)


def _estimated(passages: str, per_second: str) -> dict[str, Any]:
    """Runs the command in this process, so that its own defaults hold."""
    from lclm_rag.cli.estimate import estimate as command

    arguments = ["--passages", passages, "--questions-per-second", per_second, "--json"]
    arguments += ["--machine-memory", str(MACHINE_MEMORY), "--replicas", str(REPLICAS)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        command.main(arguments, standalone_mode=False)
    plan: dict[str, Any] = json.loads(out.getvalue())
    return plan


def _store(plan: dict[str, Any]) -> dict[str, Any]:
    """The store of the highest ratio in encoder space."""
    stores = [store for store in plan["stores"] if store["space"] == "encoder"]
    found: dict[str, Any] = max(stores, key=lambda store: store["compression_ratio"])
    return found


def _estimate_rows(plan: dict[str, Any]) -> list[str]:
    store, machines = _store(plan), plan["machines"]
    index, gpu = machines["index"], machines["gpu"]["name"]
    by = {context["name"]: context for context in machines["contexts"]}
    latents, text = by[f"latents {store['compression_ratio']}x"], by["text"]
    served = [context["serving"] for context in (latents, text)]
    return [
        _decimal(store["bytes"]["int4"]),
        f"{store['gpu_hours'][gpu]:.2g} hours, ${store['gpu_cost'][gpu]:,.3g}",
        _decimal(index["ram_bytes"]),
        _decimal(index["disk_bytes"]),
        "none: the embedded index will do" if index["embedded"] else f"{index['nodes']:,}",
        " / ".join(f"{each['gpus']:,}" for each in served),
        " / ".join(f"${each['cost_per_1000']:.3f}" for each in served),
        f"{latents['paid_back_after']:,.0f} questions",
    ]


def _decimal(count: float) -> str:
    """Shows bytes as disks are sold: 18.9 GB, 1.9 TB."""
    unit, power = ("TB", 12) if count >= 1e12 else ("GB", 9)
    return f"{count / 10**power:,.1f} {unit}"


def estimate_constants() -> str:
    """What a point of the passage index takes."""
    found = results("estimate_constants")
    titles = {
        "_INDEX_BYTES_PER_TERM": "inverted index",
        "_VECTOR_BYTES_PER_TERM": "sparse vectors",
        "_PAYLOAD_BYTES": "payload and the rest",
        "_ID_BYTES": "id and version",
    }
    rows = [
        [titles[run["name"]], f"{run['value']:.3g} bytes", run["unit"].split(" ", 1)[1]]
        for run in found["results"]
    ]
    notes = f"{found['points']:,} points. {source('estimate_constants')}"
    return markdown(["part", "value", "for"], rows, notes)


def machines() -> str:
    """Machines and versions of all results."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name in names():
        if (machine := machine_of(results(name))) is not None:
            kinds.setdefault(machine, []).append(name)
    rows = [[f"{len(found)} results", *machine] for machine, found in kinds.items()]
    columns = ["measured", "CPU cores", "GPU", "Python", "torch", "transformers", "vLLM"]
    without = [name for name in names() if machine_of(results(name)) is None]
    notes = (
        f"No machine is noted in {', '.join(f'`{name}.json`' for name in without)}."
        if without
        else ""
    )
    return markdown(columns, rows, notes)
