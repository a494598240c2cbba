"""What `lclm-rag info` advises."""

from __future__ import annotations

import json

import pytest

from lclm_rag import KnowledgeBase
from lclm_rag.cli.main import _run
from lclm_rag.indexing import advice
from lclm_rag.indexing.advice import EMBEDDED_UP_TO, index_advice


def test_a_server_is_recommended_above_the_size_that_was_measured() -> None:
    assert index_advice(0, None) is None
    assert index_advice(EMBEDDED_UP_TO, None) is None
    said = index_advice(EMBEDDED_UP_TO + 1, None)
    assert said is not None
    assert f"Above {EMBEDDED_UP_TO:,} passages" in said
    assert "--qdrant-url" in said
    assert index_advice(100 * EMBEDDED_UP_TO, "http://localhost:6333") is None


def test_info_recommends_a_server_where_the_embedded_index_is_large(
    small_kb: KnowledgeBase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def info(*options: str) -> str:
        assert _run(["info", "--kb", str(small_kb.path), *options]) == 0
        return capsys.readouterr().out

    assert json.loads(info("--json"))["advice"] is None
    assert "advice" not in info()
    monkeypatch.setattr(advice, "EMBEDDED_UP_TO", len(small_kb) - 1)
    sentence = json.loads(info("--json"))["advice"]
    assert "a Qdrant server is recommended" in sentence
    assert f"advice{'':18}{sentence}" in info()
