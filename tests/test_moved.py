"""A knowledge base that is moved or removed while it is open."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase, StoreError
from lclm_rag.decoding.transformers import TransformersDecoder

TOWN, LAKE = Document("town", "zqaw is a town."), Document("lake", "zqbw is a lake.")

OPERATIONS: dict[str, Callable[[KnowledgeBase], Any]] = {
    "retrieve": lambda kb: kb.retrieve("zqaw", 1),
    "query": lambda kb: kb.query("zqaw", top_k=1),
    "add": lambda kb: kb.add([Document("hill", "zqcw is a hill.")]),
    "delete": lambda kb: kb.delete(["town"]),
    "compact": lambda kb: kb.compact(),
    "convert": lambda kb: kb.convert("int8"),
    "vacuum": lambda kb: kb.vacuum(),
    "versions": lambda kb: kb.versions(),
    "follow": lambda kb: kb.follow(),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, decoder: TransformersDecoder) -> Path:
    path = tmp_path_factory.mktemp("built") / "kb"
    with KnowledgeBase.create(path, decoder=decoder) as kb:
        kb.add([TOWN])
    return path


@pytest.mark.parametrize("changed", [False, True])
def test_each_operation_says_that_it_was_moved_and_the_bodys_error_is_what_is_seen(
    built: Path,
    decoder: TransformersDecoder,
    tmp_path: Path,
    changed: bool,
) -> None:
    path = shutil.copytree(built, tmp_path / "kb")

    def use() -> None:
        with KnowledgeBase.open(path, decoder=decoder) as kb:
            if changed:
                kb.add([LAKE])
            path.rename(tmp_path / "moved")
            for name, operation in OPERATIONS.items():
                with pytest.raises(StoreError, match="kb/store; if there was one, it was moved"):
                    print(name, operation(kb))
            raise KeyError("of the body")

    with pytest.raises(KeyError, match="of the body") as raised:
        use()
    assert not getattr(raised.value, "__notes__", [])
    # Nothing was made where it was, and where it is now, it is whole.
    assert [entry.name for entry in tmp_path.iterdir()] == ["moved"]
    with KnowledgeBase.open(tmp_path / "moved", decoder=decoder) as kb:
        found = [hit.key.document_id for q in ("zqaw", "zqbw") for hit in kb.retrieve(q, 1)]
    assert found == ["town", "lake"][: 1 + changed]


def test_closing_one_that_was_removed_says_that_its_index_is_not_published(
    built: Path, decoder: TransformersDecoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shutil.copytree(built, tmp_path / "kb")
    with KnowledgeBase.open(path, decoder=decoder) as kb:
        kb.add([LAKE])
        shutil.rmtree(path)
    (said,) = caplog.messages
    assert said.startswith("The passage index was not published. There is no latent store in")


@pytest.mark.parametrize("way", ["with", "async with"])
def test_what_fails_while_it_is_closed_is_a_note_on_what_went_wrong_before(
    built: Path, decoder: TransformersDecoder, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def fail() -> None:
        raise OSError("the disk is gone")

    async def in_a_loop(error: Exception | None) -> None:
        async with KnowledgeBase.open(built, decoder=decoder) as kb:
            kb.close()
            monkeypatch.setattr(kb.reader, "close", fail)
            if error is not None:
                raise error

    def use(error: Exception | None) -> None:
        if way == "async with":
            asyncio.run(in_a_loop(error))
            return
        with KnowledgeBase.open(built, decoder=decoder) as kb:
            kb.close()
            monkeypatch.setattr(kb.reader, "close", fail)
            if error is not None:
                raise error

    with pytest.raises(KeyError) as raised:
        use(KeyError("of the body"))
    assert raised.value.__notes__ == [f"Closing {built} failed as well: the disk is gone"]
    with pytest.raises(OSError, match="the disk is gone"):
        use(None)
