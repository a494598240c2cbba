"""The results and plots of docs/benchmarks.md on accuracy against cost, from nothing.

\b
    python benchmarks/evaluation.py                     # an hour on two cores
    python benchmarks/evaluation.py --kvpress ENV       # with the environment made before
    python benchmarks/evaluation.py --print             # what is there, as tables

Makes an environment for kvpress in runs/evaluation, runs `lclm-rag eval` (the commands are printed), goes on
where it was killed, and copies figures, scores of each question and plots to benchmarks/results. Questions
about fact sheets are those to report on; rules are chosen on others (expansion_rules.py, codecs.py).
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from shared import machine, provenance

from lclm_rag.evaluation.datasets.parts import check_part

BOTH = ["text", "text:1", "latents", "latents+expand"]
OURS = [*BOTH, "latents+expand:model", "closed-book"]
OTHERS = ["kvpress:kvzip", "kvpress:keydiff", "kvpress:expected_attention", "kvpress:snapkv"]
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "eval_exact_strings_top4": (["exact-strings", "--top-k", "4"], OURS),
    "eval_exact_strings_top8": (["exact-strings", "--top-k", "8", "--count", "250"], OURS),
    "eval_others": (
        ["exact-strings", "--top-k", "4", "--count", "200"],
        [*BOTH, *OTHERS, "kvpress:random"],
    ),
    "eval_near_duplicates": (["near-duplicates", "--top-k", "4", "--count", "300"], BOTH),
    "eval_joined_facts": (["joined-facts", "--top-k", "8", "--count", "120"], BOTH),
    "eval_unanswerable": (["unanswerable", "--top-k", "4", "--count", "200"], BOTH),
    "eval_paraphrases": (["paraphrases", "--top-k", "4", "--count", "300"], BOTH),
    "eval_ruler_4k": (
        ["ruler", "--length", "4096", "--count", "5"],
        ["text", "latents", "latents+expand"],
    ),
}
"""Name of the results, what is asked, and the contexts."""

ROWS = {
    "score": ("exact match", lambda f: f"{100 * f['score']['mean']:.1f}%"),
    "interval": (
        "95% interval",
        lambda f: f"{100 * f['score']['low']:.1f}–{100 * f['score']['high']:.1f}",
    ),
    "positions": ("prompt positions", lambda f: f"{f['positions']:.0f}"),
    "computed": ("computed, all rounds", lambda f: f"{f['computed_positions']:.0f}"),
    "kv": ("KV cache at its peak", lambda f: f"{f['kv_bytes'] / 2**20:.2f} MiB"),
    "first": ("time to first token", lambda f: f"{1000 * f['first_token']:.0f} ms"),
    "grounded": (
        "grounded",
        lambda f: "" if f["grounded"] is None else f"{100 * f['grounded']['mean']:.1f}%",
    ),
}  # fmt: skip


@click.command(help=__doc__)
@click.option("--kvpress", type=click.Path(file_okay=False, path_type=Path))
@click.option("--work", default="runs/evaluation", show_default=True, type=Path)
@click.option("--out", default="benchmarks/results", show_default=True, type=Path)
@click.option("--only", multiple=True, type=click.Choice(list(RUNS)), help="Of the runs, these.")
@click.option(
    "--print", "printing", is_flag=True, help="Only print the tables of what is in --out."
)
def main(
    kvpress: Path | None, work: Path, out: Path, only: tuple[str, ...], printing: bool
) -> None:
    chosen = {name: RUNS[name] for name in only or RUNS}
    if not printing:
        if "eval_others" in chosen and kvpress is None:
            kvpress = work / "kvpress"
            environment = "lclm_rag.evaluation.baselines.kvpress_environment"
            _run([sys.executable, "-m", environment, str(kvpress)])
        for run, (questions, contexts) in chosen.items():
            folder = work / run
            command = [sys.executable, "-m", "lclm_rag.cli", "eval", *questions]
            command += ["--out", str(folder), "--plots"]
            command += [part for name in contexts for part in ("--context", name)]
            if kvpress is not None:
                command += ["--kvpress", str(kvpress)]
            _run(command)
            _keep(folder, out, run)
    for name in chosen:
        _print(name, json.loads((out / f"{name}.json").read_text("utf-8")))


def _run(command: list[str]) -> None:
    print(shlex.join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=True)


def _keep(folder: Path, out: Path, name: str) -> None:
    """Figures and scores without the answers themselves, and the plots."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    check_part(report["settings"], "report")
    report["answers"] = [
        {
            **{field: line[field] for field in ("id", "group", "category")},
            "scores": {mode: answer["score"] for mode, answer in line["modes"].items()},
        }
        for line in report["answers"]
    ]
    out.mkdir(parents=True, exist_ok=True)
    kept = {"machine": machine(), "provenance": provenance(), **report}
    (out / f"{name}.json").write_text(_laid_out(kept) + "\n", "utf-8")
    for plot in folder.glob("accuracy_*.png"):
        shutil.copy(plot, out / f"{name}_{plot.name.removeprefix('accuracy_')}")


def _laid_out(kept: dict[str, Any]) -> str:
    """JSON with one line for each question."""
    lines = ",\n".join("  " + json.dumps(line, ensure_ascii=False) for line in kept["answers"])
    whole = json.dumps({**kept, "answers": []}, indent=1, ensure_ascii=False)
    return whole.replace('"answers": []', f'"answers": [\n{lines}\n ]')


def _print(name: str, report: dict[str, Any]) -> None:
    print(f"\n{name}: {report['questions']} questions\n")
    print("| context |", " | ".join(title for title, _ in ROWS.values()), "|")
    print("|---|" + "---|" * len(ROWS))
    for context, figures in report["modes"].items():
        print(f"| {context} |", " | ".join(cell(figures) for _, cell in ROWS.values()), "|")
    print("\n| category |", " | ".join(report["modes"]), "|")
    print("|---|" + "---|" * len(report["modes"]))
    for category, found in report["categories"].items():
        scores = (f"{100 * found['modes'][context]['mean']:.1f}%" for context in report["modes"])
        print(f"| {category} |", " | ".join(scores), "|")


if __name__ == "__main__":
    main()
