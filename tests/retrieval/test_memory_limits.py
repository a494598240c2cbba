"""Opening an index where memory is limited: the engine itself would abort, or wait for ever."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import qdrant_edge as edge

from support.processes import LIMIT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")

OPENS = """
import resource, sys
from pathlib import Path
from lclm_rag.errors import PassageIndexError
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.retrieval.edge import EdgeIndex

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
room = used + int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    index = EdgeIndex.open(Path(sys.argv[1]), bm25=Bm25Settings())
    print("it has", index.count())
    index.close()
except PassageIndexError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with the points of 10,000 passages."""
    path = tmp_path_factory.mktemp("large")
    sparse = {"bm25": edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)}
    shard = edge.EdgeShard.create(
        str(path), edge.EdgeConfig(vectors={}, sparse_vectors=sparse, wal_enabled=False)
    )
    points = [
        edge.Point(
            id=str(uuid.UUID(int=number)),
            vector={"bm25": edge.SparseVector([*range(number, number + 60)], [1.0] * 60)},
            payload={"document_id": "d" * 200},
        )
        for number in range(10_000)
    ]
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.close()
    return path


@pytest.mark.parametrize("mebibytes", [8, 60, 100])
def test_too_little_memory_is_said(large: Path, mebibytes: int) -> None:
    said = _opened(large, mebibytes)
    assert re.match(
        rf"The passage index at {large} cannot be opened with the \d+ MiB of memory ", said
    )
    assert "lclm-rag reindex --qdrant-url" in said


def test_enough_memory_is_enough(large: Path) -> None:
    assert _opened(large, 4000) == "it has 10000"


def test_a_damaged_index_is_no_want_of_memory(large: Path, tmp_path: Path) -> None:
    (tmp_path / "edge_config.json").write_text((large / "edge_config.json").read_text() + "}")
    assert "failed" in _opened(tmp_path, 4000) or "damaged" in _opened(tmp_path, 4000)


def _opened(path: Path, mebibytes: int) -> str:
    command = [sys.executable, "-c", OPENS, str(path), str(mebibytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
