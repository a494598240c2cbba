"""The tables of docs/benchmarks.md on how well passages are found."""

from __future__ import annotations

from tables_markdown import markdown, percent, results, source

__all__ = ["latent_reranking"]

REPORTS = {"latent_reranking": "fact sheets", "latent_reranking_manual": "the manual"}


def latent_reranking() -> str:
    """The stored latents as a reranker, against the search that found the candidates."""
    found = {title: results(name) for name, title in REPORTS.items()}
    measures = ["recall@1", "recall@8", "nDCG@10"]
    rows = [
        [way, *(percent(r["ways"][way][m]["mean"]) for r in found.values() for m in measures)]
        for way in results("latent_reranking")["ways"]
    ]
    columns = ["order", *(f"{title}: {m}" for title in found for m in measures)]
    sizes = ", ".join(
        f"{title}: {r['queries']:,} questions, {r['settings']['documents']:,} documents"
        for title, r in found.items()
    )
    checkpoint = results("latent_reranking")["checkpoint"]
    return markdown(columns, rows, f"Checkpoint {checkpoint}. {sizes}. {source(*REPORTS)}")
