"""The passage index in process: Qdrant Edge, in a folder of this process's own.

The engine's write-ahead log is off, and with it the lock that the log holds: what is on disk is whole after
`flush` only. `lclm_rag.indexing.snapshots` gives each process a private folder, and publishes flushed ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from lclm_rag.errors import PassageIndexError
from lclm_rag.forking import keep_for_ever, watch
from lclm_rag.retrieval.bm25 import Bm25Settings
from lclm_rag.retrieval.embedders import Embedder
from lclm_rag.retrieval.filters import Filter
from lclm_rag.retrieval.index import ScoredKey
from lclm_rag.retrieval.points import passage_key, translate
from lclm_rag.retrieval.qdrant_index import (
    BM25,
    DENSE,
    PAYLOAD_KEYS,
    RRF_K,
    PointData,
    QdrantIndex,
    SearchVectors,
    check_dense_width,
)
from lclm_rag.types import PassageKey

__all__ = ["OPTIMIZE_FROM", "EdgeIndex", "settle", "stored_keys"]

# Edge's own file; it says which vectors a shard has, which the Python API does not.
_CONFIG = "edge_config.json"

OPTIMIZE_FROM = 5_000
"""Passages. Below this the engine finds nothing to do, and closing and opening the shard would be in vain."""

_OPTIMIZE = """
import sys, qdrant_edge
shard = qdrant_edge.EdgeShard.load(sys.argv[1])
shard.optimize()
shard.close()
"""

_SCHEMAS = {"keyword": edge.PayloadSchemaType.Keyword, "float": edge.PayloadSchemaType.Float}


class EdgeIndex(QdrantIndex):
    """A PassageIndex in the folder `path`. Threads may share it; they take turns."""

    def __init__(
        self, path: Path, shard: edge.EdgeShard, bm25: Bm25Settings, embedder: Embedder | None
    ) -> None:
        super().__init__(bm25, embedder)
        self._path = path
        self._shard: edge.EdgeShard | None = shard
        self._lock = threading.RLock()
        with self._open_shard() as shard:
            self._note_indexed(shard.info().payload_schema)
        watch(self)

    def after_fork(self) -> None:
        """The engine's threads are not in the child: there the index is closed, though nothing of it is."""
        keep_for_ever(self._shard)
        self._shard, self._lock = None, threading.RLock()

    @classmethod
    def create(
        cls, path: str | Path, *, bm25: Bm25Settings, embedder: Embedder | None = None
    ) -> EdgeIndex:
        """A new index in a folder that is empty or not there yet.

        Raises PassageIndexError where the folder holds something.
        """
        path = Path(path)
        if path.is_dir() and any(path.iterdir()):
            raise PassageIndexError(
                f"{path} is not empty; a passage index needs a folder of its own."
            )
        vectors = {}
        if embedder is not None:
            vectors[DENSE] = edge.EdgeVectorParams(
                size=embedder.width, distance=edge.Distance.Cosine
            )
        config = edge.EdgeConfig(
            vectors=vectors,
            sparse_vectors={BM25: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
            wal_enabled=False,
        )
        with _edge_errors(path):
            shard = edge.EdgeShard.create(str(path), config)
        return cls(path, shard, bm25, embedder)

    @classmethod
    def open(
        cls, path: str | Path, *, bm25: Bm25Settings, embedder: Embedder | None = None
    ) -> EdgeIndex:
        """The index that `create` made in `path`, given the same settings and embedder.

        Raises PassageIndexError where there is none, it is damaged, or it does not fit the embedder.
        """
        path = Path(path)
        # Edge would lay down an empty shard in a folder that has none.
        if not (path / _CONFIG).is_file():
            raise PassageIndexError(f"There is no passage index at {path}.")
        check_dense_width(f"The passage index at {path}", _stored_width(path), embedder)
        return cls(path, _load(path), bm25, embedder)

    def count(self) -> int:
        with self._open_shard() as shard:
            return shard.count(edge.CountRequest(exact=True))

    def flush(self) -> None:
        with self._open_shard() as shard:
            shard.flush()

    def optimize(self) -> None:
        """Merge segments and build the vector graph. Searches from other threads wait.

        Edge holds the interpreter's lock while it works, for minutes on large indexes, so that even
        a progress bar would stand still: another process does it, with the folder handed over.
        """
        if self.count() < OPTIMIZE_FROM:
            return
        with self._lock:
            self.close()
            try:
                worker = subprocess.run(
                    [sys.executable, "-c", _OPTIMIZE, str(self._path.absolute())],
                    capture_output=True,
                    text=True,
                )
            finally:
                self._shard = _load(self._path)
        if worker.returncode != 0:
            output = worker.stderr.strip().splitlines()[-1:] or [f"exit code {worker.returncode}"]
            raise PassageIndexError(
                f"The passage index at {self._path} could not be optimized: {output[0]}"
            )

    def close(self) -> None:
        with self._lock:
            if self._shard is not None:
                with self._open_shard() as shard:
                    shard.flush()
                    shard.close()
                self._shard = None

    def _write(self, points: list[PointData]) -> None:
        self._update(edge.UpdateOperation.upsert_points([_point(point) for point in points]))

    def _remove(self, ids: list[str]) -> None:
        self._update(edge.UpdateOperation.delete_points([*ids]))

    def _create_field_index(self, path: str, schema: str) -> None:
        self._update(edge.UpdateOperation.create_field_index(path, _SCHEMAS[schema]))

    def _refresh_indexed(self) -> None:
        """No other process writes to it."""

    def _update(self, operation: edge.UpdateOperation) -> None:
        with self._open_shard() as shard:
            shard.update(operation)

    def _query(self, vectors: SearchVectors, limit: int, filter: Filter | None) -> list[ScoredKey]:
        condition = _condition(filter)
        words = edge.Query.Nearest(edge.SparseVector(vectors.indices, vectors.values), using=BM25)
        if vectors.dense is None:
            request = edge.QueryRequest(
                limit=limit, query=words, filter=condition, with_payload=PAYLOAD_KEYS
            )
        else:
            queries = [edge.Query.Nearest(vectors.dense, using=DENSE)]
            queries += [words] if vectors.indices else []
            request = edge.QueryRequest(
                limit=limit,
                prefetches=[
                    edge.Prefetch(limit=vectors.candidates, query=query, filter=condition)
                    for query in queries
                ],
                query=edge.Fusion.Rrf(k=RRF_K),  # type: ignore[arg-type]  # it is a Fusion
                with_payload=PAYLOAD_KEYS,
            )
        with self._open_shard() as shard:
            found = shard.query(request)
        return [ScoredKey(passage_key(point.payload), point.score) for point in found]

    def _scroll(
        self, filter: Filter | None, limit: int, offset: Any
    ) -> tuple[list[dict[str, Any] | None], Any]:
        condition = _condition(filter)
        request = edge.ScrollRequest(
            offset=offset, limit=limit, filter=condition, with_payload=PAYLOAD_KEYS
        )
        with self._open_shard() as shard:
            found, following = shard.scroll(request)
        return [record.payload for record in found], following

    @contextmanager
    def _open_shard(self) -> Iterator[edge.EdgeShard]:
        with self._lock, _edge_errors(self._path):
            if self._shard is None:
                raise PassageIndexError(f"The passage index at {self._path} is closed.")
            yield self._shard


def settle(path: Path) -> None:
    """Open and close an index once: what the engine tidies up at an opening is then tidy."""
    _load(path).close()


def stored_keys(path: Path) -> set[PassageKey]:
    """The keys of all passages in an index, whatever its embedder. PassageIndexError where it is damaged."""
    shard = _load(path)
    keys: set[PassageKey] = set()
    with _edge_errors(path):
        offset = None
        while True:
            request = edge.ScrollRequest(offset=offset, limit=10_000, with_payload=PAYLOAD_KEYS)
            found, offset = shard.scroll(request)
            keys.update(passage_key(record.payload) for record in found)
            if offset is None:
                break
        shard.close()
    return keys


def _condition(filter: Filter | None) -> Any:
    if filter is None:
        return None
    return translate(filter, edge, edge.RangeFloat, edge.IsEmptyCondition)


def _point(point: PointData) -> edge.Point:
    vector: dict[str, Any] = {BM25: edge.SparseVector(point.indices, point.values)}
    if point.dense is not None:
        vector[DENSE] = point.dense
    return edge.Point(id=point.id, vector=vector, payload=point.payload)


def _load(path: Path) -> edge.EdgeShard:
    with _edge_errors(path):
        return edge.EdgeShard.load(str(path))


def _stored_width(path: Path) -> int | None:
    """The width of a shard's dense vectors, None where it has none."""
    try:
        vectors = json.loads((path / _CONFIG).read_text())["vectors"]
        width: int | None = vectors[DENSE]["size"] if DENSE in vectors else None
    except (ValueError, KeyError, TypeError) as error:
        raise PassageIndexError(f"The passage index at {path} is damaged: {_CONFIG}.") from error
    return width


@contextmanager
def _edge_errors(path: Path) -> Iterator[None]:
    """Edge raises bare Exception; a Rust panic (damaged files) is a BaseException and no more."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = str(error).removeprefix("Service runtime error: ")
        raise PassageIndexError(f"The passage index at {path} failed: {reason}") from error
