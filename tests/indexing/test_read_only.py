"""Knowledge bases that may only be read: the index is copied once, to the reader's cache, and used there."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import Document, KnowledgeBase, StoreError
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.indexing import snapshots, transfer
from lclm_rag.indexing.files import copy_tree
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.storage import LocalFolder
from lclm_rag.verify import verify
from support.processes import drop_privileges, in_child

TOWNS = [Document(f"town-{i}", f"zq{i}w is a town. It lies by a lake.") for i in range(3)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, decoder: TransformersDecoder) -> Path:
    path = tmp_path_factory.mktemp("built") / "kb"
    with KnowledgeBase.create(path, decoder=decoder) as kb:
        kb.add(TOWNS)
    return path


@pytest.fixture
def kb(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(built, tmp_path / "kb")


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this user might not write into the folder of the index."""
    monkeypatch.setattr(snapshots, "_may_be_written", lambda index: False)


@pytest.fixture(params=["modes", "modes of the folders alone", "mount"])
def read_only(kb: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    if request.param == "mount":
        mount = ["mount", "-t", "tmpfs", "tmpfs", str(kb.parent / "mounted")]
        (kb.parent / "mounted").mkdir()
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no right to mount a small file system")
        shutil.copytree(kb, kb.parent / "mounted" / "kb")
        subprocess.run(["mount", "-o", "remount,ro", str(kb.parent / "mounted")], check=True)
        yield kb.parent / "mounted" / "kb"
        subprocess.run(["umount", str(kb.parent / "mounted")], check=True)
        return
    changed = [kb, *(path for path in kb.rglob("*") if path.is_dir() or request.param == "modes")]
    for path in changed:
        path.chmod(path.stat().st_mode & ~0o222)
    yield kb
    for path in changed:
        path.chmod(path.stat().st_mode | 0o200)


def found(path: Path, decoder: Any = None) -> list[str]:
    with KnowledgeBase.open(path, decoder=decoder) as opened:
        return [hit.key.document_id for hit in opened.retrieve("zq1w", 1)]


def cached(cache: Path) -> dict[str, int]:
    """Name and inode of the snapshots in the cache."""
    return {path.name: path.stat().st_ino for path in cache.glob("index/*/published/*")}


def everything(kb: Path) -> dict[str, tuple[int, float]]:
    """Mode and time of whatever is in it, but for a gate, which is locked if it may be."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime)
        for path in (kb, *kb.rglob("*"))
        if path.name != "gate"
    }


# --- a knowledge base that nobody may change --------------------------------------------------------------


def test_it_is_read_and_verified_with_one_copy_of_its_index_and_no_word(
    read_only: Path, decoder: TransformersDecoder, tmp_path: Path
) -> None:
    before = everything(read_only)

    def read() -> None:
        drop_privileges()
        words: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: words.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("lclm_rag").addHandler(handler)
        assert verify(read_only).problems == []
        assert found(read_only, decoder) == ["town-1"]
        copies = cached(tmp_path / "cache")
        assert len(copies) == 1
        assert found(read_only, decoder) == ["town-1"]
        assert verify(read_only).problems == []
        assert cached(tmp_path / "cache") == copies
        assert words == []
        with KnowledgeBase.open(read_only, decoder=decoder) as opened:
            with pytest.raises(StoreError, match=r"kb/store can only be read \("):
                opened.add([Document("lake", "zqlake is a lake.")])
            with pytest.raises(StoreError, match=r"kb/store can only be read \("):
                opened.vacuum()

    in_child(read)
    assert everything(read_only) == before


def test_one_whose_files_alone_are_read_only_is_read_from_copies(
    kb: Path, decoder: TransformersDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    for path in kb.rglob("*"):
        if path.is_file() and path.name not in ("gate", "lock"):
            path.chmod(0o444)

    def read() -> list[str]:
        drop_privileges()
        return found(kb, decoder)

    assert in_child(read) == ["town-1"]
    (snapshot,) = SnapshotFolder(LocalFolder(kb / "index")).snapshots()
    assert snapshot.damage() == []


def test_damage_of_its_index_is_reported_and_a_sound_one_made_once(
    kb: Path,
    unwritable: None,
    decoder: TransformersDecoder,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    (file,) = kb.glob("index/published/*/edge/segment*/*/segment.json")
    file.write_bytes(b"{}")
    assert found(kb, decoder) == ["town-1"]
    assert "cannot be used" in caplog.text
    copies = cached(tmp_path / "cache")
    caplog.clear()
    assert found(kb, decoder) == ["town-1"]
    assert (cached(tmp_path / "cache"), caplog.text) == (copies, "")
    (problem,) = verify(kb).problems
    assert "segment.json" in problem


# --- the copy ---------------------------------------------------------------------------------------------


def test_two_first_readers_at_once_make_one_copy(
    kb: Path, unwritable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    def while_another_copies(source: Path, target: Path) -> None:
        copy_tree(source, target)
        monkeypatch.setattr(transfer, "copy_tree", copy_tree)
        assert len(SnapshotFolder(LocalFolder(kb / "index")).nearest(1)) == 1

    monkeypatch.setattr(transfer, "copy_tree", while_another_copies)
    folder = SnapshotFolder(LocalFolder(kb / "index"))
    assert [snapshot.path.parent for snapshot in folder.nearest(1)] == [folder.published]
    assert len(cached(tmp_path / "cache")) == 1
    assert [path.name for path in folder.private.iterdir()] == ["gate"]


def test_a_copy_that_is_superseded_while_it_is_made_is_left_for_the_newer_one(
    kb: Path, unwritable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (published,) = (kb / "index/published").iterdir()

    def while_another_is_published(source: Path, target: Path) -> None:
        monkeypatch.setattr(transfer, "copy_tree", copy_tree)
        source.rename(source.with_name(f"0000000001-{'f' * 16}"))
        copy_tree(source, target)

    monkeypatch.setattr(transfer, "copy_tree", while_another_is_published)
    (snapshot,) = SnapshotFolder(LocalFolder(kb / "index")).nearest(1)
    assert snapshot.path.name.endswith("ffff")
    assert not published.exists()


def test_a_newer_index_takes_the_place_of_the_copy(
    kb: Path,
    decoder: TransformersDecoder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def read() -> list[str]:
        with monkeypatch.context() as patched:
            patched.setattr(snapshots, "_may_be_written", lambda index: False)
            return found(kb, decoder)

    assert read() == ["town-1"]
    with KnowledgeBase.open(kb, decoder=decoder) as writer:
        writer.delete(["town-1"])
        # Not published yet: the reader makes the version itself, and keeps it.
        assert read() == []
        assert [name[:10] for name in cached(tmp_path / "cache")] == ["0000000002"]
        copies = cached(tmp_path / "cache")
        assert read() == []
        assert cached(tmp_path / "cache") == copies
    (newer,) = [path.name for path in (kb / "index/published").iterdir()]
    assert read() == []
    assert list(cached(tmp_path / "cache")) == [newer]


def test_copies_of_what_was_not_opened_for_a_month_are_removed(
    kb: Path, unwritable: None, tmp_path: Path
) -> None:
    old, used = shutil.copytree(kb, tmp_path / "old"), shutil.copytree(kb, tmp_path / "used")
    homes = [SnapshotFolder(LocalFolder(path / "index")) for path in (old, used)]
    for home in homes:
        assert len(home.nearest(1)) == 1
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(homes[0].home / "used", (month_ago, month_ago))
    assert len(SnapshotFolder(LocalFolder(kb / "index")).nearest(1)) == 1
    assert not homes[0].home.exists()
    assert len(list(homes[1].snapshots())) == 1


# --- a cache that may not be written either ---------------------------------------------------------------


def test_without_a_cache_it_is_read_from_a_temporary_folder_which_is_said_once(
    kb: Path,
    unwritable: None,
    decoder: TransformersDecoder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(2):
        assert found(kb, decoder) == ["town-1"]
        (said,) = caplog.messages
        assert said.startswith(f"The cache {tmp_path / 'cache'} cannot be written (")
        assert len(list(tmp_path.glob("lclm-rag-cache-*/index/*/published/*"))) == 1


@pytest.mark.parametrize("home", ["/dev/null", None])
def test_the_temporary_folder_is_removed_when_the_process_ends(
    tmp_path: Path, home: str | None
) -> None:
    code = "from lclm_rag.cache import writable_cache as w; p = w('a'); print(p.is_dir(), p)"
    # A user that the machine does not know has no home, if the environment names none.
    unknown = "import os; os.geteuid() or os.setuid(4_000_000)\n" if home is None else ""
    if unknown and os.geteuid() != 0:
        pytest.skip("only root can become a user without a home")
    tmp_path.chmod(0o777)
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    environment |= {} if home is None else {"HOME": home}
    # What is imported before, because that user may read neither Python nor the library.
    code = f"import lclm_rag.cache\n{unknown}{code}"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    is_there, path = ended.stdout.split()
    assert is_there == "True"
    assert not Path(path).exists()
    assert "cannot be written" in ended.stderr
