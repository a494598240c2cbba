"""What a point costs the passage index in bytes, for `lclm-rag estimate`: the constants of
lclm_rag/estimate/index.py, by their names.

Each is a slope between two sizes, so that what does not grow with the size falls out. How long a search
takes: index_scale.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from lclm_rag import PassageKey
from lclm_rag.retrieval import Bm25Settings, EdgeIndex, IndexEntry

VOCABULARY = 50_000
WEIGHTS = 1 / (100 + np.arange(1, VOCABULARY + 1))  # As in English, without its stop words.
BATCH = 1_000


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

    results = list(indexes(points))
    for constant in results:
        click.echo(f"{constant.name:28}{constant.value:12.4g}  {constant.unit}")
    write_results(out, {"machine": machine(), "points": points}, results)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


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
