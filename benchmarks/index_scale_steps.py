"""What index_scale.py measures, one step after another, each in a process of its own.

python benchmarks/index_scale_steps.py ingest|optimize|ask|add FOLDER POINTS WAY
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from lclm_rag import Document, Passage, PassageKey
from lclm_rag.indexing.embedded import EmbeddedIndex
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.retrieval import Filter, field
from lclm_rag.storage import LocalFolder
from lclm_rag.store import LatentStore, Layout, StoredPassage, writing

__all__ = ["MIB", "TOP_K", "WAYS", "WIDTH", "add_document", "build_store", "disk_bytes"]

MIB = 2**20
LAYOUT = Layout("bf16", "encoder", 4, "f" * 16, 16)
WIDTH = 384
WAYS = ("bm25", "bm25 + dense")
VOCABULARY = 50_000
STOP_WORDS = 100
BLOCK = 1_000
TOP_K = 16
QUESTION_SECONDS = 60
FILTERS = {"none": None, "1%": field("topic") == "topic7", "50%": field("half") == "a"}


# --- what is made up


def texts(block: int) -> list[str]:
    """The passages of a block: 60 to 100 words each."""
    random = np.random.default_rng(block)
    weights = 1 / (STOP_WORDS + np.arange(1, VOCABULARY + 1))
    lengths = random.integers(60, 101, BLOCK)
    drawn = random.choice(VOCABULARY, lengths.sum(), p=weights / weights.sum())
    ends = np.cumsum(lengths)
    return [
        " ".join(f"word{rank}" for rank in drawn[end - length : end].tolist())
        for end, length in zip(ends, lengths, strict=True)
    ]


def row(i: int, text: str) -> StoredPassage:
    metadata = {"topic": f"topic{i % 100}", "half": "a" if i % 2 else "b", "year": 1900 + i % 120}
    passage = Passage(PassageKey(f"d{i}", 0), 0, len(text), text, metadata)
    digest = Document(f"d{i}", text, metadata).content_hash()
    encoded = np.zeros((1, LAYOUT.latent_bytes), np.uint8)
    return StoredPassage(passage, 16, digest, True, encoded, LAYOUT)


def build_store(path: Path, points: int) -> None:
    LatentStore.create(path / "store", LAYOUT)
    with writing(path / "store", "add") as writer:
        blocks = range(points // BLOCK)
        for block in track(blocks, f"a store of {points:,}", disable=not sys.stderr.isatty()):
            for i, text in enumerate(texts(block), block * BLOCK):
                writer.add(row(i, text))
        writer.commit()


def add_document(path: Path, points: int) -> None:
    """One more document, with a word that no other has."""
    with writing(path / "store", "add") as writer:
        i = points + LatentStore.open(path / "store").version
        writer.add(row(i, f"{texts(0)[0]} added{i}"))
        writer.commit()


def questions(points: int, count: int = 200) -> list[str]:
    random = np.random.default_rng(1)
    passages = texts(points // BLOCK // 2)
    return [" ".join(random.choice(passages[n].split(), 6, replace=False)) for n in range(count)]


class ClusteredEmbedder:
    """Unit vectors around one of a thousand centres, which the text alone decides."""

    name = "clustered"
    width = WIDTH

    def __init__(self) -> None:
        self._random = np.random.default_rng(os.getpid())
        self._centres = np.random.default_rng(0).standard_normal((1000, WIDTH), np.float32)

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        centres = self._centres[[zlib.crc32(text.encode()) % 1000 for text in texts]]
        vectors = centres + 0.7 * self._random.standard_normal(centres.shape, np.float32)
        units: list[list[float]] = (
            vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        ).tolist()
        return units

    def embed_question(self, question: str) -> list[float]:
        return self.embed_passages([question])[0]


# --- the steps


class TimedIndex(EmbeddedIndex):
    """Counts the seconds that publishing takes, and optimizes only when it is told to."""

    published_seconds = 0.0

    def _settle(self, changed: int) -> None: ...

    def _publish(self, store: LatentStore) -> None:
        began = time.perf_counter()
        super()._publish(store)
        self.published_seconds += time.perf_counter() - began


def opened(path: Path, way: str) -> tuple[TimedIndex, LatentStore]:
    store = LatentStore.open(path / "store")
    embedder = None if way == "bm25" else ClusteredEmbedder()
    return TimedIndex(LocalFolder(path / way), store, embedder), store


def made(began: float, index: TimedIndex, path: Path, way: str) -> dict[str, Any]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # The engine optimizes in one.
    (snapshot,) = SnapshotFolder(LocalFolder(path / way)).snapshots()
    return {
        "made_seconds": time.perf_counter() - began - index.published_seconds,
        "published_seconds": index.published_seconds,
        "made_peak_mib": max(memory_mib("VmHWM"), children.ru_maxrss / 1024),
        "disk_mib": disk_bytes(snapshot.path) / MIB,
    }


def ingest(path: Path, points: int, way: str) -> dict[str, Any]:
    began = time.perf_counter()
    index, _ = opened(path, way)
    index.publish()
    facts = made(began, index, path, way)
    index.close()
    return facts


def optimize(path: Path, points: int, way: str) -> dict[str, Any]:
    index, _ = opened(path, way)
    began = time.perf_counter()
    index.optimize()
    facts = made(began, index, path, way)
    index.close()
    return facts


def ask(path: Path, points: int, way: str) -> dict[str, Any]:
    asked = questions(points)
    began = time.perf_counter()
    index, _ = opened(path, way)
    assert index.index.search(asked[0], TOP_K)
    first, resident = time.perf_counter() - began, memory_mib("VmRSS")
    times = {name: search_ms(index, asked, filter) for name, filter in FILTERS.items()}
    facts = {
        "first_hit_seconds": first,
        "opened_mib": resident,
        "queried_mib": memory_mib("VmRSS"),
        "anonymous_mib": memory_mib("RssAnon"),
        "p50_ms": {name: float(np.percentile(ms, 50)) for name, ms in times.items()},
        "p95_ms": {name: float(np.percentile(ms, 95)) for name, ms in times.items()},
        "questions": {name: len(ms) for name, ms in times.items()},
    }
    index.close()
    return facts


def search_ms(index: EmbeddedIndex, asked: list[str], filter: Filter | None) -> list[float]:
    found = []
    ends = time.perf_counter() + QUESTION_SECONDS
    for question in asked:
        began = time.perf_counter()
        index.index.search(question, TOP_K, filter)
        found.append(1e3 * (time.perf_counter() - began))
        if time.perf_counter() > ends:
            break
    return found


def add(path: Path, points: int, way: str) -> dict[str, Any]:
    """`add_document` has put it into the store."""
    began = time.perf_counter()
    index, store = opened(path, way)
    added = points + store.version - 1
    hits = index.index.search(f"added{added}", TOP_K)
    searchable = time.perf_counter()
    assert f"d{added}" in {hit.key.document_id for hit in hits}
    index.close()
    return {
        "add_seconds": searchable - began,
        "add_published_seconds": time.perf_counter() - searchable,
    }


def disk_bytes(folder: Path) -> int:
    """What lies below a folder, hard links counted once."""
    blocks = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                facts = os.stat(os.path.join(parent, name))  # noqa: PTH116, PTH118
            except FileNotFoundError:
                continue
            blocks[facts.st_ino] = facts.st_blocks
    return 512 * sum(blocks.values())


def memory_mib(what: str) -> float:
    """Of this process, as the kernel counts it: VmRSS, RssAnon now, VmHWM at most so far."""
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    step = {"ingest": ingest, "optimize": optimize, "ask": ask, "add": add}[sys.argv[1]]
    print(json.dumps(step(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
