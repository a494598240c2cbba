"""The tables of docs/benchmarks.md on the store and its codecs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tables_markdown import duration, markdown, percent, results, size, source, times

from lclm_rag.evaluation.intervals import wilson_interval

__all__ = [
    "codecs",
    "codecs_answers",
    "codecs_error",
    "store_formats_crashes",
    "store_formats_reading",
    "store_scale",
]

FORMATS = {"store": "this library", "lance": "Lance", "delta": "Delta"}

Run = dict[str, Any]


def codecs() -> str:
    """Bytes of each codec, and the time to read it."""
    found = results("codecs")
    rows = []
    for run in found["results"]:
        bundled, published = run["bundled"], run["published"]
        cells = [f"{bundled['bytes_per_token']:.1f}", _reading(bundled)]
        if published:
            cells += [f"{published['bytes_per_token']:.1f}", _reading(published)]
        else:
            cells += ["–", "–"]
        rows.append([run["codec"], run["space"], *cells])
    columns = ["codec", "space", "bytes a source token", "reading 64 passages"]
    columns += ["bytes a source token, published shape", "reading 64 passages, published shape"]
    latents = next(run["published"]["latents"] for run in found["results"] if run["published"])
    notes = (
        "Bytes are those of the whole file, text and metadata included; reading ends with float32 latents; "
        f"ratios are to bf16. The adapter of the published shape takes {duration(found['adapter_seconds'])} "
        f"for {latents:,} latents. {source('codecs')}"
    )
    return markdown(columns, rows, notes, left=2)


def _reading(run: Run) -> str:
    return f"{times(run['ratio'])} ({duration(run['seconds'])})"


def codecs_error() -> str:
    """What each codec loses of a latent."""
    found = results("codecs")
    rows = [
        [
            run["codec"],
            run["space"],
            f"{run['loss']['cosine_mean']:.6f} ({run['loss']['cosine_min']:.6f})",
            f"{run['loss']['max_error']:.3f}",
        ]
        for run in found["results"]
    ]
    columns = ["codec", "space", "cosine to float32, mean (least)", "largest error"]
    notes = (
        f"The passages of {found['documents']} fact sheets, the bundled checkpoint. The error is that of one "
        f"coordinate, as a share of its latent's root mean square. {source('codecs')}"
    )
    return markdown(columns, rows, notes, left=2)


def codecs_answers() -> str:
    """What each codec changes of the answers: codes and UUIDs apart from what latents keep."""
    found = results("codecs_report")
    kinds = {"registry code": "codes", "record id": "UUIDs", "other facts": "other facts"}
    rows = []
    for kind, title in kinds.items():
        for run in found["results"]:
            (score,) = (a for a in run["accuracy"] if a["kind"] == kind)
            of = score["questions"]
            right = round(score["exact_match"] * of)
            low, high = wilson_interval(right, of)
            cells = [f"{percent(right / of)} ({100 * low:.1f}–{100 * high:.1f})"]
            if run["codec"] == "bf16":
                cells += ["–"] * 3
            else:
                changed = f"{score['changed']} ({percent(score['changed'] / of, 0)})"
                cells += [changed, f"{score['won']}, {score['lost']}", f"{score['p']:.3f}"]
            rows.append([title, run["space"], run["codec"], f"{of}", *cells])
    columns = ["asked for", "space", "codec", "n", "exact match (95% interval)", "answers changed"]
    columns += ["won, lost", "p"]
    notes = (
        f"{found['count']:,} questions to report on, about {found['documents']} fact sheets, top "
        f"{found['results'][0]['accuracy'][0]['top_k']}, latents alone, nothing expanded; the bundled "
        "checkpoint. Changed, won and lost are against bf16 in the same space; p is that of McNemar's exact "
        f"test. {source('codecs_report')}"
    )
    return markdown(columns, rows, notes, left=3)


def store_scale() -> str:
    """Large stores: opening, looking up, reading, committing."""
    found = results("store_scale")
    runs = found["results"]
    openings = [run for run in runs if "lookups_ms" in run]
    rows = [
        [
            f"{run['passages']:,} passages in {run['fragments']:,} fragments{_of_keys(run)}: opening, to the "
            "first key found",
            f"{duration(run['seconds'])}, {duration(run['cold_seconds'])} from an empty page cache",
        ]
        for run in openings
    ]
    rows += [
        [f"{run['passages']:,} passages{_of_keys(run)}: memory that this takes", size(run["mib"])]
        for run in openings
    ]
    rows += [
        [
            f"{run['passages']:,} passages{_of_keys(run)}: 64 random look-ups",
            duration(run["lookups_ms"] / 1e3),
        ]
        for run in openings
    ]
    for run in runs:
        if "memmap_ms" in run:
            cache = "in the page cache" if run["cached"] else "page cache emptied"
            both = f"{duration(run['store_ms'] / 1e3)} to {duration(run['memmap_ms'] / 1e3)}"
            rows.append([
                f"64 random passages of {openings[0]['passages']:,}, {size(run['mib'])} of latents, {cache}: "
                "the store to `numpy.memmap`",
                f"{times(run['ratio'])} ({both})",
            ])  # fmt: skip
        if "kib" in run:
            rows.append([
                f"one document more in {run['passages']:,}, without the passage index",
                f"{duration(run['seconds'])}, {run['kib']:,.0f} KiB beside its fragment",
            ])  # fmt: skip
        if "written" in run:
            rows.append([
                f"key records written for each key, {run['keys']:,} in {run['commits']:,} commits",
                f"{run['written']:.1f}",
            ])  # fmt: skip
        if "first_passage" in run:
            rows.append([
                "requests to an object store: opening, the first passage, one more of the same fragment",
                f"{run['opening']}, {run['first_passage']}, {run['next_passage']}",
            ])  # fmt: skip
    sparse = f", {found['on_disk_gb']} GB of it on disk" if found["sparse"] else ""
    notes = (
        f"{found['latents_of_a_passage']} latents of {found['width']:,} a passage, {found['codec']}: "
        f"{openings[0]['passages']:,} are {found['apparent_gb']} GB{sparse}. {source('store_scale')}"
    )
    return markdown(["measure", "result"], rows, notes)


def _of_keys(run: Run) -> str:
    return "" if run["whole"] else " (keys alone)"


def store_formats_reading() -> str:
    """Reading random passages from Arrow files, Lance and Delta."""
    found = results("store_formats")
    rows = [
        [
            run["way"],
            times(run["ratio"], 1),
            f"{run['anonymous_share']:.1f}",
            duration(run["open_ms"] / 1e3),
            size(run["open_mib"]),
        ]
        for run in found["results"]
    ]
    columns = ["read with", "time to a memory map", "copied bytes for each byte of latents"]
    columns += ["opening, to the first passage", "memory at opening"]
    packages = ", ".join(
        f"{name} {found['packages'][name]}" for name in ("pyarrow", "pylance", "deltalake")
    )
    notes = (
        f"{found['results'][0]['at_once']} random passages of {found['passages']:,}, in the page cache; "
        f"{packages}. {source('store_formats')}"
    )
    return markdown(columns, rows, notes)


def store_formats_crashes() -> str:
    """What each format leaves behind, notices and adds to an installation."""
    found = results("store_formats")
    crashes = {run["format"]: run for run in found["crashes"]}
    damage = {run["format"]: run for run in found["one_wrong_byte"]}
    added = {run["package"]: run for run in found["installation"]}
    readers: dict[str, set[str]] = {}
    for run in found["cleaned_under_a_reader"]:
        readers.setdefault(run["format"], set()).add(run["outcome"].split(":")[0])
    measures: dict[str, dict[str, str]] = {
        title: {name: str(crashes[name][key]) for name in FORMATS}
        for title, key in {
            "writer killed (SIGKILL), times": "kills",
            "did not open": "unreadable",
            "showed half a batch": "half",
            "lost what was committed": "lost",
            "files left that no version names": "files_left",
            "after the usual cleaning": "files_after_usual_cleaning",
            "after cleaning everything": "files_after_full_cleaning",
        }.items()
    }
    measures["a reader whose version is cleaned away"] = {
        name: ", ".join(sorted(readers[name])) for name in FORMATS
    }
    measures["one wrong bit in the latents is noticed by"] = {
        name: "; ".join(_noticed(damage[name])) or "nothing" for name in FORMATS
    }
    packages = {"lance": added["pylance"], "delta": added["deltalake"]}
    measures["installed beyond numpy and pyarrow"] = {"store": "–"} | {
        name: f"{run['mib']} MiB, {len(run['distributions'])} packages"
        for name, run in packages.items()
    }
    rows = [[title, *(cells[name] for name in FORMATS)] for title, cells in measures.items()]
    return markdown(["", *FORMATS.values()], rows, source("store_formats"))


def _noticed(checks: Run) -> Iterable[str]:
    return (name for name, outcome in checks.items() if outcome.startswith("noticed"))
