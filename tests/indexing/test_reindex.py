"""The passage index is made anew from the store, on a server or in the folder, whoever is killed meanwhile.

The server is a stand-in: see tests/support/qdrant_server.py for what that shows and what not.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient, models

from lclm_rag import Document, KnowledgeBase
from lclm_rag.config import read_settings
from lclm_rag.errors import PassageIndexError
from lclm_rag.reindex import reindex
from lclm_rag.storage import open_folder
from lclm_rag.verify import verify
from support.commands import Run
from support.qdrant_server import Faults, serve

NAMES = ["tides", "bees", "trains", "glaciers"]


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def url(faults: Faults) -> Iterator[str]:
    with serve(faults) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[QdrantClient]:
    client = QdrantClient(url=url, check_compatibility=False)
    yield client
    client.close()


def build(place: Path, url: str | None = None) -> Path:
    """Four documents in as many fragments."""
    collection = None if url is None else "c"
    with KnowledgeBase.create(place, qdrant_url=url, collection=collection) as kb:
        for name in NAMES:
            kb.add([Document(name, f"All about {name}, a common subject.", {"lang": "en", "n": 1})])
    return place


def found(place: Path, **options: str) -> list[str]:
    with KnowledgeBase.open(place, **options) as kb:  # type: ignore[arg-type]
        return sorted(hit.key.document_id for hit in kb.retrieve("common"))


def behind(client: QdrantClient) -> str:
    (alias,) = client.get_aliases().aliases
    return alias.collection_name


def test_from_the_folder_to_a_server_and_back(
    tmp_path: Path, url: str, client: QdrantClient, run: Run
) -> None:
    kb = build(tmp_path / "kb")
    code, out, err = run("reindex", "--kb", kb, "--qdrant-url", url)
    assert (code, out) == (0, f"{kb}: 4 passages in the passage index at {url}.\n"), err
    assert read_settings(open_folder(kb)).qdrant_url == url
    assert client.count("lclm-kb").count == 4
    assert found(kb) == sorted(NAMES)
    assert not list((kb / "index").glob("published/*"))
    with KnowledgeBase.open(kb) as opened:
        opened.delete(["bees"])
        assert opened.index.count() == 3
    code, out, err = run("reindex", "--kb", kb, "--embedded", "--json")
    assert code == 0, err
    done = json.loads(out)
    assert (done["passages"], done["passage_index"]) == (3, None)
    assert "lclm-kb" in done["left"]
    assert client.count("lclm-kb").count == 3  # Nothing is dropped unasked.
    assert found(kb) == sorted({*NAMES} - {"bees"})
    assert verify(kb).problems == []
    run("reindex", "--kb", kb, "--qdrant-url", url)
    assert found(kb) == sorted({*NAMES} - {"bees"})
    assert verify(kb).problems == []


def test_on_the_same_server_with_other_keys_and_options_while_readers_search(
    tmp_path: Path, url: str, client: QdrantClient
) -> None:
    kb = build(tmp_path / "kb", url)
    before = behind(client)
    told: list[tuple[int, int]] = []
    with KnowledgeBase.open(kb) as reader:

        def tell(done: int, total: int) -> None:
            told.append((done, total))
            assert len(reader.retrieve("common")) == 4

        done = reindex(
            kb, qdrant_options={"shard_number": 3}, filter_keys=["lang"], on_progress=tell
        )
        assert done.left is None
        assert told[-1] == (4, 4)
        assert len(told) >= 4
        assert len(reader.retrieve("common")) == 4
    assert behind(client) != before
    assert not client.collection_exists(before)
    assert client.get_collection("c").config.params.shard_number == 3
    with KnowledgeBase.open(kb) as opened:
        assert len(opened.retrieve("common", filters={"lang": "en"})) == 4
        with pytest.raises(ValueError, match="filtered by lang"):
            opened.retrieve("common", filters={"n": 1})
        opened.add([Document("snow", "Snow, a common subject.", {"lang": "en", "n": 2})])
        found, _ = client.scroll("c", limit=10)
        kinds = {kind for p in found for kind in (p.payload or {})["metadata"]}
        assert kinds == {"string"}


_KILLED = """
import os, signal, sys
from lclm_rag.indexing import server
from lclm_rag.indexing import points
from lclm_rag.reindex import reindex
put, count = points.put_rows, []
def killed(*arguments):
    if len(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    put(*arguments)
    count.append(1)
for module in list(sys.modules.values()):
    if getattr(module, "put_rows", None) is put:
        module.put_rows = killed
    if hasattr(module, "_NOTE_EVERY"):
        module._NOTE_EVERY = 0.0
reindex(sys.argv[1], qdrant_url=sys.argv[2])
"""


@pytest.mark.parametrize("before", ["embedded", "server"])
def test_after_a_kill_it_goes_on_with_what_is_not_there_yet(
    tmp_path: Path,
    url: str,
    client: QdrantClient,
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
) -> None:
    kb = build(tmp_path / "kb", url if before == "server" else None)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(kb), url], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert found(kb) == sorted(NAMES)  # What was there before.
    put: list[str] = []
    faults.calls.clear()
    told: list[int] = []
    reindex(kb, qdrant_url=url, on_progress=lambda done, total: told.append(done))
    put = [call for call in faults.calls if call.startswith("PUT") and "/points" in call]
    assert len(put) == 2
    assert told == [2, 3, 4]
    assert not [call for call in faults.calls if call.count("/") == 2 and call.startswith("PUT")]
    assert found(kb) == sorted(NAMES)
    assert verify(kb).problems == []
    assert {f.name for f in (kb / "index").iterdir()} & {"filling.json", "updating.json"} == set()


def test_one_begun_with_other_keys_is_not_continued(
    tmp_path: Path, url: str, client: QdrantClient
) -> None:
    kb = build(tmp_path / "kb")
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(kb), url], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    reindex(kb, qdrant_url=url, filter_keys=["lang"])
    found, _ = client.scroll("lclm-kb", limit=10)
    assert len(found) == 4
    assert {kind for p in found for kind in (p.payload or {})["metadata"]} == {"string"}


def test_a_server_that_moved_with_its_collections_is_only_noted(
    tmp_path: Path, url: str, client: QdrantClient, faults: Faults
) -> None:
    kb = build(tmp_path / "kb", url)
    moved = url.replace("127.0.0.1", "localhost")
    faults.calls.clear()
    done = reindex(kb, qdrant_url=moved)
    assert not done.filled
    assert not [call for call in faults.calls if call.startswith(("PUT", "DELETE"))]
    assert read_settings(open_folder(kb)).qdrant_url == moved
    assert found(kb) == sorted(NAMES)
    # It is no copy of itself afterwards, even under another name.
    renamed = kb.rename(tmp_path / "renamed")
    with KnowledgeBase.open(renamed) as opened:
        opened.delete(["bees"])
        assert opened.index.count() == 3


def test_a_copy_leaves_the_collection_of_its_original_alone(
    tmp_path: Path, url: str, client: QdrantClient
) -> None:
    kb = build(tmp_path / "kb", url)
    before = behind(client)
    for name, place in (("one", url), ("two", url.replace("127.0.0.1", "localhost"))):
        copy = tmp_path / name
        shutil.copytree(kb, copy)
        assert reindex(copy, qdrant_url=place).filled
        assert client.collection_exists(before)
        with KnowledgeBase.open(copy) as opened:
            opened.delete(["bees"])
        assert len(found(copy)) == 3
        assert found(kb) == sorted(NAMES)


def test_what_is_anothers_on_the_new_server_is_left_alone(
    tmp_path: Path, url: str, client: QdrantClient
) -> None:
    kb = build(tmp_path / "kb", url)
    with serve() as other:
        theirs = QdrantClient(url=other, check_compatibility=False)
        bm25 = models.SparseVectorParams(modifier=models.Modifier.IDF)
        theirs.create_collection("c", vectors_config={}, sparse_vectors_config={"bm25": bm25})
        theirs.upsert("c", [models.PointStruct(id=1, vector={}, payload={})])
        done = reindex(kb, qdrant_url=other)
        assert done.left == f"the collection 'c' at {url}"
        assert theirs.count("c").count == 1
        assert found(kb) == sorted(NAMES)
        assert client.count("c").count == 4
        theirs.close()


def test_a_failure_leaves_what_was_there(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kb = build(tmp_path / "kb")
    with serve(key="needed") as locked:
        with pytest.raises(PassageIndexError, match="set QDRANT_API_KEY"):
            reindex(kb, qdrant_url=locked)
        assert found(kb) == sorted(NAMES)
        assert read_settings(open_folder(kb)).qdrant_url is None


def test_contradictions_are_refused(tmp_path: Path, url: str, run: Run) -> None:
    kb = build(tmp_path / "kb")
    for options, message in (
        (["--embedded", "--qdrant-url", url], "choose one"),
        (["--filter-keys", "lang"], "are for a Qdrant server"),
        (["--engine", "ray"], "for a Qdrant server"),
        (["--index-writers", "2"], "for --engine ray"),
        (["--qdrant-url", "http://me:pw@q:1"], "QDRANT_API_KEY"),
    ):
        code, _, err = run("reindex", "--kb", kb, *options)
        assert code in (1, 2)
        assert message in " ".join(err.split())
