"""The embedded passage index from ten thousand passages to a million: where does it stop being pleasant?

For each size and way (BM25 alone, the default; BM25 and dense vectors of width 384) the index of a knowledge
base is made from a store of made-up passages, as `lclm-rag build` makes it, opened and asked questions by
another process, and brought up to date by one that adds a document. Then all that once more after
`optimize()`, as `lclm-rag compact` calls it. Everything goes through our own code: private folders, snapshots
and their checksums.

Words are drawn as in English: rank r comes up as often as 1 / (100 + r), because the first hundred ranks are
mostly stop words, which BM25 leaves out. Questions are six words of a passage. Dense vectors are made up,
around a thousand centres: they cost what real ones cost, and find nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from index_scale_steps import MIB, TOP_K, WAYS, WIDTH, add_document, build_store, disk_bytes

STATES = ("ingested", "optimized")
STEPS = Path(__file__).with_name("index_scale_steps.py")


@dataclass(frozen=True)
class Scale:
    """One size, way and state. None: the step did not end within the patience, or could not begin.

    made_seconds: to ingest the passages of a store, or to optimize what was ingested; published_seconds: to
    publish the result. made_peak_mib: the most memory that either took. disk_mib: of the snapshot.
    first_hit_seconds: until another process has opened the index (imports left out) and found something;
    opened_mib, queried_mib: what is resident in it then, and after all questions, pages of mapped files
    included; anonymous_mib: without these. p50_ms, p95_ms: of a search, by which filter it had; questions:
    how many were asked with each, 200 or what a minute allowed.
    add_seconds: until a process that opens the knowledge base after one more document came into the store
    has found it; add_published_seconds: until the others can, from then on; add_disk_mib: the most disk that
    it took meanwhile.
    """

    points: int
    way: str
    state: str
    made_seconds: float | None = None
    published_seconds: float | None = None
    made_peak_mib: float | None = None
    disk_mib: float | None = None
    first_hit_seconds: float | None = None
    opened_mib: float | None = None
    queried_mib: float | None = None
    anonymous_mib: float | None = None
    p50_ms: dict[str, float] | None = None
    p95_ms: dict[str, float] | None = None
    questions: dict[str, int] | None = None
    add_seconds: float | None = None
    add_published_seconds: float | None = None
    add_disk_mib: float | None = None


@click.command()
@click.option("--sizes", default="10000,30000,100000,300000,1000000", show_default=True)
@click.option("--patience", default=3600, show_default=True, help="Seconds that one step may take.")
@click.option("--resume", is_flag=True, help="Keep what --out holds, and measure what it lacks.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="For the store.  [default: a temporary one]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "index_scale",
    help="Where the JSON and the plot go.",
)
def main(sizes: str, patience: int, resume: bool, folder: Path | None, out: Path) -> None:
    """Example: python benchmarks/index_scale.py --sizes 10000,30000"""
    from shared import machine, write_results

    about = {"machine": machine(), "width": WIDTH, "top_k": TOP_K, "patience_seconds": patience}
    wanted = [int(size) for size in sizes.split(",")]
    results = kept(out.with_suffix(".json"), wanted) if resume else []
    for points in wanted:
        done = {(r.points, r.way) for r in results}
        missing = [way for way in WAYS if (points, way) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            path = Path(temporary)
            build_store(path, points)
            for way in missing:
                for state in STATES:
                    results.append(scale(path, points, way, state, patience))
                    click.echo(line(results[-1]))
                    write_results(out, about, results)
    plot(results, out.with_suffix(".png"))


def kept(file: Path, wanted: list[int]) -> list[Scale]:
    """What was measured earlier, but for wanted sizes of which a state is missing."""
    if not file.exists():
        return []
    rows = [Scale(**row) for row in json.loads(file.read_text())["results"]]
    whole = {(r.points, r.way) for r in rows if r.state == STATES[-1]}
    return [r for r in rows if (r.points, r.way) in whole or r.points not in wanted]


def line(r: Scale) -> str:
    def shown(value: float | None, unit: str) -> str:
        return "—" if value is None else f"{value:,.3g} {unit}"

    p50 = ", ".join(f"{name} {ms:.3g}" for name, ms in (r.p50_ms or {}).items())
    return (
        f"{r.points:>9,} {r.way:13}{r.state:10} made {shown(r.made_seconds, 's')}, "
        f"{shown(r.disk_mib, 'MiB')} on disk, first hit {shown(r.first_hit_seconds, 's')}, resident "
        f"{shown(r.queried_mib, 'MiB')}, p50 ms by filter: {p50 or '—'}; one more document "
        f"{shown(r.add_seconds, 's')} + {shown(r.add_published_seconds, 's')}, "
        f"{shown(r.add_disk_mib, 'MiB')}"
    )


def scale(path: Path, points: int, way: str, state: str, patience: int) -> Scale:
    """All steps, each in a process of its own."""
    found: dict[str, Any] = {}
    for step in (["ingest"] if state == "ingested" else ["optimize"]) + ["ask", "add"]:
        said = in_a_process(step, path, points, way, patience)
        if said is None:
            break
        found |= said
    return Scale(points, way, state, **found)


def in_a_process(
    step: str, path: Path, points: int, way: str, patience: int
) -> dict[str, Any] | None:
    """What a step says; None where it had to be ended. While it runs, the disk that it takes is watched."""
    if step != "ask":  # A snapshot is told from those before it by the version of the store.
        add_document(path, points)
    before = most = disk_bytes(path / way)
    command = [sys.executable, str(STEPS), step, str(path), str(points), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as p:
        ends = time.monotonic() + patience
        while p.poll() is None:
            if time.monotonic() > ends:
                os.killpg(p.pid, signal.SIGKILL)  # The engine optimizes in a process of its own.
                return None
            most = max(most, disk_bytes(path / way))
            time.sleep(0.05)
        assert p.stdout is not None
        if p.returncode:
            raise click.ClickException(f"The step {step!r} failed.")
        said: dict[str, Any] = json.loads(p.stdout.read())
    return said | ({"add_disk_mib": (most - before) / MIB} if step == "add" else {})


def plot(results: list[Scale], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 5))
    curves = [(way, state, colour) for colour, way in enumerate(WAYS) for state in STATES]
    for way, state, colour in curves:
        rows = sorted(
            (r for r in results if (r.way, r.state) == (way, state) and r.p50_ms),
            key=lambda r: r.points,
        )
        points = [r.points for r in rows]
        style: dict[str, Any] = {
            "color": f"C{colour}",
            "marker": "o" if state == STATES[0] else "s",
        }
        dashed = "--" if state == STATES[0] else "-"
        label = f"{way}, {state}"
        p50 = [(r.p50_ms or {})["none"] for r in rows]
        p95 = [(r.p95_ms or {})["none"] for r in rows]
        axes[0].plot(points, p50, linestyle=dashed, label=label, **style)
        axes[0].fill_between(points, p50, p95, color=style["color"], alpha=0.12)
        axes[1].plot(points, [r.first_hit_seconds for r in rows], ls=dashed, label=label, **style)
        changed = [(r.add_seconds or 0) + (r.add_published_seconds or 0) for r in rows]
        axes[2].plot(points, changed, linestyle=dashed, label=label, **style)
    titles = (
        ("a search, no filter: p50, shaded to p95", "ms"),
        ("opening, to the first hit", "s"),
        ("a process adds one document and publishes", "s"),
    )
    for axis, (title, unit) in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="passages", ylabel=unit, xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
