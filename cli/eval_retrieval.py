"""eval --retrieval: how well passages are found, by words, by dense vectors, by both, reranked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from lclm_rag.cli.formatting import one_line, say, say_json
from lclm_rag.cli.progress import progress_bar, stdout

__all__ = ["evaluate_retrieval"]


def evaluate_retrieval(
    judged: Path,
    kb: str | None,
    out: Path | None,
    *,
    split: str | None,
    embedder: str | None,
    rerank: Sequence[str],
    language: str | None,
    checkpoint: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run `lclm-rag eval --retrieval`; the command's help says what each argument is."""
    from lclm_rag.evaluation.datasets.judged import read_judged_set
    from lclm_rag.evaluation.retrieval import evaluate_retrieval as run
    from lclm_rag.evaluation.retrieval import of_documents, of_knowledge_base

    if not judged.exists():
        raise click.UsageError(f"There is no file or folder {judged}.")
    found = read_judged_set(judged, split)
    with ExitStack() as opened:
        if found.documents is None:
            if kb is None:
                raise click.UsageError("Questions from a file need a knowledge base; give --kb.")
            if embedder or language or checkpoint:
                raise click.UsageError(
                    "--embedder, --language and --checkpoint are the knowledge base's; leave them out."
                )
            from lclm_rag.knowledge_base import KnowledgeBase

            searched = of_knowledge_base(opened.enter_context(KnowledgeBase.open(kb)))
        else:
            from lclm_rag.checkpoint import BUNDLED, Checkpoint
            from lclm_rag.retrieval import SentenceTransformerEmbedder

            searched = opened.enter_context(
                of_documents(
                    found.documents,
                    Checkpoint.open(checkpoint or BUNDLED),
                    language=language or "auto",
                    embedder=SentenceTransformerEmbedder(embedder) if embedder else None,
                )
            )
        models = []
        if rerank:
            from lclm_rag.retrieval.reranker import CrossEncoderReranker

            models = [CrossEncoderReranker(name) for name in dict.fromkeys(rerank)]
        progress = opened.enter_context(progress_bar())
        bars: dict[str, Any] = {}

        def show(name: str, count: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=len(found.queries), note="")
            progress.update(bars[name], completed=count)

        report = run(searched, found, models, seed=seed, on_progress=show)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "retrieval.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        say_json(report)
        return
    stdout.print(_table(report))
    if report["left_out"]:
        say(f"{report['left_out']:,} queries without a relevant document are left out.")
    if out is not None:
        say(str(out / "retrieval.json"))


def _table(report: Mapping[str, Any]) -> Table:
    settings = report["settings"]
    size = f"{settings['documents']:,} documents in {settings['passages']:,} passages"
    title = f"{one_line(report['set'])}: {report['queries']:,} queries, {size}; % [95%]"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    measures = list(next(iter(report["ways"].values())))
    for measure in measures:
        table.add_column(measure, justify="right")
    for way, figures in report["ways"].items():
        table.add_row(one_line(way), *(_cell(figures[measure]) for measure in measures))
    return table


def _cell(figure: Mapping[str, float]) -> str:
    mean, low, high = (100 * figure[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f}\n{low:.1f}–{high:.1f}"
