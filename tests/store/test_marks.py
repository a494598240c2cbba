"""`vacuum` spares runs that live in an object store, however long they take."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lclm_rag import KnowledgeBase
from lclm_rag.errors import LockedError
from lclm_rag.storage import FileFacts, Folder, ObjectFolder, open_folder
from lclm_rag.store import LatentStore, Layout, StoredPassage, maintenance, marks, vacuum, writing
from lclm_rag.types import Passage, PassageKey

LAYOUT = Layout("bf16", "encoder", 8, "f" * 16, 4)
DAY = 24 * 3600.0

Later = Callable[..., None]


def row(document_id: str) -> StoredPassage:
    encoded = np.zeros((2, LAYOUT.latent_bytes), np.uint8)
    passage = Passage(PassageKey(document_id, 0), 0, 1, "x", {})
    return StoredPassage(passage, 8, document_id.encode().ljust(32), True, encoded, LAYOUT)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path))
    url = f"memory://{request.node.name}"
    LatentStore.create(url, LAYOUT)
    return url


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    """Makes `vacuum` run some days later, with marks that were put again all the time, or not."""
    files = ObjectFolder.files

    def set_clock(days: float, *, marked: bool = True) -> None:
        def aged(self: ObjectFolder) -> list[FileFacts]:
            new = {f.name for f in files(self) if f.name.endswith(".alive") and marked}
            return [
                FileFacts(f.name, f.size, f.modified + days * DAY * (f.name in new))
                for f in files(self)
            ]

        monkeypatch.setattr(ObjectFolder, "files", aged)
        clock = SimpleNamespace(time=lambda: time.time() + days * DAY)
        monkeypatch.setattr(maintenance, "time", clock)

    return set_clock


def names(folder: Folder, part: str) -> list[str]:
    return [facts.name for facts in (folder / part).files()]


def leave_behind(url: str, document_id: str) -> None:
    """What a run leaves that is killed after its first fragment."""
    with writing(url, "add", resumable=True) as writer:
        writer.add(row(document_id))


def wait_for_mark(folder: Folder) -> None:
    until = time.monotonic() + 60
    while not any(name.endswith(".alive") for name in names(folder, "uncommitted")):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("resumable", [True, False])
def test_a_run_of_a_week_keeps_what_it_has_written(
    url: str, later: Later, resumable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "_EVERY_SECONDS", 0.01)
    folder = open_folder(url)
    with writing(url, "add", resumable=resumable) as writer:
        writer.add(row("a"))
        writer._flush()
        wait_for_mark(folder)
        later(7)
        vacuum(url)
        store = writer.commit()
    assert [found.passage.key.document_id for found in store.passages()] == ["a"]
    assert names(folder, "uncommitted") == []


def test_a_run_keeps_what_it_may_take_over_from_its_first_moment(url: str, later: Later) -> None:
    leave_behind(url, "a")
    later(7)
    with writing(url, "add", resumable=True) as writer:
        vacuum(url)
        assert writer.take_over("a", b"a".ljust(32)) == 1
        writer.commit()
    assert len(LatentStore.open(url)) == 1
    assert names(open_folder(url), "uncommitted") == []


def test_a_run_keeps_the_version_that_it_builds_on(url: str, later: Later) -> None:
    leave_behind(url, "a")
    with writing(url, "add", resumable=True) as slow:
        for document_id in ("b", "c"):
            with writing(url, "add") as fast:
                fast.add(row(document_id))
                fast.commit()
        later(7)
        assert vacuum(url).kept == [0, 2]
        assert slow.base.version == 0
    assert vacuum(url).kept == [2]


def test_while_a_run_lives_the_rest_of_earlier_ones_still_goes(url: str, later: Later) -> None:
    with writing(url, "add") as writer:
        writer.add(row("a"))
        writer._flush()
        writer._done = True  # Killed.
    leave_behind(url, "b")
    later(7)
    with pytest.MonkeyPatch.context() as patch:
        week = SimpleNamespace(time=lambda: time.time() + 7 * DAY, monotonic=time.monotonic)
        patch.setattr(marks, "time", week)
        with writing(url, "add", resumable=True):
            assert len(names(open_folder(url), "fragments")) == 2
            vacuum(url)
            assert len(names(open_folder(url), "fragments")) == 1


def test_what_a_run_left_that_died_goes_a_day_after_its_last_mark(url: str, later: Later) -> None:
    folder = open_folder(url)
    leave_behind(url, "a")
    (folder / "uncommitted").replace(f"{time.time():.0f}-0-{'a' * 32}.alive", b"1")
    later(0.5, marked=False)
    vacuum(url)
    assert len(names(folder, "fragments")) == 1
    later(1.5, marked=False)
    vacuum(url)
    assert names(folder, "fragments") == names(folder, "uncommitted") == []


def test_in_a_folder_the_lock_says_that_a_run_lives(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, LAYOUT)
    with writing(tmp_path, "add", resumable=True) as writer:
        writer.add(row("a"))
        writer._flush()
        with pytest.raises(LockedError, match="is being written by another process"):
            vacuum(tmp_path)
        assert len(writer.commit()) == 1


def test_vacuum_removes_settings_that_a_killed_writer_has_not_finished(tmp_path: Path) -> None:
    with KnowledgeBase.create(tmp_path / "kb", device="cpu") as kb:
        (tmp_path / "kb/kb.json-abc.tmp").write_bytes(b"{")
        (tmp_path / "kb/mine.tmp").write_bytes(b"{")
        kb.vacuum()
    names = {path.name for path in (tmp_path / "kb").iterdir()}
    assert {"kb.json", "mine.tmp"} <= names
    assert "kb.json-abc.tmp" not in names
