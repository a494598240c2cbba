"""The modes of files and folders: the umask decides who may read and change a knowledge base."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lclm_rag import Document, KnowledgeBase
from lclm_rag.cache import writable_cache
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.storage import open_folder
from support.processes import drop_privileges, in_child

GROUP = 54_321
TOWNS = [Document(f"town-{i}", f"zq{i}w is a town. It lies by a lake.") for i in range(3)]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def not_following(folder: Path, mask: int) -> dict[str, str]:
    """The files and folders that have another mode than the umask says."""
    modes = {path: path.lstat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    return {
        str(path): oct(mode)
        for path, mode in modes.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~mask
    }


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_everything_in_a_knowledge_base_follows_the_umask(
    tmp_path: Path, decoder: TransformersDecoder, mask: int
) -> None:
    with umask(mask):
        with KnowledgeBase.create(tmp_path / "kb", decoder=decoder) as kb:
            kb.add(TOWNS)
            # While it is open, there are locks and a private index besides.
            kb.retrieve("zq1w", 1)
            assert not_following(tmp_path / "kb", mask) == {}
        with KnowledgeBase.open(tmp_path / "kb", decoder=decoder) as kb:
            kb.delete(["town-0"])
            kb.compact()
            kb.convert("int8")
            kb.vacuum()
            kb.query("zq1w?", top_k=1)
            assert not_following(tmp_path / "kb", mask) == {}
    assert not_following(tmp_path / "kb", mask) == {}


def test_what_comes_from_an_object_store_follows_the_umask_in_a_cache_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    folder = open_folder("memory://modes")
    with umask(0o002):
        folder.write("written", lambda path: path.write_bytes(b"whole"))
        folder.create("put", b"in pieces")
        folder.read_ranges([("put", 0, 2)])
        mapped = folder.map("put")
        mapped.need(0, 2)
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 3
    assert not_following(tmp_path / "cache", 0o002) == {}


def test_the_cache_in_a_home_folder_is_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LCLM_RAG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with umask(0o002):
        assert writable_cache("files") == tmp_path / "lclm-rag" / "files"
    assert (tmp_path / "lclm-rag").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
@pytest.mark.parametrize("mask", [0o002, 0o022])
def test_a_second_user_of_the_group_can_read_and_with_the_right_to_write_can_add(
    tmp_path: Path, decoder: TransformersDecoder, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "kb"
    path.mkdir()
    os.chown(path, -1, GROUP)
    path.chmod(0o2777 & ~mask)  # New files and folders then get the folder's group.
    with umask(mask), KnowledgeBase.create(path, decoder=decoder) as kb:
        kb.add(TOWNS)
    for each in (path, *path.rglob("*")):
        os.chown(each, 65_534, -1)

    def as_the_second_user() -> list[list[str]]:
        drop_privileges([GROUP])
        os.umask(mask)
        with KnowledgeBase.open(path, decoder=decoder) as kb:
            if mask == 0o002:
                kb.add([Document("lake", "zqlake is a lake.")])
                kb.delete(["town-0"])
                kb.vacuum()
            return [[h.key.document_id for h in kb.retrieve(q, 1)] for q in ("zq1w", "zqlake")]

    assert in_child(as_the_second_user) == [["town-1"], ["lake"] if mask == 0o002 else []]
    # And the first user goes on with what the second has written.
    with KnowledgeBase.open(path, decoder=decoder) as kb:
        assert kb.add([Document("hill", "zqhill is a hill.")]).added == 1
