"""Whom a knowledge base makes a reader contact is said once; offline nobody is contacted."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase, OfflineError
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.config import read_settings, write_settings
from lclm_rag.connectors.corpora import read_corpus
from lclm_rag.decoding import load_decoder
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.hub import sizes
from lclm_rag.offline import OFFLINE_VARIABLES, go_offline, is_offline
from lclm_rag.retrieval import SentenceTransformerEmbedder
from lclm_rag.retrieval.collections import open_client
from lclm_rag.retrieval.reranker import CrossEncoderReranker
from lclm_rag.storage import open_folder
from support.commands import Run
from support.hub import LocalHub
from support.qdrant_server import Faults, serve

URL = "http://127.0.0.1:9"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache; what a command sets in the environment is undone."""
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    for name in ("LCLM_RAG_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "")
    for name in ("HF_HUB_DISABLE_TELEMETRY", "VLLM_NO_USAGE_STATS", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")
    return tmp_path / "cache"


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses that were connected to or looked up."""
    seen: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        seen.append(arguments[-2:])
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return seen


@pytest.fixture
def offline(cache: Path, connections: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """LCLM_RAG_OFFLINE is set; the addresses that were contacted all the same."""
    monkeypatch.setenv("LCLM_RAG_OFFLINE", "1")
    return connections


def somebodys(folder: Path, decoder: TransformersDecoder, **settings: Any) -> Path:
    """A knowledge base that somebody else made: nothing in the cache knows its names."""
    with KnowledgeBase.create(folder, decoder=decoder) as kb:
        kb.add([Document("velun", "The mayor of Velun is Gedul Gizel.")])
    opened = open_folder(folder)
    write_settings(opened, dataclasses.replace(read_settings(opened), **settings))
    return folder


def test_opening_says_once_whom_the_knowledge_base_makes_one_contact(
    tmp_path: Path,
    cache: Path,
    decoder: TransformersDecoder,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    LocalHub(monkeypatch, tmp_path / "hub", {"some/lclm": checkpoint.path})
    names = {"checkpoint": "some/lclm", "embedder": "some/embedder", "qdrant_url": URL}
    path = somebodys(tmp_path / "kb", decoder, collection="c", **names)
    KnowledgeBase.open(path).close()
    (line,) = [m for m in caplog.messages if "contact" in m]
    assert all(name in line for name in names.values())
    assert str(path) in line
    caplog.clear()
    KnowledgeBase.open(path).close()
    assert not [m for m in caplog.messages if "contact" in m]
    somebodys(tmp_path / "other", decoder, **names)
    settings = open_folder(path)
    write_settings(settings, dataclasses.replace(read_settings(settings), qdrant_url=f"{URL}9"))
    KnowledgeBase.open(path).close()
    assert any(f"{URL}9" in m for m in caplog.messages), "the names have changed"


def test_a_name_that_the_reader_replaces_or_has_here_is_not_said(
    tmp_path: Path,
    cache: Path,
    decoder: TransformersDecoder,
    checkpoint: Checkpoint,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = somebodys(tmp_path / "kb", decoder, checkpoint="some/lclm", embedder=str(tmp_path))
    KnowledgeBase.open(path, checkpoint=checkpoint.path).close()
    assert not caplog.messages


def test_who_makes_a_knowledge_base_knows_its_names(
    tmp_path: Path, cache: Path, decoder: TransformersDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    KnowledgeBase.create(tmp_path / "kb", decoder=decoder, embedder="some/embedder").close()
    KnowledgeBase.open(tmp_path / "kb", decoder=decoder).close()
    assert not [m for m in caplog.messages if "contact" in m]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"checkpoint": "some/lclm"}, "hub for some/lclm, which is not in the cache"),
        ({"embedder": "some/embedder"}, "the embedder some/embedder, which is not in the cache"),
        ({"embedder": "all-MiniLM-L6-v2"}, "the embedder all-MiniLM-L6-v2"),
    ],
)
def test_an_offline_question_contacts_nobody_whatever_the_knowledge_base_names(
    tmp_path: Path,
    cache: Path,
    connections: list[Any],
    run: Run,
    decoder: TransformersDecoder,
    settings: dict[str, str],
    named: str,
) -> None:
    path = somebodys(tmp_path / "kb", decoder, **settings)
    code, _, err = run("query", "--offline", "--kb", path, "who?")
    assert code == 1
    assert named in err
    assert not connections


@pytest.mark.parametrize("command", [("query", "who?"), ("verify",), ("verify", "--repair")])
def test_an_offline_command_does_not_ask_a_qdrant_server(
    tmp_path: Path, cache: Path, run: Run, decoder: TransformersDecoder, command: tuple[str, ...]
) -> None:
    faults = Faults()
    with serve(faults) as url:
        path = tmp_path / "kb"
        with KnowledgeBase.create(path, decoder=decoder, qdrant_url=url) as kb:
            kb.add([Document("velun", "The mayor of Velun is Gedul Gizel.")])
        before = len(faults.calls)
        code, _, err = run(*command, "--kb", path, "--offline")
        assert code == 1
        assert f"the Qdrant server {url}" in err
        assert len(faults.calls) == before


@pytest.mark.parametrize("before", [True, False])
def test_an_offline_command_answers_where_nobody_is_needed(
    tmp_path: Path,
    cache: Path,
    connections: list[Any],
    run: Run,
    decoder: TransformersDecoder,
    before: bool,
) -> None:
    path = somebodys(tmp_path / "kb", decoder)
    asked = ["query", "--kb", str(path), "Who is the mayor of Velun?"]
    code, out, _ = run(*(["--offline", *asked] if before else [*asked, "--offline"]))
    assert code == 0
    assert "Gedul Gizel" in out
    assert not connections


def test_libraries_are_told_to_contact_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE_VARIABLES:
        monkeypatch.setenv(name, "")  # So that it is put back.
    assert not is_offline()
    go_offline()
    assert is_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("contact", "named"),
    [
        (lambda c: Checkpoint.open("some/lclm"), "some/lclm"),
        (lambda c: sizes("some/lclm", ["*"]), "some/lclm"),
        (lambda c: load_decoder(f"{URL}/v1", c), f"{URL}/v1"),
        (lambda c: open_client(URL), URL),
        (lambda c: SentenceTransformerEmbedder("some/embedder"), "some/embedder"),
        (lambda c: CrossEncoderReranker("some/reranker"), "some/reranker"),
        (lambda c: KnowledgeBase.open("s3://bucket/kb"), "s3://bucket/kb"),
        (lambda c: list(read_corpus("s3://bucket/notes")), "s3://bucket/notes"),
        (lambda c: list(read_corpus("hf://some/texts")), "some/texts"),
    ],
)
def test_offline_an_error_names_who_would_have_been_contacted(
    offline: list[Any],
    checkpoint: Checkpoint,
    contact: Callable[[Checkpoint], object],
    named: str,
) -> None:
    with pytest.raises(OfflineError, match=f"{named}.*nobody may be contacted"):
        contact(checkpoint)
    assert not offline


def test_the_variable_reaches_libraries_before_they_are_imported() -> None:
    code = "import lclm_rag, huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE)"
    for value, expected in (("1", "True"), ("0", "False")):
        environment = {**os.environ, "LCLM_RAG_OFFLINE": value, "HF_HUB_OFFLINE": ""}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert done.stdout.strip() == expected, done.stderr
