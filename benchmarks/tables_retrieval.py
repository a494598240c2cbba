"""The tables of docs/benchmarks.md on how well passages are found."""

from __future__ import annotations

from tables_markdown import duration, markdown, percent, results, runs, source, times

__all__ = ["latent_reranking", "retrieval_debian", "retrieval_latency"]

REPORTS = {"latent_reranking": "fact sheets", "latent_reranking_manual": "the manual"}
WAYS = {"bm25": "words (BM25)", "dense": "dense vectors", "hybrid": "both"}
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
    """How well sections of a manual are found by their titles: words, dense vectors, both."""
    languages = {"en": "English", "de": "German", "fr": "French", "ja": "Japanese"}
    rows = []
    for language, title in languages.items():
        found = results(f"retrieval_debian_{language}")
        for way, figures in found["ways"].items():
            cells = [
                f"{percent(f['mean'])} ({percent(f['low'])} to {percent(f['high'])})"
                for f in (figures[m] for m in MEASURES)
            ]
            sizes = [str(found["queries"]), str(found["settings"]["passages"])]
            rows.append([title, *sizes, WAYS[way], *cells])
    columns = ["language", "titles", "passages", "by", *MEASURES]
    notes = (
        f"Dense vectors by {found['settings']['embedder']}, which was trained on English. Each title is to "
        "find its section; 95% intervals (recall: Wilson; else the bootstrap over titles). "
        f"{source(*(f'retrieval_debian_{language}' for language in languages))}"
    )
    return markdown(columns, rows, notes)


def retrieval_latency() -> str:
    """How long a search takes in each way: the median, and how many times that of words alone."""
    found = runs("retrieval_latency")
    sizes = sorted({run["passages"] for run in found})
    by = {(run["way"], run["passages"]): run for run in found}
    rows = []
    for way in dict.fromkeys(run["way"] for run in found):
        cells = []
        for passages in sizes:
            run = by[way, passages]
            low, high = (duration(ms / 1000) for ms in run["quartiles_ms"])
            cells += [f"{duration(run['p50_ms'] / 1000)} ({low}–{high})", times(run["to_words"])]
        rows.append([way, *cells])
    columns = ["search"]
    for passages in sizes:
        columns += [f"{passages:,} passages: p50 (quartiles)", "to words"]
    whole = results("retrieval_latency")
    notes = (
        f"{whole['questions']} questions one by one, the {whole['top_k']} best passages; made-up vectors of "
        f"{whole['width']}, whose embedder takes next to nothing. {source('retrieval_latency')}"
    )
    return markdown(columns, rows, notes)
