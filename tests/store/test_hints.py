"""Points carry the place of their passage: what is still there is read without a look-up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.retrieval.points import scored_key
from lclm_rag.store import LatentStore
from lclm_rag.types import PassageKey, RowPlace
from support.qdrant_server import serve
from support.random_classifiers import save_cross_encoder

DOCUMENTS = [
    Document("tides", "The moon pulls the oceans into tides."),
    Document("bees", "Honey bees dance to tell where flowers are."),
    Document("trains", "Trains between Lyon and Paris run hourly."),
]


@pytest.fixture(scope="module")
def qdrant_url() -> Iterator[str]:
    with serve() as url:
        yield url


@pytest.fixture(params=["embedded", "server"])
def kb(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KnowledgeBase]:
    where = {}
    if request.param == "server":
        where = {
            "qdrant_url": request.getfixturevalue("qdrant_url"),
            "collection": f"h {tmp_path.name}",
        }
    with KnowledgeBase.create(tmp_path / "kb", **where) as kb:
        kb.add(DOCUMENTS)
        yield kb


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[PassageKey]:
    """The keys that were looked up."""
    keys: list[PassageKey] = []
    look_up = LatentStore.required_place

    def noted(store: LatentStore, key: PassageKey) -> tuple[str, int]:
        keys.append(key)
        return look_up(store, key)

    monkeypatch.setattr(LatentStore, "required_place", noted)
    return keys


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "cross-encoder"
    return str(save_cross_encoder(folder, [document.text for document in DOCUMENTS]))


def test_a_hit_is_read_where_its_point_says(
    kb: KnowledgeBase, looked_up: list[PassageKey], cross_encoder: str
) -> None:
    for document in DOCUMENTS:
        assert kb.retrieve(document.text, 1)[0].text == document.text
    assert looked_up == []
    assert kb.retrieve("bees dance", 1, neighbours=1)[0].text == DOCUMENTS[1].text
    assert kb.retrieve("bees dance", 1, rerank=cross_encoder)[0].text == DOCUMENTS[1].text
    # Deleted rows make no hint wrong, and neither does another document.
    kb.delete(["tides"])
    kb.add([Document("stars", "Stars are far away.")])
    assert [hit.key.document_id for hit in kb.retrieve("stars bees", 2)] == ["stars", "bees"]
    assert looked_up == []


def test_a_passage_that_has_moved_is_looked_up(
    kb: KnowledgeBase, looked_up: list[PassageKey]
) -> None:
    kb.add([Document("stars", "Stars are far away.")])
    kb.delete(["tides"])
    kb.compact()
    assert [hit.text for hit in kb.retrieve("bees", 1)] == [DOCUMENTS[1].text]
    assert looked_up == [PassageKey("bees", 0)]


@pytest.mark.parametrize("place", [(9, 0), (0, 1), (0, 2), (0, 3), (0, 10**12), (2**40, 0)])
def test_a_hint_to_elsewhere_is_no_answer(kb: KnowledgeBase, place: tuple[int, int]) -> None:
    key = PassageKey("tides", 0)
    number, row = RowPlace(*place)
    (read,) = kb.store.read([key], {key: RowPlace(number, row)})
    assert (read.passage.key, read.passage.text) == (key, DOCUMENTS[0].text)
    assert kb.store.read_texts([key], {key: RowPlace(number, row)}) == [read.passage]


@pytest.mark.parametrize("place", [None, 7, "7", [7], [7, "a"], [-1, 1], [1, -1], [1.5, 2], {}])
def test_a_place_that_is_none_is_no_hint(place: object) -> None:
    assert scored_key({"document_id": "a", "ordinal": 0, "place": place}, 1.0).place is None


def test_a_passage_that_is_gone_is_not_read_by_its_hint(kb: KnowledgeBase) -> None:
    key = PassageKey("tides", 0)
    kb.delete(["tides"])
    with pytest.raises(KeyError, match="holds no passage tides#0"):
        kb.store.read([key], {key: RowPlace(0, 0)})
