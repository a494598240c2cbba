"""A collection on a Qdrant server is filled, kept, lost and copied; nothing of it is ever dropped unasked.

The stores are made of rows without latents worth reading, and the server is a stand-in: see
tests/support/qdrant_server.py for what that shows and what not.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from lclm_rag import retries
from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.config import SETTINGS, Settings, read_settings, write_settings
from lclm_rag.errors import KnowledgeBaseError, PassageIndexError
from lclm_rag.indexing import collection as indexing
from lclm_rag.indexing.lost import lost_version
from lclm_rag.indexing.points import OnPut, PutPoints, ServerPoints, put_rows
from lclm_rag.indexing.server import SharedIndex, Task
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.indexing.state import FILLING, UPDATING, State, read_state, write_state
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.retrieval import collections as collections_calls
from lclm_rag.retrieval import server as retrieval
from lclm_rag.retrieval.collection_setup import CollectionSetup
from lclm_rag.storage import LocalFolder, ObjectFolder, open_folder
from lclm_rag.store import LatentStore, Layout, StoredPassage, vacuum, writing
from lclm_rag.types import Document, Passage, PassageKey
from lclm_rag.verify import verify
from support.qdrant_server import Faults, serve

pytestmark = pytest.mark.slow  # All of them, half a minute.

LAYOUT = Layout("bf16", "encoder", 8, "f" * 16, 4)


class Base:
    """A knowledge base without a checkpoint.

    Args:
        place: Its path or URL.
        url: The server's URL.
        collection: The name that is searched.
    """

    def __init__(self, place: str | Path, url: str, collection: str) -> None:
        self.folder = open_folder(place)
        self.folder.make()
        LatentStore.create(self.folder / "store", LAYOUT)
        write_settings(
            self.folder,
            Settings("none", 8, None, None, url, collection, contextual_headers=False),
        )

    @property
    def settings(self) -> Settings:
        return read_settings(self.folder)

    def commit(self, *texts: str, gone: tuple[str, ...] = ()) -> LatentStore:
        """Commit a version with more documents, "<id> <words>", and without others. No index follows."""
        with writing(self.folder / "store", "add") as writer:
            for document_id in gone:
                writer.delete_document(document_id)
            for text in texts:
                writer.add(row(text))
            return writer.commit()

    def open(self, task: Task = "read", put: PutPoints | None = None) -> SharedIndex:
        return SharedIndex(
            self.folder / "index",
            LatentStore.open(self.folder / "store"),
            None,
            self.settings,
            put,
            task,
        )

    def found(self) -> list[str]:
        """What a reader finds."""
        session = self.open()
        try:
            return ids(session)
        finally:
            session.close()

    def copied(self, place: Path) -> Base:
        assert isinstance(self.folder, LocalFolder)
        shutil.copytree(self.folder.path, place)
        copy = Base.__new__(Base)
        copy.folder = LocalFolder(place)
        return copy


def row(text: str) -> StoredPassage:
    name = text.split()[0]
    passage = Passage(PassageKey(name, 0), 0, len(text), text, {})
    latents = np.zeros((1, LAYOUT.latent_bytes), np.uint8)
    return StoredPassage(passage, 4, Document(name, text, {}).content_hash(), True, latents, LAYOUT)


def put_there(points: ServerPoints, on_put: OnPut = lambda name: None) -> None:
    """What workers do."""
    index = points.connect()
    store = LatentStore.open_for_worker(points.store, points.version)
    for name, rows in points.rows:
        put_rows(index, store, name, rows)
        on_put(name)
    index.close()


def ids(session: SharedIndex) -> list[str]:
    return sorted(key.document_id for key, *_ in session.index.search("common", 50))


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def url(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(indexing, "_WAIT", 0.2)
    with serve(faults) as url:
        yield url


@pytest.fixture
def base(tmp_path: Path, url: str) -> Base:
    """Three documents, in a collection."""
    base = Base(tmp_path / "kb", url, "passages")
    base.commit("a common", "b common", "c common")
    base.open("write").close()
    return base


def dropped(faults: Faults) -> list[str]:
    return [call for call in faults.calls if call.startswith("DELETE")]


def collections(url: str) -> list[str]:
    client = QdrantClient(url=url, check_compatibility=False)
    try:
        return sorted({alias.collection_name for alias in client.get_aliases().aliases})
    finally:
        client.close()


def lose_points(url: str, collection: str, *names: str) -> None:
    client = QdrantClient(url=url, check_compatibility=False)
    found, _ = client.scroll(collection, limit=100, with_payload=True)
    lost = [p.id for p in found if (p.payload or {})["document_id"] in names]
    client.delete(collection, models.PointIdsList(points=lost))
    client.close()


# --- nothing is dropped unasked ---------------------------------------------------------------------


def test_one_failed_read_of_the_state_changes_nothing(
    base: Base, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.commit("d common")
    faults.calls.clear()

    read = LocalFolder.read

    def fail(self: LocalFolder, name: str) -> bytes:
        if name.startswith("state"):
            raise OSError("503 SlowDown: reduce your request rate")
        return read(self, name)

    tasks: tuple[Task, ...] = ("read", "write", "rebuild")
    with monkeypatch.context() as patched:
        patched.setattr(LocalFolder, "read", fail)
        for task in tasks:
            with pytest.raises(PassageIndexError, match=r"state-.*SlowDown.*Nothing was changed"):
                base.open(task)
    assert faults.calls == []
    base.open("write").close()
    assert base.found() == ["a", "b", "c", "d"]
    assert dropped(faults) == []


def test_a_damaged_state_is_told_and_repaired(base: Base, url: str) -> None:
    assert isinstance(base.folder, LocalFolder)
    (state,) = (base.folder.path / "index").glob("state-*")
    state.write_bytes(state.read_bytes().replace(b"1", b"2"))
    tasks: tuple[Task, ...] = ("read", "write")
    for task in tasks:
        with pytest.raises(PassageIndexError, match="is damaged; lclm-rag verify --repair"):
            base.open(task)
    (problem,) = verify(base.folder).problems
    assert "is damaged" in problem
    verify(base.folder, repair=True)
    assert verify(base.folder).problems == []
    assert base.found() == ["a", "b", "c"]
    assert len(collections(url)) == 2  # That of the lost state stays: it may be another's.


def test_who_opens_during_the_first_fill_is_told_how_far_it_is(tmp_path: Path, url: str) -> None:
    base = Base(tmp_path / "kb", url, "passages")
    assert base.found() == []  # Nothing is there, and nothing is made.
    base.commit("a common", "b common", "c common")
    with pytest.raises(PassageIndexError, match=r"There is no passage index .* yet"):
        base.open()

    def in_halves(points: ServerPoints, on_put: OnPut) -> None:
        ((name, rows),) = points.rows
        put_there(replace(points, rows=((name, rows[:2]),)))
        with pytest.raises(PassageIndexError, match=r"is being filled, 2 of 3 passages: try again"):
            base.open()
        put_there(replace(points, rows=((name, rows[2:]),)))

    base.open("write", in_halves).close()
    assert base.found() == ["a", "b", "c"]


def test_an_interrupted_first_fill_goes_on_in_the_same_collection(
    tmp_path: Path, url: str, faults: Faults
) -> None:
    base = Base(tmp_path / "kb", url, "passages")
    base.commit("a common", "b common", "c common")

    def half(points: ServerPoints, on_put: OnPut) -> None:
        ((name, rows),) = points.rows
        put_there(replace(points, rows=((name, rows[:2]),)))
        raise PassageIndexError("gone away")

    with pytest.raises(PassageIndexError, match="gone away"):
        base.open("write", half)
    base.commit("d common", gone=("a",))  # Deletes what is in the collection already.
    base.open("write").close()
    assert base.found() == ["b", "c", "d"]
    made = [c for c in faults.calls if c.startswith("PUT") and c.count("/") == 2]
    assert len(made) == 1
    assert dropped(faults) == []


def test_a_vacuum_while_the_server_is_away_costs_no_collection(base: Base, faults: Faults) -> None:
    base.commit("d common", gone=("a",)).close()
    base.commit("e common", gone=("b",)).close()
    vacuum(base.folder / "store")
    assert base.found() == ["a", "b", "c"]  # A reader sees what is there.
    base.open("write").close()
    assert base.found() == ["c", "d", "e"]
    assert base.open().index.count() == 3
    assert dropped(faults) == []


def test_what_an_interrupted_update_left_is_not_found_after_the_next(base: Base) -> None:
    def all_then_killed(points: ServerPoints, on_put: OnPut) -> None:
        put_there(points)
        raise KeyboardInterrupt

    base.commit("d common", gone=("a",))
    with pytest.raises(KeyboardInterrupt):
        base.open("write", all_then_killed)
    base.commit("e common", gone=("d",))  # The point of d is there, and in no state.
    base.open("write").close()
    assert base.found() == ["b", "c", "e"]
    assert base.open().index.count() == 3


def test_repair_fills_a_new_collection_and_switches_the_name(
    base: Base, url: str, faults: Faults
) -> None:
    (before,) = collections(url)
    lose_points(url, "passages", "a", "b")
    reader_of_before = base.open  # Opened below, while the new one is being filled.
    faults.calls.clear()
    assert verify(base.folder, repair=True).repaired == ["The passage index was made anew."]
    (after,) = collections(url)
    assert after != before
    assert dropped(faults) == [f"DELETE /collections/{before}"]
    last_point = max(i for i, c in enumerate(faults.calls) if "/points?" in c)
    switched = faults.calls.index("POST /collections/aliases")
    assert last_point < switched < faults.calls.index(dropped(faults)[0])
    session = reader_of_before()
    assert ids(session) == ["a", "b", "c"]


def test_a_fill_goes_on_with_the_fragments_that_are_not_there_yet(
    tmp_path: Path, url: str, faults: Faults
) -> None:
    base = Base(tmp_path / "kb", url, "passages")
    for name in "abcd":
        base.commit(f"{name} common")

    def two(points: ServerPoints, on_put: OnPut) -> None:
        put_there(replace(points, rows=points.rows[:2]), on_put)
        raise PassageIndexError("gone away")

    with pytest.raises(PassageIndexError, match="gone away"):
        base.open("write", two)
    rest: list[int] = []

    def count(points: ServerPoints, on_put: OnPut) -> None:
        rest.append(len(points.rows))
        put_there(points, on_put)

    base.commit("e common", gone=("a",))  # That of a is there already.
    base.open("write", count).close()
    assert rest == [3]
    assert base.found() == ["b", "c", "d", "e"]
    assert base.open().index.count() == 4


def test_a_fill_begins_anew_if_what_it_had_put_there_is_gone(tmp_path: Path, url: str) -> None:
    base = Base(tmp_path / "kb", url, "passages")
    base.commit("a common")
    base.commit("b common")

    def all_but_lost(points: ServerPoints, on_put: OnPut) -> None:
        put_there(points, on_put)
        lose_points(url, points.collection, "a")

    with pytest.raises(
        PassageIndexError, match=r"has 1 of 2 passages after all .*run the same again"
    ):
        base.open("write", all_but_lost)
    base.open("write").close()
    assert base.found() == ["a", "b"]


def test_the_caller_is_told_how_a_fill_goes_on(tmp_path: Path, url: str) -> None:
    base = Base(tmp_path / "kb", url, "passages")
    for name in "abc":
        base.commit(f"{name} common")
    told: list[tuple[int, int]] = []
    store = LatentStore.open(base.folder / "store")
    SharedIndex(
        base.folder / "index",
        store,
        None,
        base.settings,
        task="write",
        on_progress=lambda done, total: told.append((done, total)),
    ).close()
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_requests_are_cut_by_their_bytes(tmp_path: Path, url: str, faults: Faults) -> None:
    base = Base(tmp_path / "kb", url, "passages")
    with writing(base.folder / "store", "add") as writer:
        for number in range(60):
            name, metadata = f"d{number}", {"long": "\u00e9\u4e2d" * 65_000}
            passage = Passage(PassageKey(name, 0), 0, 6, "common", metadata)
            digest = Document(name, "common", metadata).content_hash()
            latents = np.zeros((1, LAYOUT.latent_bytes), np.uint8)
            writer.add(StoredPassage(passage, 1, digest, True, latents, LAYOUT))
        writer.commit()
    base.open("write").close()
    assert base.open().index.count() == 60
    assert sum(faults.sizes) > 15 * 10**6
    assert max(faults.sizes) < 5 * 10**6


# --- what is lost is told ---------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [("a",), ("a", "b", "c")])
def test_points_that_are_lost_are_told_and_repaired(
    base: Base, url: str, lost: tuple[str, ...]
) -> None:
    lose_points(url, "passages", *lost)
    message = rf"has {3 - len(lost)} passages, and version 1 has 3: .*verify --repair"
    tasks: tuple[Task, ...] = ("read", "write")
    for task in tasks:
        with pytest.raises(PassageIndexError, match=message):
            base.open(task)
    base.commit("d common")
    with pytest.raises(PassageIndexError, match=message):
        base.open("write")
    verify(base.folder, repair=True)
    assert base.found() == ["a", "b", "c", "d"]


def test_an_index_of_an_object_store_is_repaired(url: str, faults: Faults) -> None:
    base = Base(f"memory://kb-{uuid.uuid4().hex}", url, "objects")
    base.commit("a common", "b common")
    base.open("write").close()
    lose_points(url, "objects", "a", "b")
    with pytest.raises(PassageIndexError, match="verify --repair"):
        base.found()
    assert verify(base.folder, repair=True).repaired == ["The passage index was made anew."]
    assert base.found() == ["a", "b"]


# --- copies, backups and other writers --------------------------------------------------------------


def test_a_copy_does_not_write_into_the_original(base: Base, tmp_path: Path, url: str) -> None:
    copy = base.copied(tmp_path / "copy")
    assert copy.found() == ["a", "b", "c"]
    copy.commit(gone=("a", "b"))
    with pytest.raises(PassageIndexError, match=r"is a copy of it.*What was committed stands"):
        copy.open("write")
    assert base.found() == ["a", "b", "c"]
    verify(copy.folder, repair=True)
    assert copy.found() == ["c"]
    assert base.found() == ["a", "b", "c"]
    copy.commit("x common")
    copy.open("write").close()
    base.commit("y common")
    base.open("write").close()
    assert copy.found() == ["c", "x"]
    assert base.found() == ["a", "b", "c", "y"]
    assert len(collections(url)) == 2


def test_a_folder_that_was_renamed_is_no_copy(base: Base, tmp_path: Path) -> None:
    assert isinstance(base.folder, LocalFolder)
    base.folder.path.rename(tmp_path / "renamed")
    base.folder = LocalFolder(tmp_path / "renamed")
    base.commit("d common")
    base.open("write").close()
    assert base.found() == ["a", "b", "c", "d"]


def test_a_backup_put_back_does_not_show_what_it_does_not_have(base: Base, tmp_path: Path) -> None:
    assert isinstance(base.folder, LocalFolder)
    backup = base.copied(tmp_path / "backup")
    base.commit("d common")
    base.open("write").close()
    shutil.rmtree(base.folder.path)
    shutil.copytree(str(backup.folder), base.folder.path)
    tasks: tuple[Task, ...] = ("read", "write")
    for task in tasks:
        with pytest.raises(PassageIndexError, match=r"version 2 that .* does not have.*--repair"):
            base.open(task)
    verify(base.folder, repair=True)
    assert base.found() == ["a", "b", "c"]


def test_a_state_never_goes_back(base: Base) -> None:
    index = base.folder / "index"
    base.commit("d common")
    base.open("write").close()
    now = read_state(index)
    assert now is not None
    write_state(index, replace(now, version=1, manifest="earlier"))
    assert read_state(index) == now
    with pytest.raises(PassageIndexError, match="Another writer noted version 2"):
        write_state(index, replace(now, manifest="another"))
    assert read_state(index) == now


def test_a_reader_writes_nothing(base: Base, faults: Faults) -> None:
    assert isinstance(base.folder, LocalFolder)
    base.commit("d common")

    def files() -> dict[str, bytes]:
        index = base.folder.local / "index" if base.folder.local else Path()
        return {path.name: path.read_bytes() for path in index.iterdir()}

    before = files()
    faults.calls.clear()
    assert base.found() == ["a", "b", "c"]
    assert files() == before
    assert {call.split()[0] for call in faults.calls} <= {"GET", "POST"}
    assert not any("delete" in call or "aliases" in call for call in faults.calls)


def test_what_two_writers_put_at_once_is_that_of_the_later(url: str) -> None:
    # In an object store, where there is no lock.
    base = Base(f"memory://kb-{uuid.uuid4().hex}", url, "raced")
    base.commit("a common", "b common")
    base.open("write").close()
    base.commit("c common")

    def late(points: ServerPoints, on_put: OnPut) -> None:
        if LatentStore.open(base.folder / "store").version == 2:
            base.commit("d common", gone=("c",))
            base.open("write").close()
        put_there(points)

    base.open("write", late).close()
    assert base.found() == ["a", "b", "d"]
    assert base.open().index.count() == 3
    state = read_state(base.folder / "index")
    assert state is not None
    assert state.version == 3


def test_two_first_fills_at_once_end_as_the_later(url: str) -> None:
    base = Base(f"memory://kb-{uuid.uuid4().hex}", url, "both")
    base.commit("a common", "b common")

    def late(points: ServerPoints, on_put: OnPut) -> None:
        if LatentStore.open(base.folder / "store").version == 1:
            base.commit("c common", gone=("a",))
            base.open("write").close()
        put_there(points)

    base.open("write", late).close()
    assert base.found() == ["b", "c"]
    assert base.open().index.count() == 2


def test_one_made_again_at_the_same_place_has_nothing_of_the_old(url: str) -> None:
    place = f"memory://kb-{uuid.uuid4().hex}"
    old = Base(place, url, "again")
    old.commit("a common")
    old.open("write").close()
    old_id = old.settings.id
    assert isinstance(old.folder, ObjectFolder)
    old.folder.filesystem.rm(old.folder.root, recursive=True)
    new = Base(place, url, "again")
    assert new.settings.id != old_id
    new.commit("b common")
    with pytest.raises(KnowledgeBaseError, match="is there already"):
        new.open("write")
    verify(new.folder, repair=True)
    assert new.found() == ["b"]


def test_what_is_cached_of_an_embedded_index_is_of_one_knowledge_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path))
    folder = open_folder("memory://kb/index")
    assert SnapshotFolder(folder, "old").published != SnapshotFolder(folder, "new").published


# --- from before ------------------------------------------------------------------------------------


def test_a_knowledge_base_from_before_there_were_ids_is_read_and_written(
    tmp_path: Path, url: str
) -> None:
    base = Base(tmp_path / "kb", url, "early")
    raw = unseal(base.folder.read(SETTINGS))
    del raw["id"]
    base.folder.replace(SETTINGS, seal({**raw, "format": 4}))
    assert base.settings.id == base.settings.id != ""
    first = base.commit("a common", "b common")
    # As it was then: a collection of that very name, and state.json.
    index = retrieval.ServerIndex.connect(url, "early", bm25=Bm25Settings(), create=True)
    index.close()
    manifest = first.manifest
    rows = ((next(first.entries()).name, np.arange(2)),)
    where = str(base.folder / "store")
    put_there(ServerPoints(where, 1, rows, url, "early", Bm25Settings(), None, CollectionSetup()))
    early: dict[str, object] = {"version": 1, "manifest": manifest.digest, "embedder": None}
    early["bm25"] = asdict(Bm25Settings())
    (base.folder / "index").make()
    (base.folder / "index").replace("state.json", seal(early))
    assert lost_version(base.folder / "index", first) is None
    assert base.found() == ["a", "b"]
    base.commit("c common", gone=("a",))
    base.open("write").close()
    assert base.found() == ["b", "c"]
    state = read_state(base.folder / "index")
    assert isinstance(state, State)
    assert (state.version, state.collection) == (2, "early")
    verify(base.folder, repair=True)
    assert verify(base.folder).problems == []
    lose_points(url, "early", "b")
    verify(base.folder, repair=True)
    assert base.found() == ["b", "c"]


# --- back-off ---------------------------------------------------------------------------------------


def a_short_run(place: Path, url: str) -> list[str]:
    """Fill, update, search, and repair; what is found last."""
    base = Base(place, url, "passages")
    base.commit("a common", "b common", "c common")
    base.open("write").close()
    base.commit("d common", "b changed common", gone=("a", "b"))
    session = base.open("write")
    assert ids(session) == ["b", "c", "d"]
    session.close()
    assert base.open().index.count() == 3
    left = {facts.name for facts in (base.folder / "index").files()}
    assert not left & {FILLING, UPDATING}
    return base.found()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["429", "503", "time-out", "dropped"])
def test_whichever_call_fails_the_end_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=waits.append, monotonic=lambda: 0.0))
    if kind == "time-out":
        monkeypatch.setattr(collections_calls, "_TIMEOUT", 1)
    counted = Faults()
    with serve(counted) as url:
        assert a_short_run(tmp_path / "0", url) == ["b", "c", "d"]
    for at in range(1, len(counted.calls) + 1):
        faults = Faults(at, kind)
        waits.clear()
        with serve(faults) as url:
            assert a_short_run(tmp_path / str(at), url) == ["b", "c", "d"], faults.calls[at - 1]
            assert len(collections(url)) == 1
        # On a busy machine, other calls may be too late as well.
        assert len(waits) == 1 or (waits and kind == "time-out")
        assert max(waits) >= (1.0 if kind == "429" else 0.0)
        assert dropped(faults) == []


def test_what_is_refused_for_good_is_not_tried_again(
    base: Base, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=pytest.fail, monotonic=lambda: 0.0))
    with pytest.raises(PassageIndexError, match="has no collection 'none'"):
        collections_calls.count_points(url, "none")
