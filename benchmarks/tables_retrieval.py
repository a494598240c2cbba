"""The tables of docs/benchmarks.md on how well passages are found."""

from __future__ import annotations

from tables_markdown import markdown, percent, results, source

__all__ = ["latent_reranking", "retrieval_debian"]

REPORTS = {"latent_reranking": "fact sheets", "latent_reranking_manual": "the manual"}
MEASURES = ("recall@1", "recall@10", "recall@50", "nDCG@10", "MRR")


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


def retrieval_debian() -> str:
    """How well words alone find sections of a manual by their titles, in several languages."""
    languages = {"en": "English", "de": "German", "fr": "French", "ja": "Japanese"}
    rows = []
    for language, title in languages.items():
        found = results(f"retrieval_debian_{language}")
        figures = found["ways"]["bm25"]
        cells = [
            f"{percent(f['mean'])} ({percent(f['low'])} to {percent(f['high'])})"
            for f in (figures[m] for m in MEASURES)
        ]
        rows.append([title, str(found["queries"]), str(found["settings"]["passages"]), *cells])
    columns = ["language", "titles", "passages", *MEASURES]
    notes = (
        "BM25; each title is to find its section; 95% intervals by the bootstrap over titles. "
        f"{source(*(f'retrieval_debian_{language}' for language in languages))}"
    )
    return markdown(columns, rows, notes)
