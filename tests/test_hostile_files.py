"""Files that somebody else has made, that are damaged, or of another version: what of them is believed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.errors import (
    DamagedError,
    KnowledgeBaseError,
    LclmRagError,
    PassageIndexError,
    StoreError,
)
from lclm_rag.indexing.state import (
    FILLING,
    Home,
    State,
    Work,
    read_state,
    read_work,
    write_state,
    write_work,
)
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.storage import LocalFolder
from lclm_rag.store import LatentStore
from lclm_rag.store.manifest import pack_entry
from lclm_rag.types import PassageKey
from lclm_rag.verify import verify
from support.commands import Run

TOWNS = [Document(f"town-{i}", f"zq{i}w is a town. It lies by a lake.") for i in range(7)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "kb"
    with KnowledgeBase.create(path, device="cpu") as new:
        new.add(TOWNS)
    return path


@pytest.fixture
def kb(made: Path, tmp_path: Path) -> Path:
    """Seven documents, each found by a word that only it has."""
    return Path(shutil.copytree(made, tmp_path / "kb"))


def _found(kb: Path, number: int) -> list[str]:
    with KnowledgeBase.open(kb, device="cpu") as opened:
        return [hit.key.document_id for hit in opened.retrieve(f"zq{number}w", 3)]


def _snapshot(kb: Path) -> Path:
    (path,) = (kb / "index" / "published").iterdir()
    return path


def _manifest(kb: Path) -> Path:
    return max((kb / "store" / "manifests").glob("*.json"))


def _rewrite(path: Path, change: dict[str, Any]) -> None:
    """Change a sealed file as somebody would who knows how it is sealed."""
    path.write_bytes(seal({**unseal(path.read_bytes()), **change}))


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["{absolute}", "../../../../../victim", "a/../../../../../../victim", "./victim", ""]
)
def test_a_file_that_an_index_names_outside_of_it_is_not_touched(
    run: Run, kb: Path, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    index = _snapshot(kb) / "index.json"
    files = unseal(index.read_bytes())["files"]
    name = name.format(absolute=victim)
    _rewrite(index, {"files": {name: [victim.stat().st_size, "0" * 64], **files}})
    assert any(str(_snapshot(kb)) in problem for problem in verify(kb).problems)
    code, out, err = run("query", "--kb", kb, "zq3w", "--max-tokens", "2", "--json")
    assert (code, [s["document_id"] for s in json.loads(out)["sources"]]) == (0, ["town-3"])
    assert "is damaged. It is built anew." in err
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["../../../x", "/x", "..", "a\\b", "", 7, None])
@pytest.mark.parametrize("part", ["lists", "keys"])
def test_a_file_that_a_manifest_names_elsewhere_is_damage(kb: Path, part: str, name: Any) -> None:
    manifest = _manifest(kb)
    (entry,) = unseal(manifest.read_bytes())[part]
    for ending in ("list", "run"):
        os.mkfifo(kb.parent / f"x.{ending}")  # Opened, it would be waited for.
    _rewrite(manifest, {part: [{**entry, "name": name}]})
    with pytest.raises(DamagedError, match=r"Manifest .* is damaged: "):
        LatentStore.open(kb / "store")


@pytest.mark.parametrize(
    "change",
    [
        {"fragments": -1},
        {"fragments": 1.5},
        {"fragments": 2},
        {"bytes": None},
        {"next_fragment": 0},
        {"next_fragment": 10**12},
        {"lists": {"fragments": 0}},
        {"lists": {"fragments": 10**12}},
        {"lists": {"first": -1}},
        {"lists": {"first": 7}},
        {"keys": {"rows": 6}},
        {"keys": {"rows": -1}},
        {"keys": {"rows": 10**17}},
    ],
)
def test_numbers_of_a_manifest_that_cannot_be_are_damage(kb: Path, change: dict[str, Any]) -> None:
    manifest = _manifest(kb)
    content = unseal(manifest.read_bytes())
    for part, value in change.items():
        inner = isinstance(value, dict)
        _rewrite(manifest, {part: [{**content[part][0], **value}] if inner else value})
    with pytest.raises(DamagedError, match=r"Manifest .* is damaged: "):
        LatentStore.open(kb / "store")


@pytest.mark.parametrize("change", [{"codec": "zip"}, {"width": -1}, {"width": "192"}, {"more": 1}])
def test_a_layout_that_cannot_be_is_damage(kb: Path, change: dict[str, Any]) -> None:
    layout = unseal(_manifest(kb).read_bytes())["layout"]
    _rewrite(_manifest(kb), {"layout": {**layout, **change}})
    with pytest.raises(DamagedError, match=r"Manifest .* is damaged: "):
        LatentStore.open(kb / "store")


@pytest.mark.parametrize("part", ["lists", "keys", "layout", "totals", "created"])
def test_a_manifest_that_lacks_a_part_is_damage(kb: Path, part: str) -> None:
    manifest = _manifest(kb)
    content = unseal(manifest.read_bytes())
    del content[part]
    manifest.write_bytes(seal(content))
    with pytest.raises(DamagedError, match=r"Manifest .* is damaged: "):
        LatentStore.open(kb / "store")


def test_a_note_on_uncommitted_work_that_names_a_file_elsewhere_is_passed_over(
    kb: Path, tmp_path: Path
) -> None:
    store = LatentStore.open(kb / "store")
    (entry,) = map(pack_entry, store.entries())
    store.close()
    layout = unseal(_manifest(kb).read_bytes())["layout"]
    (tmp_path / "victim.arrow").write_bytes(b"precious")
    note = {"layout": layout, "entry": {**entry, "name": "../../../victim.arrow", "bytes": 8}}
    (kb / "store" / "uncommitted" / "x.json").write_bytes(seal(note))
    assert len(verify(kb).problems) == 1
    with KnowledgeBase.open(kb, device="cpu") as opened:
        assert opened.uncommitted_passages() == 0
        opened.add([Document("new", "One more.")])
        opened.vacuum()
    assert (tmp_path / "victim.arrow").read_bytes() == b"precious"
    assert verify(kb).problems == []


@pytest.fixture
def piped(kb: Path, request: pytest.FixtureRequest) -> Path:
    """A knowledge base one of whose files is a pipe: read, it would be waited for."""
    (path,) = [kb] if request.param == "kb.json" else [kb / "store" / request.param]
    path = path / "kb.json" if request.param == "kb.json" else max(path.iterdir())
    path.unlink()
    os.mkfifo(path)
    return kb


@pytest.mark.parametrize(
    "piped", ["kb.json", "manifests", "lists", "keys", "fragments"], indirect=True
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: Run, piped: Path) -> None:
    # A question may need no keys: the points of the passage index say where the passages are.
    code, _, err = run("query", "--kb", piped, "zq3w", "--max-tokens", "2")
    assert code in (0, 1, 3)
    assert "Traceback" not in err
    code, out, err = run("show", "--kb", piped, "town-3", "0")
    assert (code, out) == (1, "")
    assert "Traceback" not in err


# --- an index of another version, or a damaged one ------------------------------------------------------


def test_an_index_of_a_lost_version_is_not_taken_for_that_of_its_number(run: Run, kb: Path) -> None:
    with KnowledgeBase.open(kb, device="cpu") as opened:
        opened.add([Document("lost", "zqbw is a town.")])
    _manifest(kb).unlink()
    code, out, _ = run("verify", "--kb", kb)
    assert (code, "Version 2 of" in out, "its manifest is not there" in out) == (1, True, True)
    _, _, err = run("query", "--kb", kb, "zq1w", "--max-tokens", "2")
    assert "its manifest is not there" in err
    with KnowledgeBase.open(kb, device="cpu") as opened:
        opened.add([Document("new", "zqcw is a town.")])
    with KnowledgeBase.open(kb, device="cpu") as opened:
        assert (opened.store.version, opened.store.count_documents()) == (2, 8)
        assert [hit.key.document_id for hit in opened.retrieve("zqcw", 3)] == ["new"]
        assert opened.retrieve("zqbw", 3) == []
    assert verify(kb).problems == []


def test_after_a_lost_manifest_repair_keeps_what_its_version_had_compressed(
    run: Run, kb: Path
) -> None:
    with KnowledgeBase.open(kb, device="cpu") as opened:
        opened.add([lost := Document("lost", "zqbw is a town.")])
    _manifest(kb).unlink()
    code, out, _ = run("verify", "--kb", kb, "--repair")
    assert (code, "What the lost version had changed is undone" in out) == (0, True)
    assert verify(kb).problems == []
    with KnowledgeBase.open(kb, device="cpu") as opened:
        report = opened.add([lost])
        assert (report.added, report.reused) == (1, 1)
    assert _found(kb, 1) == ["town-1"]


def test_a_copy_whose_index_is_newer_than_its_store_finds_what_the_store_has(
    kb: Path, tmp_path: Path
) -> None:
    os.system(f"cp -r '{kb}/store' '{tmp_path}/store'")
    with KnowledgeBase.open(kb, device="cpu") as opened:
        opened.add([Document("new", "zqcw is a town.")])
        opened.delete(["town-1"])
    # The store was copied before, the index after.
    os.system(f"rm -r '{kb}/store' && mv '{tmp_path}/store' '{kb}/store'")
    assert [_found(kb, i) for i in range(7)] == [[f"town-{i}"] for i in range(7)]
    assert ["its manifest is not there" in problem for problem in verify(kb).problems] == [True]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "longer", "a link"])
def test_an_index_with_a_file_of_another_size_is_built_anew(
    kb: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [p for p in (_snapshot(kb) / "edge").rglob("*") if p.is_file() and p.stat().st_size > 1]
    path, snapshot = max(paths, key=lambda path: path.stat().st_blocks), _snapshot(kb)
    kept = path.read_bytes()
    if damage in ("removed", "a link"):
        path.unlink()
    if damage == "a link":
        (kb / "copy").write_bytes(kept)
        path.symlink_to(kb / "copy")
    elif damage != "removed":
        changed = {"truncated": kept[: len(kept) // 2], "emptied": b"", "longer": kept + b"\n"}
        path.write_bytes(changed[damage])
    assert [_found(kb, i) for i in range(7)] == [[f"town-{i}"] for i in range(7)]
    assert caplog.messages == [f"{snapshot} is damaged. It is built anew."]
    assert _snapshot(kb) != snapshot
    assert verify(kb).problems == []


# --- what passages are looked up by -----------------------------------------------------------------------


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_bit_in_the_hashes_by_which_passages_are_looked_up_is_noticed_before_anything_is_changed(
    run: Run, kb: Path, tmp_path: Path
) -> None:
    (run_there,) = (kb / "store" / "keys").iterdir()
    _flip(run_there, 16 + 16 * 3 + 3)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(json.dumps({"id": "town-3", "text": "zq3w is a city."}) + "\n")
    for command in (
        ["add", changed],
        ["delete", "town-3"],
        ["show", "town-3", "0"],
    ):
        code, out, err = run(command[0], "--kb", kb, *command[1:])
        assert (code, out) == (1, ""), command
        assert "The keys of the store are damaged" in err
        assert "lclm-rag verify --repair makes them anew" in err
    # A question needs no keys: the points of the passage index say where the passages are.
    assert run("query", "zq1w", "--kb", kb)[0] == 0
    code, out, _ = run("verify", "--kb", kb, "--repair", "--json")
    assert (code, json.loads(out)["documents"]) == (0, 7)
    code, out, _ = run("add", changed, "--kb", kb, "--json")
    assert (code, json.loads(out)["updated"]) == (0, 1)
    code, out, _ = run("show", "--kb", kb, "town-3", "0")
    assert (code, out) == (0, "zq3w is a city.\n")


def test_a_bit_in_an_id_does_not_make_its_document_a_new_one(kb: Path) -> None:
    with KnowledgeBase.open(kb, device="cpu") as opened:
        name, row = opened.store.document_places("town-3")[0]
    fragment = kb / "store" / "fragments" / name
    _flip(fragment, fragment.read_bytes().index(b"town-0town-1") + len("town-0") * row + 5)
    with (
        KnowledgeBase.open(kb, device="cpu") as opened,
        pytest.raises(DamagedError, match=rf"Row {row} of fragment .* its key is not that of its"),
    ):
        opened.add([Document("town-3", "zq3w is a city.")])
    assert LatentStore.open(kb / "store").version == 1


# --- anything, anywhere -------------------------------------------------------------------------------

_HOSTILE = [
    *(
        -1,
        0,
        1,
        1.5,
        10**12,
        2**63,
        10**400,
        -(10**12),
        1e308,
        True,
        None,
        "",
        "x",
        "../../etc/passwd",
    ),
    *(
        "a\0b",
        "\ud800",
        "\N{RIGHT-TO-LEFT OVERRIDE}x",
        "/dev/zero",
        "x" * 10**5,
        [],
        {},
        [[]],
        [None],
    ),
    *([[0, 10**12]], [[5, 2]], [[0, 2], [1, 3]], {"": {}}, {"__class__": "x"}, [0] * 1000),
    *("\N{GREEK SMALL LETTER ALPHA}" * 200, "hf://x/y", "http://", {"name": 3}),
]
_RAW = [
    b"",
    b"\0" * 100,
    b"[" * 10**6,
    b'{"sha256": "x", "content": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"sha256": "", "content": NaN}',
    b'{"sha256": "", "content": 1e999}',
    b'{"sha256": "", "content": ' + b"9" * 10**5 + b"}",
    b'{"sha256": "\xff"}',
    b"null",
]


def _places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value in a JSON."""
    below: list[tuple[Any, ...]] = []
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        below += [(*at, key), *_places(value, (*at, key))]
    return below


def _mutated(draw: Callable[..., Any], content: Any) -> Any:
    """A JSON with up to three values replaced, removed, repeated or exchanged."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(content)
        if not places:
            return content
        *way, key = draw(st.sampled_from(places))
        holder = content
        for step in way:
            holder = holder[step]
        what = draw(st.sampled_from(["replace", "remove", "repeat", "more", "nest"]))
        if what == "remove":
            del holder[key]
        elif what == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif what == "more" and isinstance(holder, dict):
            holder["more"] = copy.deepcopy(_HOSTILE[draw(st.integers(0, len(_HOSTILE) - 1))])
        elif what == "nest":
            for _ in range(draw(st.sampled_from([1, 3, 900, 2000]))):
                holder[key] = [holder[key]]
            return content
        else:
            holder[key] = copy.deepcopy(_HOSTILE[draw(st.integers(0, len(_HOSTILE) - 1))])
    return content


def _sealed(content: Any) -> bytes:
    """As `seal`, also for what it cannot write."""
    try:
        return seal(content)
    except RecursionError:
        return _RAW[3]


_PROPERTY = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@_PROPERTY
@given(data=st.data())
def test_whatever_a_manifest_says_is_read_or_is_damage(kb: Path, data: st.DataObject) -> None:
    manifest = _manifest(kb)
    original = manifest.read_bytes()
    manifest.write_bytes(_sealed(_mutated(data.draw, unseal(original))))
    try:
        with suppress(StoreError):
            store = LatentStore.open(kb / "store")
            keys = [passage.key for passage in store.texts()]
            store.read(keys)
            store.count_documents()
            store.close()
        with suppress(StoreError):
            assert all(len(str(problem)) < 2000 for problem in verify(kb).problems)
    finally:
        manifest.write_bytes(original)


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("holed") / "kb"
    with KnowledgeBase.create(path, device="cpu") as new:
        new.add(TOWNS)
        new.delete(["town-5"])
    return path


@_PROPERTY
@given(data=st.data())
def test_whatever_a_list_bitmaps_or_keys_say_is_read_or_is_damage(
    holed: Path, data: st.DataObject
) -> None:
    """Of somebody who knows how they are sealed."""
    store, manifest = holed / "store", _manifest(holed)
    content = unseal(manifest.read_bytes())
    path = store / data.draw(st.sampled_from([f"lists/{content['lists'][0]['name']}.list", "keys"]))
    path = next(path.iterdir()) if path.is_dir() else path
    originals = {file: file.read_bytes() for file in (path, manifest)}
    changed = bytearray(originals[path])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(changed), 160) - 4))
        value = data.draw(st.sampled_from([0, 1, 7, 8, 255, 2**31, 2**32 - 1]))
        changed[at : at + 4] = value.to_bytes(4, "little")
    if path.suffix == ".list":
        sha256 = hashlib.sha256(changed).hexdigest()
        _rewrite(manifest, {"lists": [{**content["lists"][0], "sha256": sha256}]})
    else:
        seed = int(path.name[:16], 16)
        changed[:8] = xxhash.xxh3_64_intdigest(bytes(changed[8:]), seed).to_bytes(8, "little")
    path.write_bytes(changed)
    try:
        with suppress(StoreError, KeyError):
            opened = LatentStore.open(store)
            keys = [PassageKey(town.id, 0) for town in TOWNS if town.id != "town-5"]
            with suppress(StoreError):
                list(opened.texts())
            opened.read(keys)
            opened.close()
        with suppress(StoreError):
            assert all(len(str(problem)) < 2000 for problem in verify(holed).problems)
    finally:
        for file, whole in originals.items():
            file.write_bytes(whole)


@_PROPERTY
@given(data=st.data())
def test_whatever_the_settings_say_is_taken_or_refused_in_a_sentence(
    kb: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCLM_RAG_OFFLINE", "1")
    path = kb / "kb.json"
    original = path.read_bytes()
    path.write_bytes(_sealed(_mutated(data.draw, unseal(original))))
    try:
        with suppress(LclmRagError):
            KnowledgeBase.open(kb, device="cpu").close()
    finally:
        path.write_bytes(original)


@_PROPERTY
@given(data=st.data())
def test_whatever_is_noted_about_a_collection_is_taken_or_is_damage(
    tmp_path: Path, data: st.DataObject
) -> None:
    folder = LocalFolder(tmp_path)
    home, bm25 = Home("there:/kb", 3), Bm25Settings("english")
    state = State(3, "digest", bm25, None, "lake", home)
    work = Work("lake-2", ((3, "digest"),), 7, bm25, None, home)
    # Hypothesis may have given up an example in the middle.
    (tmp_path / "state-0000000003-0000.json").unlink(missing_ok=True)
    write_state(folder, state)
    write_work(folder, FILLING, work)
    assert (read_state(folder), read_work(folder, FILLING)) == (state, work)
    for name in ("state-0000000003-0000.json", FILLING):
        content = unseal((tmp_path / name).read_bytes())
        (tmp_path / name).write_bytes(_sealed(_mutated(data.draw, content)))
    with suppress(PassageIndexError):
        read_state(folder)
    with suppress(PassageIndexError):
        read_work(folder, FILLING)


@pytest.mark.parametrize("raw", _RAW, ids=range(len(_RAW)))
@pytest.mark.parametrize("name", ["kb.json", "store/manifests/0000000001.json"])
def test_a_file_that_is_no_json_is_damage(kb: Path, name: str, raw: bytes) -> None:
    (kb / name).write_bytes(raw)
    with pytest.raises((DamagedError, KnowledgeBaseError)) as caught:
        KnowledgeBase.open(kb, device="cpu")
    assert len(str(caught.value)) < 500
