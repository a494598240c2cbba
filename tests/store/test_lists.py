"""Lists, bitmaps, large fragments: a commit writes what changes, damage is named and repaired."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from lclm_rag import DamagedError, Document, KnowledgeBase, PassageKey
from lclm_rag.checksummed_json import seal
from lclm_rag.store import LatentStore, compact, keys, lists, maintenance, vacuum, writing
from lclm_rag.store import writer as writers
from lclm_rag.store.manifest import pack_entry
from lclm_rag.store.verify import verify_store
from lclm_rag.verify import verify
from support.commands import Run
from support.rows import LAYOUT, add, row, texts


def files(folder: Path, part: str) -> set[str]:
    return {path.name for path in (folder / part).iterdir()}


# --- a commit writes what changes -----------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of many lists: each has two fragments. New keys are not merged with those that are there."""
    monkeypatch.setattr(keys, "_SMALL", 1)
    monkeypatch.setattr(lists, "LIST_FRAGMENTS", 2)
    monkeypatch.setattr(writers, "FRAGMENT_BYTES", 100)
    LatentStore.create(tmp_path / "store", LAYOUT)
    add(tmp_path / "store", *(row(f"d{i}", "long " * 30) for i in range(40))).close()
    return tmp_path / "store"


def test_a_commit_writes_one_list_and_leaves_the_others(large: Path) -> None:
    before = LatentStore.open(large)
    assert len(before.manifest.lists) == 20
    after = add(large, row("new"))
    assert after.manifest.lists[:20] == before.manifest.lists
    changed = add(large, row("d7", "changed"))
    assert len(set(changed.manifest.lists) - set(after.manifest.lists)) == 2
    with writing(large, "delete") as writer:
        writer.delete_document("d20")
        writer.delete_document("d21")
        deleted = writer.commit()
    assert len(deleted.manifest.lists) == 20
    assert deleted.manifest.fragments == 39
    assert deleted.manifest.bytes == sum(entry.bytes for entry in deleted.entries())
    assert len(texts(before)) == 40
    assert texts(deleted).keys() == {"new"} | {f"d{i}" for i in range(40)} - {"d20", "d21"}
    assert list(verify_store(deleted)) == []


def test_what_does_not_change_is_not_even_read(large: Path) -> None:
    store = LatentStore.open(large)
    (large / "lists" / f"{store.manifest.lists[3].name}.list").unlink()  # d6 and d7
    added = add(large, row("d30", "changed"), row("new"))
    assert added.read([PassageKey("d30", 0)])[0].passage.text == "changed"
    assert len(list(added.entries_unlike(store))) == 2
    with pytest.raises(DamagedError, match=r"Fragment list .* is damaged: .*verify --repair"):
        PassageKey("d6", 0) in added  # noqa: B015


# --- bitmaps ----------------------------------------------------------------------------------------


def test_deletions_are_bitmaps_that_versions_share(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, LAYOUT)
    add(tmp_path, *(row(f"a{i}") for i in range(20))).close()
    add(tmp_path, *(row(f"b{i}") for i in range(3))).close()
    with writing(tmp_path, "delete") as writer:
        assert [writer.delete_document(name) for name in ("a0", "a9", "b1")] == [1, 1, 1]
        store = writer.commit()
    (name,) = files(tmp_path, "deletions")
    assert (tmp_path / "deletions" / name).read_bytes() == bytes([0b1, 0b10, 0, 0b10])
    assert [entry.deleted for entry in store.entries()] == [2, 1]
    add(tmp_path, row("c")).close()
    assert files(tmp_path, "deletions") == {name}
    with writing(tmp_path, "delete") as writer:
        writer.delete_document("b0")
        writer.commit().close()
    store.close()
    vacuum(tmp_path)
    assert len(files(tmp_path, "deletions")) == 2  # That of a0 and a9 still lies in the first.
    assert len(texts(LatentStore.open(tmp_path))) == 20


# --- large fragments --------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two rows, large fragments of some twenty."""
    monkeypatch.setattr(writers, "FRAGMENT_BYTES", 20_000)
    for module in (writers, maintenance):
        monkeypatch.setattr(module, "MERGED_BYTES", 50_000)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("where", ["folder", "memory://large-fragments"])
def test_compaction_makes_large_fragments_that_are_read_row_by_row(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    location = str(tmp_path / where) if where == "folder" else where
    LatentStore.create(location, LAYOUT)
    documents = {f"d{i}": f"text {i} " * 150 for i in range(72)}
    for start in range(0, 72, 12):
        part = list(documents.items())[start : start + 12]
        add(location, *(row(*each) for each in part)).close()
    store = compact(location)
    assert store.manifest.fragments == 2
    for name in documents:
        # As another machine reads it, which has nothing of the fragment yet.
        monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / f"of {name}"))
        store = LatentStore.open(location)
        assert store.read([PassageKey(name, 0)])[0].passage.text == documents[name]
    for name in sorted(documents, reverse=True):
        assert store.read([PassageKey(name, 0)])[0].passage.text == documents[name]
    assert max(store.fragment(entry.name)._batches for entry in store.entries()) > 2
    assert texts(store) == documents
    assert list(verify_store(store)) == []
    compacted = compact(location)
    assert compacted.version == store.version  # There is nothing more to do.


@pytest.mark.usefixtures("small")
def test_a_load_packs_what_it_has_finished_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, LAYOUT)
    rows = [row(f"d{i}", f"text {i} " * 150) for i in range(100)]
    with suppress(KeyboardInterrupt), writing(tmp_path, "add", resumable=True) as writer:
        for at, each in enumerate(rows):
            writer.add(each)
            if at % 7 == 6:
                writer._flush()
        raise KeyboardInterrupt
    finished = files(tmp_path, "fragments")
    assert {f"{name}.json" for name in finished} == files(tmp_path, "uncommitted")
    assert len(finished) < 12
    with writing(tmp_path, "add", resumable=True) as writer:
        for each in rows:
            key = each.passage.key
            assert writer.take_over(key.document_id, each.document_hash) == 1
        store = writer.commit()
    assert texts(store) == {f"d{i}": f"text {i} " * 150 for i in range(100)}
    assert files(tmp_path, "fragments") == {entry.name for entry in store.entries()}
    assert list(verify_store(store)) == []


@pytest.mark.usefixtures("small")
def test_every_error_of_a_damaged_footer_of_a_large_fragment_is_one_of_ours(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, LAYOUT)
    add(tmp_path, *(row(f"d{i}", "text " * 200) for i in range(9))).close()
    add(tmp_path, row("d9")).close()
    store = compact(tmp_path)
    (entry,) = store.entries()
    path = tmp_path / "fragments" / entry.name
    kept = path.read_bytes()
    for offset in range(len(kept) - 400, len(kept), 3):
        changed = bytearray(kept)
        changed[offset] ^= 1 << offset % 8
        path.write_bytes(changed)
        opened = LatentStore(store.folder, store.manifest)
        with suppress(DamagedError):
            list(opened.texts())


# --- from before ------------------------------------------------------------------------------------


def test_a_store_of_format_4_is_refused_until_convert_takes_it_over(run: Run, kb: Path) -> None:
    """Its manifests named every fragment, with runs of deleted rows; there was nothing else."""
    store = LatentStore.open(kb / "store")
    old = []
    for entry in store.entries():
        gone = [[row, row + 1] for row in range(entry.rows) if row not in store.rows(entry)]
        old.append({**pack_entry(entry), "deleted": gone})
    manifest = store.manifest
    content = {name: getattr(manifest, name) for name in ("version", "operation", "created")}
    content |= {"layout": asdict(manifest.layout), "totals": asdict(manifest.totals)}
    store.close()
    sealed = seal({"format_version": 4, **content, "fragments": old})
    for part in ("lists", "deletions", "keys"):
        shutil.rmtree(kb / "store" / part)
    for path in (kb / "store" / "manifests").iterdir():
        path.write_bytes(sealed)
    code, _, err = run("info", "--kb", kb)
    assert (code, "format version 4" in err, "lclm-rag convert takes it over" in err) == (
        1,
        True,
        True,
    )
    code, out, err = run("convert", "--kb", kb)
    assert (code, "taken over from format 4, as version 4" in out + err) == (0, True)
    assert verify(kb).problems == []
    with KnowledgeBase.open(kb, device="cpu") as opened:
        assert texts(opened.store).keys() == {town.id for town in LEFT}
        assert [hit.key.document_id for hit in opened.retrieve("zq3w", 1)] == ["town-3"]
        assert opened.add(LEFT).unchanged == 6
    assert run("convert", "--kb", kb)[0] == 2


# --- damage -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of documents, then one in which some are deleted."""
    path = tmp_path_factory.mktemp("lists") / "kb"
    with KnowledgeBase.create(path, device="cpu") as kb:
        kb.add(TOWNS[:4])
        kb.add(TOWNS[4:])
        kb.delete(["town-1", "town-6"])
    return path


TOWNS = [Document(f"town-{i}", f"zq{i}w is a town. It lies by a lake.") for i in range(8)]
LEFT = [town for town in TOWNS if town.id not in ("town-1", "town-6")]


@pytest.fixture
def kb(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "kb"))


def spoil(kb: Path, part: str) -> None:
    """Flip a bit in the newest version's files of one kind."""
    store = LatentStore.open(kb / "store")
    names = {
        "lists": [f"{listed.name}.list" for listed in store.manifest.lists],
        "deletions": [f"{e.deletions.file}.bits" for e in store.entries() if e.deletions],
        "keys": [f"{run.name}.run" for run in store.manifest.keys],
    }[part]
    store.close()
    for name in set(names):
        path = kb / "store" / part / name
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)


def test_damaged_keys_are_made_anew_and_nothing_is_lost(kb: Path) -> None:
    spoil(kb, "keys")
    (problem,) = set(verify(kb).problems)
    assert "The keys of the store are damaged" in problem
    found = verify(kb, repair=True)
    assert (found.damaged_documents, found.documents) == ([], 6)
    assert "The keys of the passages were made anew." in found.repaired
    assert verify(kb).problems == []
    with KnowledgeBase.open(kb, device="cpu") as opened:
        assert opened.add(LEFT).unchanged == 6


@pytest.mark.parametrize("part", ["lists", "deletions"])
def test_a_version_with_a_damaged_list_is_undone_if_the_one_before_is_whole(
    kb: Path, part: str
) -> None:
    spoil(kb, part)
    assert any("is damaged" in p or "are damaged" in p for p in verify(kb).problems)
    found = verify(kb, repair=True)
    assert "fragment list of version 3 was damaged: what that version had changed is undone" in str(
        found.repaired
    )
    assert verify(kb).problems == []
    with KnowledgeBase.open(kb, device="cpu") as opened:
        assert opened.sync(LEFT).deleted == 2
    assert verify(kb).problems == []


@pytest.mark.parametrize("part", ["lists", "deletions"])
def test_of_the_only_version_what_can_be_read_is_kept_and_add_brings_back_the_rest(
    kb: Path, part: str
) -> None:
    subprocess.run(["rm", "-r", *(kb / "store/manifests").glob("*[012].json")], check=True)
    spoil(kb, part)
    found = verify(kb, repair=True)
    # Of a list all fragments, of bitmaps that of the damaged one; what no version names is taken over.
    lost = LEFT if part == "lists" else LEFT[:3]
    assert set(found.damaged_documents) >= {town.id for town in lost}
    assert verify(kb).problems == []
    with KnowledgeBase.open(kb, device="cpu") as opened:
        report = opened.add(LEFT)
        assert (report.added, report.reused) == (len(lost), 6 if part == "lists" else 0)
        assert [hit.key.document_id for hit in opened.retrieve("zq3w", 1)] == ["town-3"]
    assert verify(kb).problems == []
