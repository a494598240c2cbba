"""Does the order of the passages in a prompt change the answers? Fact sheets, 16 passages.

\b
    python benchmarks/passage_order.py      # a quarter of an hour on two cores

Runs `lclm-rag eval fact-sheets` with each order (the commands are printed), and goes on where it stopped.
By document ("key") the same passages give the same prefix, which an engine then has in its cache; by rank
they do not.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from shared import machine, write_results

ORDERS = ("key", "best_first", "best_last")
CONTEXTS = ("latents", "text")


@dataclass(frozen=True)
class Result:
    """The share of right answers in one order and context, with its 95% interval."""

    order: str
    context: str
    score: float
    low: float
    high: float


@click.command(help=__doc__)
@click.option("--count", default=300, show_default=True, help="Questions.")
@click.option("--top-k", default=16, show_default=True, help="Passages in a prompt.")
@click.option("--work", default="runs/passage_order", show_default=True, type=Path)
@click.option("--out", default="benchmarks/results/passage_order", show_default=True, type=Path)
def main(count: int, top_k: int, work: Path, out: Path) -> None:
    results: list[Result] = []
    for order in ORDERS:
        folder = work / order
        command = [sys.executable, "-m", "lclm_rag.cli", "eval", "fact-sheets", "--order", order]
        command += ["--count", str(count), "--top-k", str(top_k), "--alone", "0"]
        command += [part for name in CONTEXTS for part in ("--context", name)]
        command += ["--out", str(folder)]
        print(shlex.join(["python", *command[1:]]), flush=True)
        subprocess.run(command, check=True)
        modes = json.loads((folder / "report.json").read_text("utf-8"))["modes"]
        for context in CONTEXTS:
            score = modes[context]["score"]
            results.append(Result(order, context, score["mean"], score["low"], score["high"]))
    about = {"machine": machine(), "questions": count, "top_k": top_k}
    write_results(out, about, results)
    for result in results:
        print(
            f"{result.order:10} {result.context:8} {result.score:.1%} ({result.low:.1%}–{result.high:.1%})"
        )


if __name__ == "__main__":
    main()
