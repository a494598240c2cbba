"""How long it takes until a process can search a knowledge base that others search, too.

Builds the passage index of so many made-up passages, as a knowledge base has it, and publishes it. Then
several processes open it at the same time, each its own view of the snapshot (hard links), and search; a
process that has to add passages takes a copy. Compared with the engine opening a folder that no one else may
use.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

from lclm_rag import Document, Passage, PassageKey
from lclm_rag.indexing.embedded import EmbeddedIndex
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.retrieval import EdgeIndex
from lclm_rag.storage import LocalFolder
from lclm_rag.store import LatentStore, Layout, StoredPassage, writing

MIB = 2**20
LAYOUT = Layout("bf16", "encoder", 4, "f" * 16, 16)
WORDS = 60
VOCABULARY = 50_000


@dataclass(frozen=True)
class Opening:
    """seconds: until the first hits are there, imports left out; the slowest of `processes` at once.
    ratio: to the engine alone, one process. resident_mib: of each process then."""

    way: str
    processes: int
    seconds: float
    ratio: float
    resident_mib: float


@click.command()
@click.option("--passages", default=100_000, show_default=True)
@click.option("--width", default=384, show_default=True, help="Of dense vectors; 0: BM25 alone.")
@click.option("--processes", default=4, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "index_opening",
    help="Where the JSON goes.",
)
def main(passages: int, width: int, processes: int, out: Path) -> None:
    """Example: python benchmarks/index_opening.py --passages 20000 --width 0"""
    from shared import machine, write_results

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary)
        build(path, passages, width)
        snapshot = SnapshotFolder(LocalFolder(path / "index")).nearest(1)[0]
        assert snapshot is not None
        size = sum(f.stat().st_blocks * 512 for f in snapshot.path.rglob("*")) / MIB
        alone = measured("alone", path, width, 1)
        ways = [("alone", 1, alone), ("a view", 1, measured("view", path, width, 1))]
        ways.append(("a view", processes, measured("view", path, width, processes)))
        ways.append(("a copy, one passage added", 1, measured("copy", path, width, 1)))
        results = [
            Opening(way, count, found["seconds"], found["seconds"] / alone["seconds"], found["mib"])
            for way, count, found in ways
        ]
    about = {"machine": machine(), "passages": passages, "width": width, "index_mib": round(size)}
    write_results(out, about, results)
    click.echo(f"{passages:,} passages, dense width {width}: index of {size:,.0f} MiB on disk")
    for r in results:
        click.echo(
            f"{r.way:28}{r.processes} at once: {r.seconds:6.2f} s, ratio {r.ratio:4.1f}, resident "
            f"{r.resident_mib:5.0f} MiB each"
        )


class RandomEmbedder:
    """Vectors without meaning: the time does not depend on it."""

    name = "random"

    def __init__(self, width: int) -> None:
        self.width = width
        self._random = np.random.default_rng(0)

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._random.standard_normal((len(texts), self.width)).tolist()
        return vectors

    def embed_question(self, question: str) -> list[float]:
        return self.embed_passages([question])[0]


def embedder(width: int) -> Any:
    return RandomEmbedder(width) if width else None


def build(path: Path, passages: int, width: int) -> None:
    store = LatentStore.create(path / "store", LAYOUT)
    with writing(path / "store", "add") as writer:
        for row in track(rows(passages), "writing", passages, disable=not sys.stderr.isatty()):
            writer.add(row)
        store = writer.commit()
    index = EmbeddedIndex(LocalFolder(path / "index"), store, embedder(width))
    index.publish()
    index.close()


def rows(passages: int) -> Iterator[StoredPassage]:
    choose = random.Random(0)
    encoded = np.zeros((1, LAYOUT.latent_bytes), np.uint8)
    for i in range(passages):
        text = " ".join(f"word{int(choose.paretovariate(0.6)) % VOCABULARY}" for _ in range(WORDS))
        metadata = {"year": 1900 + i % 120, "lang": "en" if i % 3 else "de", "part": i % 7}
        passage = Passage(PassageKey(f"d{i}", 0), 0, len(text), text, metadata)
        digest = Document(f"d{i}", text, metadata).content_hash()
        yield StoredPassage(passage, 16, digest, True, encoded, LAYOUT)


def measured(way: str, path: Path, width: int, processes: int) -> dict[str, float]:
    """The slowest of so many processes that begin at once."""
    command = [sys.executable, __file__, "--measure", way, str(path), str(width)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [json.loads(process.communicate()[0]) for process in started]
    return max(said, key=lambda each: float(each["seconds"]))


def open_and_search(way: str, path: Path, width: int) -> dict[str, float]:
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    if way == "alone":
        snapshot = next(SnapshotFolder(LocalFolder(path / "index")).snapshots())
        alone = EdgeIndex.open(snapshot.path / "edge", bm25=snapshot.bm25, embedder=embedder(width))
        hits = alone.search("word7 word11", 10)
    else:
        if way == "copy":
            with writing(path / "store", "add") as writer:
                for row in rows(1):
                    writer.delete_document(row.passage.key.document_id)
                    writer.add(row)
                writer.commit()
        store = LatentStore.open(path / "store")
        hits = EmbeddedIndex(LocalFolder(path / "index"), store, embedder(width)).index.search(
            "word7 word11", 10
        )
    seconds = time.perf_counter() - began
    assert len(hits) == 10
    status = Path("/proc/self/status").read_text()
    return {"seconds": seconds, "mib": int(status.split("VmRSS:")[1].split()[0]) / 1024}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(open_and_search(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
