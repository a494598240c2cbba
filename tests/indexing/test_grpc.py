"""A Qdrant server is spoken to by gRPC where QDRANT_GRPC_PORT says so.

The server is a stand-in: see tests/support/qdrant_grpc.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import grpc  # type: ignore[import-untyped]
import pytest

from lclm_rag import Document, KnowledgeBase, retries
from lclm_rag.errors import PassageIndexError
from support.qdrant_grpc import GrpcFaults, serve_grpc

NOWHERE = "http://127.0.0.1:9"  # By HTTP nobody answers.


def test_points_are_written_and_searched_by_grpc_and_calls_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=waits.append, monotonic=lambda: 0.0))
    faults = GrpcFaults()
    with (
        serve_grpc(faults) as port,
        KnowledgeBase.create(tmp_path / "kb", qdrant_url=NOWHERE, collection="c") as kb,
    ):
        monkeypatch.setenv("QDRANT_GRPC_PORT", str(port))
        kb.add([Document("a", "Trains run hourly.", {"n": 1}), Document("b", "Trains stop.")])
        assert {hit.key.document_id for hit in kb.retrieve("trains")} == {"a", "b"}
        assert [hit.key.document_id for hit in kb.retrieve("trains", filters={"n": 1})] == ["a"]
        faults.codes += [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]
        kb.delete(["b"])
        assert len(waits) == 2
        assert kb.index.count() == 1
        faults.codes += [grpc.StatusCode.PERMISSION_DENIED]
        with pytest.raises(PassageIndexError, match="set QDRANT_API_KEY"):
            kb.retrieve("trains")
        faults.codes += [grpc.StatusCode.NOT_FOUND]
        with pytest.raises(PassageIndexError, match=r"has no collection.*verify --repair"):
            kb.retrieve("trains")
    assert {"Upsert", "QueryBatch", "Delete", "UpdateAliases"} <= set(faults.calls)


def test_a_port_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_GRPC_PORT", "grpc")
    with KnowledgeBase.create(tmp_path / "kb", qdrant_url=NOWHERE) as kb:
        with pytest.raises(PassageIndexError, match="QDRANT_GRPC_PORT is 'grpc'"):
            kb.add([Document("a", "Trains run hourly.")])
        assert kb.store.version == 0
