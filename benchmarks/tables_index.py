"""The tables of docs/benchmarks.md on the passage index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tables_markdown import duration, markdown, results, runs, size, source, times

__all__ = [
    "index_opening",
    "index_scale_adding",
    "index_scale_building",
    "index_scale_searches",
    "languages",
]

INDEXES = {"bm25": "BM25", "bm25 + dense": "BM25 and dense"}
SIZE_COLUMNS = ["index", "passages"]

Run = dict[str, Any]


def index_opening() -> str:
    """How long until a process can search an index that others search, too."""
    found = results("index_opening")
    titles = {"alone": "the engine alone in a folder", "a view": "a view of the published index"}
    rows = [
        [
            titles.get(run["way"], run["way"]),
            str(run["processes"]),
            f"{times(run['ratio'])} ({duration(run['seconds'])})",
            size(run["resident_mib"]),
        ]
        for run in found["results"]
    ]
    columns = ["opened as", "processes at once", "to the first hits", "resident memory, each"]
    notes = (
        f"{found['passages']:,} passages, BM25 and dense vectors of {found['width']}, {found['index_mib']} "
        f"MiB on disk; the slowest of the processes; imports are left out. {source('index_opening')}"
    )
    return markdown(columns, rows, notes)


def index_scale_building() -> str:
    """The embedded index by size: ingesting, optimizing, disk, memory, opening."""
    rows = []
    for cells, ingested, optimized in _index_scale():
        last = optimized or ingested
        rows.append([
            *cells,
            duration(ingested["made_seconds"]),
            duration(optimized.get("made_seconds")),
            size(max(run["made_peak_mib"] for run in (ingested, optimized) if run)),
            size(last["disk_mib"]),
            duration(last["first_hit_seconds"]),
            size(last["queried_mib"]),
        ])  # fmt: skip
    columns = [*SIZE_COLUMNS, "ingesting", "optimizing", "memory at its peak", "disk"]
    columns += ["first hit in another process", "resident after all searches"]
    width = results("index_scale")["width"]
    notes = (
        f"Dense vectors have {width} numbers. Publishing, which follows ingesting and optimizing, is left "
        f"out. A dash was not measured. {source('index_scale')}"
    )
    return markdown(columns, rows, notes)


def index_scale_searches() -> str:
    """The embedded index by size: searches, p50 and p95."""
    filters = {
        "none": "no filter",
        "1%": "a filter that keeps 1%",
        "50%": "a filter that keeps 50%",
    }
    rows = []
    for cells, ingested, optimized in _index_scale():
        after = [_search(optimized, key) for key in filters]
        rows.append([*cells, *after, _search(ingested, "none")])
    columns = [*SIZE_COLUMNS, *filters.values(), "before optimizing, no filter"]
    notes = f"p50 (p95) of a search for the best {results('index_scale')['top_k']}."
    return markdown(columns, rows, f"{notes} {source('index_scale')}")


def _search(run: Run, kept: str) -> str:
    if not run:
        return "–"
    return f"{duration(run['p50_ms'][kept] / 1e3)} ({duration(run['p95_ms'][kept] / 1e3)})"


def index_scale_adding() -> str:
    """The embedded index by size: adding one document."""
    rows = []
    for (title, passages), ingested, optimized in _index_scale():
        last = optimized or ingested
        rows.append([
            title,
            "optimized" if optimized else "as ingested",
            passages,
            duration(last["add_seconds"]),
            duration(last["add_seconds"] + last["add_published_seconds"]),
            size(last["add_disk_mib"]),
        ])  # fmt: skip
    columns = ["index", "state", "passages", "found by the process that adds", "found by others"]
    columns += ["disk meanwhile"]
    notes = f"Both times run from the same start. {source('index_scale')}"
    return markdown(columns, rows, notes, left=2)


def _index_scale() -> Iterator[tuple[tuple[str, str], Run, Run]]:
    """Yields each size and index: its first cells, and what was measured before and after optimizing.

    A state that was not measured is an empty object.
    """
    by = {(run["way"], run["points"], run["state"]): run for run in runs("index_scale")}
    for way, title in INDEXES.items():
        for points in sorted({points for found, points, _ in by if found == way}):
            ingested, optimized = (
                by.get((way, points, state), {}) for state in ("ingested", "optimized")
            )
            yield (title, f"{points:,}"), ingested, optimized


def languages() -> str:
    """Questions that find their text first, by language."""
    found = results("languages")
    rows = [
        [
            run["language"].capitalize(),
            *(f"{run[way]}" for way in ("bm25", "unstemmed", "before", "dense")),
        ]
        for run in found["results"]
    ]
    columns = [
        "language",
        "BM25",
        "BM25, language none",
        "BM25, the English of before",
        found["embedder"],
    ]
    questions = found["results"][0]["questions"]
    notes = (
        f"Of {questions} questions in each language, on {questions} texts. {source('languages')}"
    )
    return markdown(columns, rows, notes)
