"""Large stores: opening, looking keys up, reading at random, committing; to a hundred million passages.

Some hundred thousand passages are built, with synthetic latents of the published shape. So that they fit on a
small disk these are zeros, and after a fragment is written its latents become a hole in the file (Linux):
everything else, checksums too, is written as by any build, and a read goes through the same pages. `--real`
leaves the zeros where they are: 26 GB for 200,000 in bf16. Of the larger stores only key runs, fragment lists
and the manifest are made, and one fragment, whose keys are looked up.

Opening and reading are measured in fresh processes. What reading is compared with is numpy.memmap, told
where latents and texts lie: it copies as many bytes of other passages, in turns with the store. The store
looks keys up, opens fragments, checks each row's checksum, and reads metadata and spans besides. Once after
the page cache was emptied (where that is allowed), and in a third process again, with the same passages in
the page cache.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

from lclm_rag import Document, Passage, PassageKey
from lclm_rag.storage import Folder, LocalFolder
from lclm_rag.store import CODECS, LatentStore, Layout, StoredPassage, Totals, writing
from lclm_rag.store.keys import (
    KeyRun,
    RunEntry,
    SortedKeys,
    merge_with,
    merged,
    run_name,
    write_run,
)
from lclm_rag.store.lists import next_lists
from lclm_rag.store.manifest import write_manifest
from lclm_rag.store.parts import KEYS, MANIFESTS

WIDTH, LATENTS, RATIO = 1024, 64, 16
AT_ONCE = 64
OPENINGS = 5  # Of each store, each way.
KNOWN = 256  # Passages of larger stores that are there.
MIB = 2**20


@dataclass(frozen=True)
class Opening:
    """seconds: to the first key found; medians of processes that have imported everything, after the page
    cache was emptied and once more. mib: memory of the process above that before. lookups_ms: of 64 random
    keys, to fragment and row, in the page cache."""

    passages: int
    fragments: int
    whole: bool
    cold_seconds: float
    seconds: float
    mib: float
    lookups_ms: float


@dataclass(frozen=True)
class Reading:
    """Milliseconds for 64 random passages, the median of all rounds. ratio: of the two. cached: whether the
    passages were in the page cache."""

    cached: bool
    memmap_ms: float
    store_ms: float
    ratio: float
    mib: float


@dataclass(frozen=True)
class Committing:
    """One document more, without a passage index. kib: of files written besides the fragment."""

    passages: int
    seconds: float
    kib: float


@dataclass(frozen=True)
class Requests:
    """To an object store, by who has nothing in the cache."""

    opening: int
    first_passage: int
    next_passage: int


@dataclass(frozen=True)
class Amplification:
    """Records of key runs written for each key, over a load in so many commits."""

    keys: int
    commits: int
    written: float
    runs: int


@click.command()
@click.option("--passages", default=200_000, show_default=True)
@click.option(
    "--keys",
    "larger",
    default=(1_000_000, 10_000_000, 100_000_000),
    show_default=True,
    multiple=True,
    help="Larger stores, of keys alone.",
)
@click.option("--codec", type=click.Choice(CODECS), default="bf16", show_default=True)
@click.option("--rounds", default=20, show_default=True, help="Of reading, each way.")
@click.option("--real", is_flag=True, help="Latents take the disk that they take.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="For the store.  [default: a temporary one]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "store_scale",
    help="Where the JSON goes.",
)
def main(
    passages: int,
    larger: tuple[int, ...],
    codec: Any,
    rounds: int,
    real: bool,
    folder: Path | None,
    out: Path,
) -> None:
    """Example: python benchmarks/store_scale.py --passages 100000 --keys 1000000"""
    from shared import machine, write_results

    results: list[Any] = []

    def note(result: Any) -> None:
        results.append(result)
        click.echo(str(result))

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "whole"
        build(path, passages, codec, sparse=not real)
        note(opened(path, passages, whole=True))
        dropped = drop_page_cache()
        note(Reading(cached=not dropped, **in_a_process("reading", path, passages, rounds)))
        # Not yet the second time: what a plain memory map touches again has the disk read ahead once more.
        in_a_process("reading", path, passages, rounds)
        note(Reading(cached=True, **in_a_process("reading", path, passages, rounds)))
        size = sum(file.stat().st_size for file in path.rglob("*"))
        on_disk = sum(file.stat().st_blocks * 512 for file in path.rglob("*"))
        for count in larger:
            path = Path(temporary) / str(count)
            build_keys(path, count, codec)
            note(opened(path, count, whole=False))
            note(committing(path, count, codec))
            shutil.rmtree(path)
        note(amplification(Path(temporary) / "runs", 10_000_000, 1_000))
        os.environ["LCLM_RAG_CACHE"] = temporary
        note(requests(codec))
    about = {
        "machine": machine(),
        "codec": codec,
        "width": WIDTH,
        "latents_of_a_passage": LATENTS,
        "sparse": not real,
        "apparent_gb": round(size / 1e9, 1),
        "on_disk_gb": round(on_disk / 1e9, 1),
    }
    write_results(out, about, results)


def drop_page_cache() -> bool:
    """Whether it could be emptied."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def rows(layout: Layout, numbers: Iterable[int]) -> Iterator[StoredPassage]:
    encoded = np.zeros((LATENTS, layout.latent_bytes), np.uint8)
    text = "It is some text, about as long as what a thousand tokens stand for. " * 66
    digest = Document("any", text).content_hash()
    for i in numbers:
        key, metadata = PassageKey(f"document-{i}", 0), {"year": 1900 + i % 120}
        passage = Passage(key, 0, len(text), text, metadata)
        yield StoredPassage(passage, LATENTS * RATIO, digest, True, encoded, layout)


def layout_of(codec: Any) -> Layout:
    return Layout(codec, "encoder", WIDTH, "f" * 16, RATIO)


def build(path: Path, passages: int, codec: Any, sparse: bool) -> None:
    layout = layout_of(codec)
    LatentStore.create(path, layout)
    punched: set[str] = set()
    numbers = track(range(passages), "writing", disable=not sys.stderr.isatty())
    with writing(path, "add") as writer:
        for i, row in enumerate(rows(layout, numbers)):
            writer.add(row)
            if sparse and i % 512 == 0:
                punch(path, punched, layout)
        writer.commit()
    if sparse:
        punch(path, punched, layout)


def build_keys(path: Path, passages: int, codec: Any) -> None:
    """A store of one fragment that is there, and others that are only named.

    Of its key runs all are there, as after as many commits as make one run of each size.
    """
    layout = layout_of(codec)
    with writing(LatentStore.create(path, layout).folder, "add") as writer:
        for row in rows(layout, range(KNOWN)):
            writer.add(row)
        store = writer.commit()
    each = 1 << 13  # Passages of 131 KiB in a fragment of 1 GiB.
    (known,) = store.entries()
    named = [
        replace(known, name=f"{at:032x}.arrow", rows=each, bytes=1 << 30, number=at)
        for at in range(1, -(-passages // each) + 1)
    ]
    random, runs = np.random.default_rng(0), list(store.manifest.keys)
    for share in (0.9, 0.09, 0.01):
        entry = write_run(
            path_of(store, KEYS), random_keys(random, int(share * passages), each), []
        )
        assert entry is not None
        runs.append(entry)
    manifest = store.manifest.next(
        "add",
        keys=tuple(runs),
        lists=tuple(next_lists(store.table, store.folder, {}, named, [])),
        fragments=1 + len(named),
        next_fragment=1 + len(named),
        totals=Totals(passages, passages, passages, passages),
    )
    write_manifest(path_of(store, MANIFESTS), manifest)
    store.close()


def path_of(store: LatentStore, part: str) -> Folder:
    return store.folder / part


def random_keys(random: Any, count: int, each: int) -> Iterator[np.ndarray]:
    """Records of a key run: the hashes are spread as those of keys are."""
    parts = -(-count // (1 << 20))
    for part in range(parts):
        low, high = (part << 64) // parts, ((part + 1) << 64) // parts - 1
        hashes = np.sort(random.integers(low, high, count // parts, np.uint64))
        places = np.arange(count // parts, dtype=np.uint64) + np.uint64(part * (count // parts))
        numbers, within = places // np.uint64(each) + np.uint64(1), places % np.uint64(each)
        yield np.stack([hashes, (numbers << np.uint64(32)) + within], axis=1)


def committing(path: Path, passages: int, codec: Any) -> Committing:
    before = {file for file in path.rglob("*") if file.is_file()}
    started = time.perf_counter()
    with writing(path, "add") as writer:
        for row in rows(layout_of(codec), [passages]):
            writer.delete_document(row.passage.key.document_id)
            writer.add(row)
        writer.commit()
    seconds = time.perf_counter() - started
    new = [f for f in path.rglob("*") if f not in before and f.is_file() and f.suffix != ".arrow"]
    return Committing(passages, seconds, sum(file.stat().st_size for file in new) / 1024)


def amplification(path: Path, keys: int, commits: int) -> Amplification:
    folder, random = LocalFolder(path), np.random.default_rng(0)
    runs: list[RunEntry] = []
    new, written = keys // commits, 0
    for _ in range(commits):
        records = random.integers(0, 2**63, (new, 2), np.uint64)
        chosen = merge_with([run.rows for run in runs], new)
        sources = [*(KeyRun(folder, runs[at]) for at in chosen), SortedKeys(records)]
        run = write_run(folder, merged(sources, lambda places: np.ones(len(places), bool)), [])
        assert run is not None
        written += run.rows
        for at in chosen:
            folder.remove(run_name(runs[at].name))
        runs = [*(run for at, run in enumerate(runs) if at not in chosen), run]
    return Amplification(keys, commits, written / keys, len(runs))


def requests(codec: Any) -> Requests:
    """Of a store of 480 passages in memory, as another machine asks for it."""
    from fsspec.implementations.memory import MemoryFileSystem

    url = "memory://scale"
    with writing(LatentStore.create(url, layout_of(codec)).folder, "add") as writer:
        for row in rows(layout_of(codec), range(480)):
            writer.add(row)
        writer.commit()
    calls = 0

    def counted(method: Any) -> Any:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return method(self, *arguments, **options)

        return call

    for name in ("cat_file", "ls", "info"):
        setattr(MemoryFileSystem, name, counted(getattr(MemoryFileSystem, name)))
    os.environ["LCLM_RAG_CACHE"] += "/another"
    counts = []
    store = LatentStore.open(url)
    counts.append(calls)
    for i in (300, 20):
        store.read([PassageKey(f"document-{i}", 0)])
        counts.append(calls)
    return Requests(counts[0], counts[1] - counts[0], counts[2] - counts[1])


def punch(path: Path, punched: set[str], layout: Layout) -> None:
    """Make holes of the zeros in fragments that are written."""
    import pyarrow as pa

    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    keep_size, punch_hole = 1, 2
    for file in (path / "fragments").glob("*.arrow"):
        if file.name in punched:
            continue
        buffer = pa.memory_map(str(file)).read_buffer()
        column = pa.ipc.open_file(pa.BufferReader(buffer)).get_batch(0).column("latents")
        latents = column.values.buffers()[1]
        start, size = latents.address - buffer.address, latents.size
        with file.open("rb+") as f:
            if libc.fallocate(f.fileno(), keep_size | punch_hole, start, size):
                raise OSError(ctypes.get_errno(), "this file system makes no holes; use --real")
        punched.add(file.name)


def in_a_process(what: str, path: Path, passages: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", what, str(path), str(passages), str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def resident_mib() -> float:
    """Of this process now, as the kernel counts it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def opened(path: Path, passages: int, whole: bool) -> Opening:
    cold, warm = [], []
    for _ in range(OPENINGS):
        drop_page_cache()
        cold.append(in_a_process("opening", path, passages, 0)["seconds"])
        warm.append(in_a_process("opening", path, passages, 0))
    # All of the one that is in the middle.
    middle = sorted(warm, key=lambda found: found["seconds"])[OPENINGS // 2]
    return Opening(passages, whole=whole, cold_seconds=statistics.median(cold), **middle)


def opening(path: Path, passages: int, rounds: int) -> dict[str, Any]:
    before = resident_mib()
    started = time.perf_counter()
    store = LatentStore.open(path)
    found = PassageKey(f"document-{KNOWN // 2}", 0) in store
    seconds = time.perf_counter() - started
    assert found
    mib = resident_mib() - before
    random = np.random.default_rng(1)
    run = store._runs()[0]
    wanted = [int(run.records(at, at + 1)[0, 0]) for at in random.integers(0, run.rows, AT_ONCE)]
    lookups = []
    for _ in range(5):
        begun = time.perf_counter()
        assert all(next(store.noted(each), None) for each in wanted)
        lookups.append(time.perf_counter() - begun)
    return {
        "fragments": store.manifest.fragments,
        "seconds": seconds,
        "mib": mib,
        "lookups_ms": 1e3 * statistics.median(lookups),
    }


def reading(path: Path, passages: int, rounds: int) -> dict[str, Any]:
    store, other = LatentStore.open(path), LatentStore.open(path)
    picks = random.Random(0).sample(range(passages), min(passages, 2 * rounds * AT_ONCE))
    chosen = [
        [PassageKey(f"document-{i}", 0) for i in picks[n : n + AT_ONCE]]
        for n in range(0, len(picks), AT_ONCE)
    ]
    wheres = [[part for key in keys for part in where(other, key)] for keys in chosen[1::2]]
    bare, ours = [], []
    for keys, places in zip(chosen[::2], wheres, strict=False):
        started = time.perf_counter()
        for file, start, size in places:
            np.memmap(file, np.uint8, "r", start, (size,)).copy()
        bare.append(time.perf_counter() - started)
        started = time.perf_counter()
        rows = store.read(keys)
        ours.append(time.perf_counter() - started)
    size = sum(row.encoded.nbytes for row in rows)
    memmap_ms, store_ms = 1e3 * statistics.median(bare), 1e3 * statistics.median(ours)
    return {
        "memmap_ms": memmap_ms,
        "store_ms": store_ms,
        "ratio": store_ms / memmap_ms,
        "mib": size / MIB,
    }


def where(store: LatentStore, key: PassageKey) -> list[tuple[Path, int, int]]:
    """File, offset and size of a passage's latents and of its text, which are not touched."""
    place = store.place(key)
    assert place is not None
    assert store.folder.local is not None
    file = store.folder.local / "fragments" / place[0]
    return [(file, a, b - a) for a, b in store.fragment(place[0]).where(place[1])]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure = {"opening": opening, "reading": reading}[sys.argv[2]]
        print(json.dumps(measure(Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))))
    else:
        main()
