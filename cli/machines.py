"""The options of estimate about machines, and what follows from them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.options import CODEC, together

if TYPE_CHECKING:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.estimate.cluster import ClusterPlan, Needs
    from lclm_rag.estimate.store import CorpusSize

__all__ = ["GPUS", "MACHINE_OPTIONS", "as_plain", "machine_options", "planned"]

# As in lclm_rag.estimate.store, which imports numpy.
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
    from lclm_rag.estimate.cluster import Needs, plan_cluster
    from lclm_rag.estimate.serving import Questions
    from lclm_rag.estimate.shapes import PUBLISHED, PUBLISHED_DECODER, DecoderShape, LclmShape

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
        {**asdict(each), "gpus": each.gpus, "paid_back_after": plan.paid_back_after(each)}
        for each in plan.serving
    ]
    limits = [{**asdict(limit), "share": limit.share} for limit in plan.limits]
    return {"needs": asdict(needs), **asdict(plan), "serving": serving, "limits": limits}
