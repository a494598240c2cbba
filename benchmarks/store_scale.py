"""A store of a million passages of the published latent shape: opening it, and reading passages at random.

The latents are synthetic. So that it fits on a small disk they are zeros, and after a fragment is written its
latents become a hole in the file (Linux): everything else, checksums too, is written as by any build, and a
read goes through the same pages. `--real` leaves the zeros where they are: 131 GB for a million in bf16.

Opening and reading are measured in fresh processes. What reading is compared with is numpy.memmap, told
where latents and texts lie: it copies as many bytes of other passages, in turns with the store. The store
looks keys up, opens fragments, checks each row's checksum, and reads metadata and spans besides. Once after
the page cache was emptied (where that is allowed), and once more in another process, with the same passages
in the page cache.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

from lclm_rag import Document, Passage, PassageKey
from lclm_rag.store import CODECS, LatentStore, Layout, StoredPassage, writing

WIDTH, LATENTS, RATIO = 1024, 64, 16
AT_ONCE = 64
MIB = 2**20


@dataclass(frozen=True)
class Opening:
    """seconds: to the first key found. resident_mib: of the process then; imports_mib: before it."""

    passages: int
    fragments: int
    seconds: float
    imports_mib: float
    resident_mib: float


@dataclass(frozen=True)
class Reading:
    """Milliseconds for 64 random passages, the median of all rounds. ratio: of the two. cached: whether the
    passages were in the page cache."""

    cached: bool
    memmap_ms: float
    store_ms: float
    ratio: float
    mib: float


@click.command()
@click.option("--passages", default=1_000_000, show_default=True)
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
    passages: int, codec: Any, rounds: int, real: bool, folder: Path | None, out: Path
) -> None:
    """Example: python benchmarks/store_scale.py --passages 100000"""
    from shared import machine, write_results

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary)
        build(path, passages, codec, sparse=not real)
        opening = Opening(**in_a_process("opening", path, passages, rounds))
        dropped = drop_page_cache()
        readings = [
            Reading(cached=cached or not dropped, **in_a_process("reading", path, passages, rounds))
            for cached in (False, True)
        ]
        size = sum(file.stat().st_size for file in path.rglob("*"))
        on_disk = sum(file.stat().st_blocks * 512 for file in path.rglob("*"))
    about = {
        "machine": machine(),
        "codec": codec,
        "width": WIDTH,
        "latents_of_a_passage": LATENTS,
        "sparse": not real,
        "apparent_gb": round(size / 1e9, 1),
        "on_disk_gb": round(on_disk / 1e9, 1),
    }
    write_results(out, about, [opening, *readings])
    click.echo(
        f"{passages:,} passages, {opening.fragments:,} fragments, {size / 1e9:,.1f} GB "
        f"({on_disk / 1e9:,.1f} GB on disk)\n"
        f"opening, first key found: {opening.seconds:.2f} s; resident {opening.resident_mib:.0f} MiB, of "
        f"which {opening.imports_mib:.0f} MiB before"
    )
    for r in readings:
        click.echo(
            f"64 random passages, {r.mib:.1f} MiB of latents, "
            f"{'in the page cache' if r.cached else 'cold'}: "
            f"numpy.memmap {r.memmap_ms:.1f} ms, store {r.store_ms:.1f} ms, ratio {r.ratio:.2f}"
        )


def drop_page_cache() -> bool:
    """Whether it could be emptied."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def build(path: Path, passages: int, codec: Any, sparse: bool) -> None:
    layout = Layout(codec, "encoder", WIDTH, "f" * 16, RATIO)
    LatentStore.create(path, layout)
    encoded = np.zeros((LATENTS, layout.latent_bytes), np.uint8)
    text = "It is some text, about as long as what a thousand tokens stand for. " * 66
    digest = Document("any", text).content_hash()
    punched: set[str] = set()
    with writing(path, "add") as writer:
        for i in track(range(passages), "writing", disable=not sys.stderr.isatty()):
            passage = Passage(
                PassageKey(f"document-{i}", 0), 0, len(text), text, {"year": 1900 + i % 120}
            )
            writer.add(StoredPassage(passage, LATENTS * RATIO, digest, True, encoded, layout))
            if sparse and i % 512 == 0:
                punch(path, punched, layout)
        writer.commit()
    if sparse:
        punch(path, punched, layout)


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


def opening(path: Path, passages: int, rounds: int) -> dict[str, Any]:
    before = resident_mib()
    started = time.perf_counter()
    store = LatentStore.open(path)
    found = PassageKey(f"document-{passages // 2}", 0) in store
    seconds = time.perf_counter() - started
    assert found
    return {
        "passages": len(store),
        "fragments": len(store.manifest.fragments),
        "seconds": seconds,
        "imports_mib": before,
        "resident_mib": resident_mib(),
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
