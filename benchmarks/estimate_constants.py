"""What a point costs the passage index in bytes, for `lclm-rag estimate`: the constants of
lclm_rag/estimate/index.py, by their names. And what a fragment and a passage cost whoever opens a store.

Each is a slope between two sizes, so that what does not grow with the size falls out. How long a search
takes: index_scale.py.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from lclm_rag import PassageKey
from lclm_rag.retrieval import Bm25Settings, EdgeIndex, IndexEntry
from lclm_rag.storage import LocalFolder
from lclm_rag.store import LatentStore, Layout
from lclm_rag.store.fragment import keys_checksum
from lclm_rag.store.manifest import FragmentEntry, Manifest, Totals, read_manifest, write_manifest
from lclm_rag.store.store import FRAGMENTS

LAYOUT = Layout("int4", "encoder", 1024, "f" * 16, 16)
VOCABULARY = 50_000
WEIGHTS = 1 / (100 + np.arange(1, VOCABULARY + 1))  # As in English, without its stop words.
BATCH = 1_000
ROWS = 1_024


@dataclass(frozen=True)
class Constant:
    """unit: what it is counted in, and for each of what."""

    name: str
    value: float
    unit: str


@click.command()
@click.option("--points", default=50_000, show_default=True, help="Of a passage index.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "estimate_constants",
    help="Where the JSON goes.",
)
def main(points: int, out: Path) -> None:
    """Example: python benchmarks/estimate_constants.py --points 20000"""
    from shared import machine, write_results

    results = [*manifests(), *openings(), *indexes(points)]
    for constant in results:
        click.echo(f"{constant.name:28}{constant.value:12.4g}  {constant.unit}")
    write_results(out, {"machine": machine(), "points": points}, results)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def entries(count: int) -> tuple[FragmentEntry, ...]:
    return tuple(
        FragmentEntry(
            f"{uuid.uuid4().hex}.arrow", ROWS, 32_768, 524_288, 19_300_000, "0" * 64, 128, "0" * 16
        )
        for _ in range(count)
    )


def manifests() -> Iterator[Constant]:
    """Between 1,000 fragments and 50,000."""
    sizes, seconds = [], []
    for count in (1_000, 50_000):
        with folder() as path:
            there = LocalFolder(path)
            write_manifest(there, Manifest(1, LAYOUT, entries(count), Totals(), "add", "now"))
            sizes.append(there.files()[0].size)
            started = time.perf_counter()
            read_manifest(there, 1)
            seconds.append(time.perf_counter() - started)
    yield Constant("manifest bytes", (sizes[1] - sizes[0]) / 49_000, "bytes a fragment")
    yield Constant("manifest", (seconds[1] - seconds[0]) / 49_000, "s a fragment")


def openings() -> Iterator[Constant]:
    """2,000 fragments of 1,024 rows, then 10 of a million: in one the files count, in the other the rows."""
    hashes = np.random.default_rng(0)
    found = []
    for count, rows in ((2_000, ROWS), (10, 1_000_000)):
        with folder() as path:
            (path / FRAGMENTS).mkdir()
            held = []
            for entry in entries(count):
                keys = hashes.integers(0, 2**63, rows, np.uint64).tobytes()
                held.append(replace(entry, rows=rows, keys_checksum=keys_checksum(keys)))
                (path / FRAGMENTS / entry.name).write_bytes(bytes(entry.keys_offset) + keys)
            manifest = Manifest(1, LAYOUT, tuple(held), Totals(), "add", "now")
            store = LatentStore(LocalFolder(path), manifest)
            started = time.perf_counter()
            store.key_hashes(manifest.fragments)
            read = time.perf_counter() - started
            _ = PassageKey("nobody", 0) in store
            found.append((read, time.perf_counter() - started - read))
    yield Constant("key hashes", found[0][0] / 2_000, "s a fragment")
    yield Constant("sorting", found[1][1] / 10_000_000, "s a passage")


def indexes(points: int) -> Iterator[Constant]:
    """Between passages of about 80 and of about 200 words."""
    short = index(points, 80)
    long = index(points, 200)
    terms = long["terms"] - short["terms"]
    for name, part in (
        ("_INDEX_BYTES_PER_TERM", "vector_index-bm25"),
        ("_VECTOR_BYTES_PER_TERM", "vector_storage-bm25"),
    ):
        yield Constant(name, (long[part] - short[part]) / terms, "bytes a term of a point")
    parts = ("vector_index-bm25", "vector_storage-bm25")
    slope = sum(long[part] - short[part] for part in parts) / terms
    rest = long["all"] - slope * long["terms"] - long["ids"]
    yield Constant("_PAYLOAD_BYTES", rest, "bytes a point")
    yield Constant("_ID_BYTES", long["ids"], "bytes a point")


def index(points: int, words: int) -> dict[str, float]:
    """Terms a point, and bytes a point by part."""
    random = np.random.default_rng(0)
    drawn = WEIGHTS / WEIGHTS.sum()
    settings = Bm25Settings(avg_len=words)
    terms = 0
    with folder() as path:
        edge = EdgeIndex.create(path / "edge", bm25=settings)
        for start in range(0, points, BATCH):
            picked = random.choice(VOCABULARY, (BATCH, words), p=drawn)
            texts = [" ".join(f"word{rank}" for rank in row) for row in picked.tolist()]
            terms += sum(len(set(row)) for row in picked.tolist())
            keys = [PassageKey(f"collection/document-{start + i:08d}", 0) for i in range(BATCH)]
            edge.upsert(IndexEntry(k, text, {}) for k, text in zip(keys, texts, strict=True))
        edge.optimize()
        edge.close()
        sizes = {"terms": terms / points, "all": 0.0, "ids": 0.0}
        for file in (f for f in path.rglob("*") if f.is_file()):
            size = file.stat().st_blocks * 512 / points
            parts = [p for p in file.parts if p.endswith("-bm25")]
            sizes["all"] += size
            if parts:
                sizes[parts[0]] = sizes.get(parts[0], 0.0) + size
            elif "id_tracker" in file.name:
                sizes["ids"] += size
    return sizes


if __name__ == "__main__":
    main()
