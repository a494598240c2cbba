"""The passage index in process: Qdrant Edge, in a folder that no other process uses.

The engine's write-ahead log is off, and so is the lock that the log would hold. The files on disk are
therefore complete only after `flush`. `lclm_rag.indexing.snapshots` gives each process a private folder and
publishes folders that have been flushed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import qdrant_edge as edge

from lclm_rag.errors import PassageIndexError
from lclm_rag.forking import keep_for_ever, watch
from lclm_rag.retrieval.bm25 import Bm25Settings
from lclm_rag.retrieval.embedders import Embedder
from lclm_rag.retrieval.filters import Filter
from lclm_rag.retrieval.index import ScoredKey
from lclm_rag.retrieval.points import passage_key, scored_key, translate
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

# Edge writes this file. It lists a shard's vectors, which the Python API does not.
_CONFIG = "edge_config.json"

OPTIMIZE_FROM = 5_000
"""The number of passages from which `EdgeIndex.optimize` does anything.

With fewer, the engine has nothing to optimize, and closing and reopening the shard would gain nothing.
"""

_OPTIMIZE = """
import sys, qdrant_edge
shard = qdrant_edge.EdgeShard.load(sys.argv[1])
shard.optimize()
shard.close()
"""

_TRIAL = """
import resource, sys, qdrant_edge
pages = open("/proc/self/statm").read().split()
for number, at, room in zip((resource.RLIMIT_AS, resource.RLIMIT_DATA), (0, 5), sys.argv[2:]):
    if int(room) >= 0:
        used = int(pages[at]) * resource.getpagesize()
        resource.setrlimit(number, (used + int(room), resource.getrlimit(number)[1]))
qdrant_edge.EdgeShard.load(sys.argv[1]).close()
"""
_TRIAL_SECONDS = 600
_NO_MEMORY = (
    "memory allocation of",
    "MemoryError",
    "Cannot allocate memory",
    "Resource temporarily unavailable",  # No memory for a thread.
)

_SCHEMAS = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "float": edge.PayloadSchemaType.Float,
    "datetime": edge.PayloadSchemaType.Datetime,
}


class EdgeIndex(QdrantIndex):
    """A `PassageIndex` in a folder, made by `create` or `open`.

    Threads may share it; they take turns.

    Args:
        path: The folder of the index.
        shard: The engine's open shard in that folder.
        bm25: The settings that the index was created with.
        embedder: The embedder that the index was created with; None for BM25 alone.
    """

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
        """Mark the index as closed in a forked child, which lacks the engine's threads; release nothing."""
        keep_for_ever(self._shard)
        self._shard, self._lock = None, threading.RLock()

    @classmethod
    def create(
        cls, path: str | Path, *, bm25: Bm25Settings, embedder: Embedder | None = None
    ) -> EdgeIndex:
        """Create an index in a new or empty folder.

        Args:
            path: The folder, which must be empty or not exist yet.
            bm25: How words become sparse vectors.
            embedder: Makes the dense vectors; None for BM25 alone.

        Returns:
            The empty index, open.

        Raises:
            PassageIndexError: When the folder is not empty, or the engine fails.
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
        """Open the index that `create` made in a folder.

        Args:
            path: The folder of the index.
            bm25: The settings that the index was created with.
            embedder: The embedder that the index was created with; None if there was none.

        Returns:
            The open index.

        Raises:
            PassageIndexError: When the folder has no index, the index is damaged, or its dense vectors do not
                fit the embedder.
        """
        path = Path(path)
        # Edge would create an empty shard in a folder that has none.
        if not (path / _CONFIG).is_file():
            raise PassageIndexError(f"There is no passage index at {path}.")
        check_dense_width(f"The passage index at {path}", _stored_width(path), embedder)
        return cls(path, _load(path), bm25, embedder)

    def count(self) -> int:
        """The number of passages, exact."""
        with self._open_shard() as shard:
            return shard.count(edge.CountRequest(exact=True))

    def flush(self) -> None:
        """Return once everything written so far is on disk. Only then are the files complete."""
        with self._open_shard() as shard:
            shard.flush()

    def optimize(self) -> None:
        """Merge segments and build the vector graph. Searches from other threads wait.

        Edge holds the interpreter's lock while it optimizes, for minutes on large indexes, so that not even a
        progress bar would move. A child process does the work instead: this process closes the shard, the
        child optimizes it, and this process loads it again. Does nothing below `OPTIMIZE_FROM` passages.

        Raises:
            PassageIndexError: When the child process fails.
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
        """Flush and close the shard; closing a closed index does nothing."""
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
        """Do nothing: no other process writes to this index."""

    def _update(self, operation: edge.UpdateOperation) -> None:
        with self._open_shard() as shard:
            shard.update(operation)

    def _query_all(
        self, vectors: Sequence[SearchVectors], limit: int, filter: Filter | None
    ) -> list[list[ScoredKey]]:
        requests = [_request(each, limit, _condition(filter)) for each in vectors]
        found = []
        for request in requests:  # Threads take turns after each, and not after all.
            with self._open_shard() as shard:
                found.append(shard.query(request))
        return [[scored_key(p.payload, p.score) for p in points] for points in found]

    def _dense(self, ids: list[str]) -> dict[str, list[float]]:
        with self._open_shard() as shard:
            records = shard.retrieve([*ids], with_payload=False, with_vector=[DENSE])
        vectors: list[Any] = [record.vector for record in records]
        return {str(r.id): vector[DENSE] for r, vector in zip(records, vectors, strict=True)}

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
    """Open and close an index once, so that the engine does now what it tidies up when it opens a shard."""
    _load(path).close()


def stored_keys(path: Path) -> set[PassageKey]:
    """The keys of all passages in the index at `path`; no embedder is needed.

    Raises:
        PassageIndexError: When the index is damaged.
    """
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
    return translate(filter, edge, edge.RangeFloat, edge.RangeDateTime, edge.IsEmptyCondition)


def _request(vectors: SearchVectors, limit: int, condition: Any) -> edge.QueryRequest:
    words = edge.Query.Nearest(edge.SparseVector(vectors.indices, vectors.values), using=BM25)
    if vectors.dense is None:
        return edge.QueryRequest(
            limit=limit, query=words, filter=condition, with_payload=PAYLOAD_KEYS
        )
    queries = [edge.Query.Nearest(vectors.dense, using=DENSE)]
    queries += [words] if vectors.indices else []
    return edge.QueryRequest(
        limit=limit,
        prefetches=[
            edge.Prefetch(limit=vectors.candidates, query=query, filter=condition)
            for query in queries
        ],
        query=edge.Fusion.Rrf(k=RRF_K),  # type: ignore[arg-type]  # it is a Fusion
        with_payload=PAYLOAD_KEYS,
    )


def _point(point: PointData) -> edge.Point:
    vector: dict[str, Any] = {BM25: edge.SparseVector(point.indices, point.values)}
    if point.dense is not None:
        vector[DENSE] = point.dense
    return edge.Point(id=point.id, vector=vector, payload=point.payload)


def _load(path: Path) -> edge.EdgeShard:
    _require_memory(path)
    with _edge_errors(path):
        return edge.EdgeShard.load(str(path))


def _require_memory(path: Path) -> None:
    """Raise PassageIndexError where this process may not have the memory that the index needs.

    If Edge gets no memory, it aborts, or waits for ever and holds the interpreter's lock, so that this
    process could not even say so. Where there is a limit, a child process with as much room as is left tries
    first.
    """
    if (room := _room()) is None:
        return
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-c", _TRIAL, str(path.absolute()), *map(str, room)]
        with subprocess.Popen(command, stdout=said, stderr=said) as trial:
            output, over = "", False
            while trial.poll() is None and not over:
                time.sleep(0.02)
                output = _read(said)
                over = _NO_MEMORY[0] in output or time.monotonic() - begun > _TRIAL_SECONDS
            trial.kill()
        output = _read(said)
    if trial.returncode >= 0 and not any(sign in output for sign in _NO_MEMORY):
        return  # What else may be wrong is seen here, too.
    least = min(left for left in room if left >= 0) // 2**20
    raise PassageIndexError(
        f"The passage index at {path} cannot be opened with the {least:,} MiB of memory that this process "
        "may still take (ulimit -v, ulimit -d): raise the limit, or put the index on a server: lclm-rag "
        "reindex --qdrant-url URL."
    )


def _room() -> tuple[int, int] | None:
    """The bytes of address space and of data that this process may still take, -1 for any; None if any."""
    if sys.platform != "linux":
        return None
    import resource

    limits = [
        resource.getrlimit(number)[0] for number in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    ]
    if all(limit == resource.RLIM_INFINITY for limit in limits):
        return None
    pages = Path("/proc/self/statm").read_text().split()
    space, data = (
        -1
        if limit == resource.RLIM_INFINITY
        else max(0, limit - int(used) * resource.getpagesize())
        for limit, used in zip(limits, (pages[0], pages[5]), strict=True)
    )
    return space, data


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _stored_width(path: Path) -> int | None:
    """The width of a shard's dense vectors; None if it has none."""
    try:
        vectors = json.loads((path / _CONFIG).read_text())["vectors"]
        width: int | None = vectors[DENSE]["size"] if DENSE in vectors else None
    except (ValueError, KeyError, TypeError) as error:
        raise PassageIndexError(f"The passage index at {path} is damaged: {_CONFIG}.") from error
    return width


@contextmanager
def _edge_errors(path: Path) -> Iterator[None]:
    """Turn the engine's errors into PassageIndexError.

    Edge raises plain `Exception`. A Rust panic (damaged files) arrives as a PanicException, which derives
    from `BaseException` only.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = str(error).removeprefix("Service runtime error: ")
        raise PassageIndexError(f"The passage index at {path} failed: {reason}") from error
