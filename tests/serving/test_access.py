"""API keys: who may ask what, and that a bound filter binds."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lclm_rag import Document, KnowledgeBase
from lclm_rag.decoding import Decoder
from lclm_rag.retrieval import matches
from lclm_rag.serving import ServedBase, create_app
from lclm_rag.serving import keys as serving_keys
from lclm_rag.serving.keys import ApiKeys, add_key, listed_keys, new_key, remove_key

TEAMS = ("legal", "legal", "sales", "sales")
QUESTION = "Who is the mayor of the town?"


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder) -> Iterator[KnowledgeBase]:
    """Four documents of two teams, all of which fit the question."""
    with KnowledgeBase.create(tmp_path_factory.mktemp("teams") / "kb", decoder=decoder) as kb:
        kb.add(
            Document(
                f"{team}-{i}",
                f"Town guide: Velun{i}. The mayor of the town is Ada Bel {i}.",
                {"team": team, "year": 2018 + i} | ({"pay": i} if i == 3 else {}),
            )
            for i, team in enumerate(TEAMS)
        )
        yield kb


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file of keys, under "file", and the keys in it by name."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {
        "all": add_key(path, "all"),
        "manuals": add_key(path, "manuals", bases=["manuals"]),
        "legal": add_key(path, "legal", filters=["team=legal"]),
        "recent": add_key(path, "recent", filters=["team!=legal", "year>=2021"]),
        "nobody": add_key(path, "nobody", filters=["team=nobody"]),
        "writer": add_key(path, "writer", bases=["manuals"], write=True),
    }
    return made | {"file": str(path)}


@pytest.fixture(scope="module")
def client(teams: KnowledgeBase, keys: dict[str, str]) -> Iterator[TestClient]:
    bases = {name: ServedBase(name, teams) for name in ("manuals", "wiki")}
    app = create_app(bases, keys=ApiKeys.load(Path(keys["file"])))
    with TestClient(app, base_url="http://localhost", client=("10.0.0.9", 1)) as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(client: TestClient, key: str, base: str = "manuals", **fields: Any) -> Any:
    body = {"model": base, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}
    return client.post("/v1/chat/completions", json={**body, **fields}, headers=bearer(key))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer lclm-wrong"},
        {"Authorization": "Bearer \xff".encode("latin-1").decode("latin-1")},
        {"Authorization": "Basic {all}"},
        {"Authorization": "{all}"},
        {"X-Api-Key": "{all}"},
    ],
)
def test_nothing_without_a_valid_key(
    client: TestClient, keys: dict[str, str], headers: dict[str, str]
) -> None:
    filled = {
        name: value.format(all=keys["all"]).encode("latin-1") for name, value in headers.items()
    }
    for response in (
        client.get("/v1/models", headers=filled),
        client.get("/v1/models/manuals", headers=filled),
        client.post(
            "/v1/chat/completions",
            headers=filled,
            json={"model": "manuals", "messages": [{"role": "user", "content": "x"}]},
        ),
        client.get("/metrics", headers=filled),
    ):
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"


def test_a_key_sees_its_knowledge_bases_only(client: TestClient, keys: dict[str, str]) -> None:
    def names(key: str) -> list[str]:
        models = client.get("/v1/models", headers=bearer(keys[key])).json()["data"]
        return [model["id"] for model in models]

    assert names("all") == ["manuals", "wiki"]
    assert names("manuals") == ["manuals"]
    assert ask(client, keys["manuals"]).status_code == 200
    # One that may not be asked looks like one that is not there.
    hidden, missing = ask(client, keys["manuals"], "wiki"), ask(client, keys["manuals"], "other")
    assert hidden.status_code == missing.status_code == 404
    assert hidden.text.replace("wiki", "other") == missing.text
    assert client.get("/v1/models/wiki", headers=bearer(keys["manuals"])).status_code == 404


WIDER: list[Any] = [
    None,
    {"team": "sales"},
    {"team": ["legal", "sales"]},
    ["team!=legal"],
    ["year>=2000"],
    'team="sales"',
    ["team=legal,sales", "year>=2000"],
]


@pytest.mark.parametrize("filters", WIDER, ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_clients_own_filters_never_widen_a_bound_one(
    client: TestClient, keys: dict[str, str], filters: Any, stream: bool
) -> None:
    response = ask(client, keys["legal"], filters=filters, stream=stream, top_k=8)
    assert response.status_code == 200
    found = set()
    lines = response.text.split("data: ")[1:-1] if stream else [response.text]
    for line in lines:
        got = json.loads(line)
        found |= {c["document"] for c in (*got.get("citations", ()), *got.get("retrieved", ()))}
    assert found <= {"legal-0", "legal-1"}
    if filters in (None, ["year>=2000"]):
        assert found == {"legal-0", "legal-1"}
    assert "sales" not in response.text


def test_every_condition_of_a_key_binds(client: TestClient, keys: dict[str, str]) -> None:
    cited = ask(client, keys["recent"]).json()["citations"]
    assert [c["document"] for c in cited] == ["sales-3"]
    assert len(ask(client, keys["all"]).json()["citations"]) == 4


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_who_is_bound_learns_nothing_of_what_is_hidden(
    client: TestClient, keys: dict[str, str], stream: bool
) -> None:
    """Neither the filter nor whether hidden passages have a key or a value is told."""
    for key, filters in (("nobody", None), ("legal", ["pay>=1"]), ("legal", ["nonsense=1"])):
        text = ask(client, keys[key], filters=filters, stream=stream).text
        assert "No passage was found." in text
        assert "team" not in text
        assert "'pay'" not in text


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/wiki", "/v1/models/wiki/versions"])
def test_who_is_bound_is_not_told_how_much_is_hidden(
    client: TestClient, keys: dict[str, str], path: str
) -> None:
    counts = [f'"{name}":' for name in ("documents", "passages", "latents", "tokens")]
    seen = client.get(path, headers=bearer(keys["legal"]))
    assert seen.status_code == 200
    assert not [name for name in counts if name in seen.text]
    assert '"documents":' in client.get(path, headers=bearer(keys["all"])).text


def test_metrics_elsewhere_need_a_key_for_all(client: TestClient, keys: dict[str, str]) -> None:
    assert client.get("/metrics", headers=bearer(keys["all"])).status_code == 200
    assert client.get("/metrics", headers=bearer(keys["manuals"])).status_code == 403
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


# --- the file ------------------------------------------------------------------------------------


def test_a_key_is_kept_as_a_hash_and_its_filters_come_back(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    conditions = ["lang=en", "year>=2020", "lang!=de", "kind=a,b", 'year!="2021"']
    key = add_key(path, "alice", bases=["manuals"], filters=conditions)
    assert key.startswith("lclm-")
    assert key not in path.read_text()
    assert key.removeprefix("lclm-") not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    found = ApiKeys.load(path).find(key)
    assert found is not None
    assert (found.name, found.bases, found.write) == ("alice", frozenset({"manuals"}), False)
    assert found.filters is not None
    assert matches(found.filters, {"lang": "en", "year": 2020, "kind": "b"})
    assert not matches(found.filters, {"lang": "en", "year": 2019, "kind": "b"})
    assert not matches(found.filters, {"lang": "en", "year": 2020, "kind": "c"})
    (listed,) = listed_keys(path)
    assert listed == {"name": "alice", "bases": ["manuals"], "write": False, "filters": conditions}


def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    alice = add_key(path, "alice")
    keys = ApiKeys.load(path)
    monkeypatch.setattr(serving_keys, "_LOOK_AGAIN", 0.0)
    bob = add_key(path, "bob")
    assert keys.find(bob) is not None
    remove_key(path, "alice")
    assert keys.find(alice) is None
    path.write_text("{")  # Whoever edits it by hand must not lock everybody out.
    assert keys.find(bob) is not None
    path.unlink()
    assert keys.find(bob) is not None
    assert keys.find(add_key(path, "carol")) is not None
    assert keys.find(bob) is None


def test_a_file_is_looked_at_once_a_second_at_most(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "alice")
    keys = ApiKeys.load(path)
    keys._looked = float("inf")  # Just now.
    assert keys.find(add_key(path, "bob")) is None


def entry(**changes: Any) -> str:
    return json.dumps({"keys": [{"name": "a", "sha256": new_key()[1], **changes}]})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"keys": [1]}',
        '{"keys": [{"name": "a"}]}',
        entry(sha256="00"),
        entry(write="yes"),
        entry(bases="manuals"),
        entry(filters=["lang"]),
        entry(filter=["lang=en"]),
    ],
)
def test_what_is_no_file_of_keys_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    for use in (ApiKeys.load, lambda p: add_key(p, "bob"), listed_keys):
        with pytest.raises(
            ValueError, match=r"keys\.json is no file of API keys; lclm-rag keys add"
        ):
            use(path)
    assert path.read_text() == content
