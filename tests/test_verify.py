"""verify: a wrong byte anywhere is found and named; --repair and add heal it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lclm_rag import (
    Document,
    KnowledgeBase,
    KnowledgeBaseError,
    PassageKey,
    StoreError,
)
from lclm_rag.compression import Compressor
from lclm_rag.errors import DamagedError
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.problem import sentences
from lclm_rag.storage import LocalFolder
from lclm_rag.store import LatentStore, Layout, StoredPassage, compact, writing
from lclm_rag.store.verify import verify_store
from lclm_rag.types import Passage
from lclm_rag.verify import verify
from support.commands import Run


@pytest.fixture(scope="module")
def corpus(sheets: list[FactSheet]) -> list[Document]:
    return [sheet.document for sheet in sheets[:12]]


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    corpus: list[Document],
    sheets: list[FactSheet],
    compressor: Compressor,
) -> Path:
    """Twelve documents of several passages in two fragments, one of them updated, another deleted; and
    uncommitted work."""
    path = tmp_path_factory.mktemp("verify") / "kb"
    with KnowledgeBase.create(path, passage_tokens=48) as kb:
        kb.__dict__["compressor"] = compressor
        kb.add(
            [replace(corpus[0], text="It said something else."), *corpus[1:8], sheets[20].document]
        )
        kb.add([corpus[0], *corpus[8:]])
        kb.delete([sheets[20].document.id])
        rows = [
            row
            for row in LatentStore.open(path / "store", 1).passages()
            if row.passage.key.document_id == sheets[20].document.id
        ]
    left = _written(path / "store", rows, commit=False)
    assert left.version == 3
    return path


@pytest.fixture
def kb(built: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    # Holes of the index stay holes.
    assert os.system(f"cp -r --sparse=always '{built}' '{tmp_path}'") == 0
    return tmp_path / "kb"


def _written(folder: Path, rows: list[StoredPassage], *, commit: bool = True) -> LatentStore:
    """Rows through the store's own way of writing; else as a killed run leaves them."""
    try:
        with writing(folder, "add", resumable=True) as writer:
            for row in rows:
                writer.add(row)
            if not commit:
                raise KeyboardInterrupt
            writer.commit()
    except KeyboardInterrupt:
        pass
    return LatentStore.open(folder)


def _flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1 << bit]))


def _fragments(kb: Path) -> list[Path]:
    """Of the newest version, the larger first; then those of no version."""
    store = LatentStore.open(kb / "store")
    names = [e.name for e in sorted(store.entries(), key=lambda entry: -entry.bytes)]
    store.close()
    there = (kb / "store" / "fragments").glob("*.arrow")
    return [kb / "store" / "fragments" / name for name in names] + sorted(
        path for path in there if path.name not in names
    )


def _flip_in_row(kb: Path, document_id: str, column: str, ordinal: int = 0) -> tuple[str, int]:
    """Flip a bit in one column of a passage; returns fragment and row."""
    store = LatentStore.open(kb / "store")
    place = store.place(PassageKey(document_id, ordinal))
    assert place is not None
    fragment, row = store.fragment(place[0]), place[1]
    stored = fragment.read(row)
    path = kb / "store" / "fragments" / place[0]
    data = path.read_bytes()
    wanted = {
        "latents": stored.encoded.tobytes(),
        "text": stored.passage.text.encode(),
        "document_id": document_id.encode(),
        "document_hash": stored.document_hash,
        "checksum": fragment._checksum(row).to_bytes(8, "little"),
    }[column]
    if column == "document_id":  # Ids lie one after the other; a text may name them, too.
        columns, at = fragment._at(row)
        offset = fragment._span(columns, at, "document_id", row)[0]
    else:
        offset = data.index(wanted) + (8 if column == "document_hash" else 0)
    store.close()
    _flip(path, offset, 3)
    return place


def _digests(folder: Path) -> dict[str, str]:
    """Of every file but locks, leases and the folders of running processes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not {"readers", "private"} & set(path.parts) and path.name != "lock"
    }


def _latents(kb: Path) -> dict[PassageKey, torch.Tensor]:
    store = LatentStore.open(kb / "store")
    found = {row.passage.key: row.latents.float().clone() for row in store.passages()}
    store.close()
    return found


def _add(kb: Path, documents: list[Document], compressor: Compressor):  # type: ignore[no-untyped-def]
    with KnowledgeBase.open(kb) as opened:
        opened.__dict__["compressor"] = compressor
        return opened.add(documents)


# --- what is found --------------------------------------------------------------------------------------


def test_a_sound_knowledge_base_has_no_problems_and_is_not_touched(run: Run, kb: Path) -> None:
    before = _digests(kb)
    code, out, err = run("verify", "--kb", kb)
    assert (code, "12 documents" in out, "all is as it was written" in out) == (0, True, True), err
    code, out, _ = run("verify", "--kb", kb, "--json")
    found = json.loads(out)
    assert (code, found["problems"], found["damaged_documents"]) == (0, [], [])
    assert found["passages"] > 24
    assert found["reclaimable_bytes"] > 0
    code, out, _ = run("verify", "--kb", kb, "--repair", "--json")
    assert (code, json.loads(out)["repaired"]) == (0, [])
    assert _digests(kb) == before


def _findings(kb: Path) -> list[str]:
    """What verify says of everything but the index; an error counts if it is a sentence of ours."""
    try:
        store = LatentStore.open(kb / "store")
        try:
            return sentences(verify_store(store))
        finally:
            store.close()
    except StoreError as error:
        return [str(error)]


def test_a_flipped_bit_is_found_in_every_file_of_the_store(kb: Path) -> None:
    random_ = random.Random(7)
    files = [p for p in sorted((kb / "store").rglob("*")) if p.is_file() and p.stat().st_size]
    assert len([p for p in files if p.parent.name == "fragments"]) == 3
    assert len([p for p in files if p.parent.name == "manifests"]) == 4
    assert len([p for p in files if p.parent.name == "uncommitted"]) == 1
    assert _findings(kb) == []
    for path in files:
        size = path.stat().st_size
        few = path.parent.name in ("lists", "deletions", "keys")  # Every byte of them alike.
        ends = [0, 7, 8, size - 1, size - 7, size - 11]  # magic, lengths
        offsets = (
            [*ends, *random_.sample(range(size), 24), *random_.sample(range(1500), 12)]
            if size > 1500
            else [*(end for end in ends[:4] if end < size), *random_.choices(range(size), k=20)]
        )
        for offset in offsets[:12] if few else offsets:
            bit = random_.randrange(8)
            _flip(path, offset, bit)
            problems = _findings(kb)
            assert problems, f"{path.name}: {offset}, bit {bit}"
            assert all(problem[-1] == "." and "Traceback" not in problem for problem in problems)
            _flip(path, offset, bit)
    assert _findings(kb) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer", "swapped"])
def test_files_of_the_store_that_are_not_what_they_were(kb: Path, damage: str) -> None:
    files = [p for p in sorted((kb / "store").rglob("*")) if p.is_file() and p.stat().st_size]
    if damage in ("missing", "swapped"):
        # That there was another version, or uncommitted work, nothing tells.
        files = _fragments(kb)[:2]
    for path in files:
        if damage == "longer" and path.suffix in (".list", ".bits"):
            continue  # Only the stretches that are named are read.
        kept = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            changed = {
                "empty": b"",
                "truncated": kept[: len(kept) // 2],
                "longer": kept + b"\n",
                "swapped": next(p for p in files if p != path or len(files) == 1).read_bytes(),
            }
            path.write_bytes(changed[damage])
        assert _findings(kb), path
        path.write_bytes(kept)
    assert _findings(kb) == []


def test_a_flipped_bit_is_found_in_every_file_of_the_index_and_of_the_settings(kb: Path) -> None:
    random_ = random.Random(8)
    (snapshot,) = SnapshotFolder(LocalFolder(kb / "index")).snapshots()
    files = [
        p for p in sorted((snapshot.path / "edge").rglob("*")) if p.is_file() and p.stat().st_size
    ]
    assert any(p.stat().st_blocks * 512 < p.stat().st_size // 4 for p in files)  # mostly holes
    for _ in range(3):
        flips = [(p, random_.randrange(p.stat().st_size), random_.randrange(8)) for p in files]
        for flip in flips:
            _flip(*flip)
        names = [str(p.relative_to(snapshot.path / "edge")) for p in files]
        assert snapshot.damage() == sorted(names)
        (problem,) = verify(kb).problems
        assert re.search("passage index in .* is damaged", problem)
        for flip in flips:
            _flip(*flip)
    kept = files[0].read_bytes()
    files[0].unlink()
    assert "is damaged" in verify(kb).problems[0]
    files[0].write_bytes(kept + b"\0")
    assert "is damaged" in verify(kb).problems[0]
    files[0].write_bytes(kept)
    for path, error in ((snapshot.path / "index.json", None), (kb / "kb.json", KnowledgeBaseError)):
        for _ in range(8):
            flip = path, random_.randrange(path.stat().st_size), random_.randrange(8)
            _flip(*flip)
            if error is None:
                assert "is damaged" in verify(kb).problems[0]
            else:
                with pytest.raises(error, match=r"kb\.json is damaged .* backup"):
                    verify(kb)
            _flip(*flip)
    assert verify(kb).problems == []


# --- what reads meet ------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["latents", "text", "document_hash", "checksum"])
def test_a_read_that_meets_a_flipped_bit_names_it(
    kb: Path, corpus: list[Document], column: str
) -> None:
    name, row = _flip_in_row(kb, corpus[2].id, column)
    store = LatentStore.open(kb / "store")
    with pytest.raises(
        DamagedError, match=rf"Row {row} of fragment .*{name} is damaged: its checksum"
    ):
        store.read([PassageKey(corpus[2].id, 0)])
    others = [
        key
        for document in corpus
        for key in store.document_keys(document.id)
        if key != (corpus[2].id, 0)
    ]
    assert len(store.read(others)) == len(store) - 1


def test_a_question_that_meets_it_ends_with_one_sentence(
    run: Run, kb: Path, sheets: list[FactSheet], corpus: list[Document]
) -> None:
    question = sheets[2].document.text.splitlines()[0]
    _, row = _flip_in_row(kb, corpus[2].id, "latents")
    code, out, err = run("query", "--kb", kb, question, "--top-k", "50", "--device", "cpu")
    assert (code, out) == (1, "")
    assert f"Row {row} of fragment" in err.splitlines()[-1]
    assert "Traceback" not in err


# --- what is repaired -----------------------------------------------------------------------------------


def test_damaged_documents_are_listed_and_add_heals_them(
    run: Run, kb: Path, corpus: list[Document], compressor: Compressor
) -> None:
    before, version = _latents(kb), LatentStore.open(kb / "store").version
    old = LatentStore.open(kb / "store")
    damaged = sorted([corpus[1].id, corpus[5].id, corpus[9].id, corpus[11].id])
    for document_id, column in zip(
        damaged, ("latents", "text", "checksum", "document_id"), strict=True
    ):
        _flip_in_row(kb, document_id, column)
    code, out, _ = run("verify", "--kb", kb, "--json")
    assert (code, json.loads(out)["damaged_documents"]) == (1, damaged)
    code, out, _ = run("verify", "--kb", kb, "--repair", "--json")
    found = json.loads(out)
    assert (code, found["damaged_documents"], found["nameless_passages"]) == (3, damaged, 0)
    assert (found["version"], found["documents"]) == (version + 1, 8)
    assert len(list(old.read([PassageKey(corpus[0].id, 0)]))) == 1
    old.close()

    code, out, _ = run("verify", "--kb", kb)
    assert code == 0, out
    assert "Before the last repair: Fragment" in out
    report = _add(kb, corpus, compressor)
    assert (report.added, report.updated, report.unchanged) == (4, 0, 8)
    assert report.reused == 0
    assert report.passages == sum(key.document_id in damaged for key in before)
    after = _latents(kb)
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[key], before[key], atol=1e-2) for key in before)
    assert verify(kb).problems == []
    with KnowledgeBase.open(kb) as opened:
        hits = opened.retrieve(corpus[5].text[:200], top_k=100)
        assert {hit.key for hit in hits} <= before.keys()
        assert corpus[5].id in {hit.key.document_id for hit in hits}
    assert run("vacuum", "--kb", kb)[0] == 0
    assert verify(kb).earlier == []


@pytest.mark.parametrize("damage", ["footer", "deleted"])
def test_the_index_names_the_documents_of_a_fragment_that_is_lost(
    kb: Path, corpus: list[Document], compressor: Compressor, damage: str
) -> None:
    before, path = _latents(kb), _fragments(kb)[0]
    lost = LatentStore.open(kb / "store").fragment(path.name)
    store = LatentStore.open(kb / "store")
    ids = sorted({d.id for d in corpus if (store.place(PassageKey(d.id, 0)) or "")[0] == path.name})
    assert 3 < len(ids) < 12 <= lost.rows
    if damage == "footer":
        os.truncate(path, path.stat().st_size - 100)
    else:
        path.unlink()
    found = verify(kb, repair=True)
    assert (found.damaged_documents, found.nameless_passages) == (ids, 0)
    assert verify(kb).problems == []
    report = _add(kb, corpus, compressor)
    assert (report.added, report.unchanged) == (len(ids), 12 - len(ids))
    assert _latents(kb).keys() == before.keys()
    assert verify(kb).problems == []


def test_without_an_index_it_is_said_how_many_passages_have_no_name(
    run: Run, kb: Path, corpus: list[Document], compressor: Compressor
) -> None:
    shutil.rmtree(kb / "index")
    before, path = _latents(kb), _fragments(kb)[0]
    entry = next(e for e in LatentStore.open(kb / "store").entries() if e.name == path.name)
    path.unlink()
    code, out, _ = run("verify", "--kb", kb, "--repair")
    assert code == 3
    lost = entry.rows - entry.deleted
    assert f"Damaged passages of unknown documents: {lost}" in out
    assert "add the whole corpus again" in out
    assert verify(kb).problems == []
    _add(kb, corpus, compressor)
    assert _latents(kb).keys() == before.keys()


def test_a_damaged_newest_manifest(
    run: Run, kb: Path, corpus: list[Document], sheets: list[FactSheet], compressor: Compressor
) -> None:
    more = [sheet.document for sheet in sheets[30:33]]
    assert _add(kb, more, compressor).added == 3
    before = _latents(kb)
    path = kb / "store" / "manifests" / "0000000004.json"
    _flip(path, 300)
    for command in ("info", "verify", "compact"):
        code, _, err = run(command, "--kb", kb)
        assert code == 1
        assert "0000000004.json is damaged" in err
        assert "verify --repair goes back" in err
    code, out, err = run("verify", "--kb", kb, "--repair")
    assert code == 0, err
    assert "what that version had changed is undone" in out
    assert verify(kb).problems == []
    store = LatentStore.open(kb / "store")
    assert (store.version, store.count_documents()) == (5, 12)
    assert not path.exists()
    report = _add(kb, [*corpus, *more], compressor)
    assert (report.added, report.unchanged, report.tokens) == (3, 12, 0)
    assert report.reused == report.passages > 3
    after = _latents(kb)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    with KnowledgeBase.open(kb) as opened:
        assert more[0].id in {
            h.key.document_id for h in opened.retrieve(more[0].text[:99], top_k=20)
        }


def test_damage_that_costs_no_document_is_repaired_with_exit_code_0(run: Run, kb: Path) -> None:
    before = _latents(kb)
    store = LatentStore.open(kb / "store")
    holed = next(entry for entry in store.entries() if entry.deleted)
    fragment = store.fragment(holed.name)
    gone = fragment.read(int(np.argmin(store.table.visible(holed)))).encoded.tobytes()
    store.close()
    path = kb / "store" / "fragments" / holed.name
    _flip(path, path.read_bytes().index(gone))  # a deleted row
    _flip(kb / "store" / "manifests" / "0000000001.json", 200)
    (note,) = (kb / "store" / "uncommitted").iterdir()
    _flip(note, 100)
    snapshot = next((kb / "index" / "published").iterdir())
    _flip(snapshot / "edge" / "edge_config.json", 5)
    code, out, _ = run("verify", "--kb", kb, "--json")
    found = json.loads(out)
    assert (code, len(found["problems"]), found["damaged_documents"]) == (1, 4, [])
    code, out, _ = run("verify", "--kb", kb, "--repair")
    assert code == 0
    assert "The passage index was made anew" in out
    assert "put aside" in out
    assert verify(kb).problems == []
    after = _latents(kb)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    with KnowledgeBase.open(kb) as opened:
        assert len(opened.retrieve("the", top_k=100)) >= 0
        assert opened.uncommitted_passages() > 0


def test_damage_in_earlier_versions_only(run: Run, kb: Path) -> None:
    old = _fragments(kb)[0]
    compact(kb / "store").close()
    _flip(old, 5000)
    code, out, _ = run("verify", "--kb", kb)
    assert code == 1
    assert "Only versions up to 3 need it; lclm-rag vacuum removes it" in out
    code, out, _ = run("verify", "--kb", kb, "--repair")
    assert code == 0
    found = verify(kb)
    assert (found.version, found.problems, len(found.earlier)) == (5, [], 1)
    with KnowledgeBase.open(kb) as opened:
        opened.vacuum()
    found = verify(kb)
    assert (found.problems, found.earlier) == ([], [])


def _hold(path: Path, ready, done) -> None:  # type: ignore[no-untyped-def]
    with writing(path, "add"):
        ready.set()
        done.wait()


@pytest.mark.slow
def test_repair_waits_for_no_other_writer(run: Run, kb: Path, corpus: list[Document]) -> None:
    _flip_in_row(kb, corpus[3].id, "latents")
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(kb / "store", ready, done))
    process.start()
    try:
        assert ready.wait(60)
        code, _, err = run("verify", "--kb", kb, "--repair")
        assert (code, "being written by another process" in err) == (4, True)
        assert run("verify", "--kb", kb)[0] == 1
    finally:
        done.set()
        process.join()


# --- what contradicts itself ----------------------------------------------------------------------------

LAYOUT = Layout("bf16", "encoder", 8, "f" * 16, 4)


def _rows(document: Document, cuts: list[int]) -> list[StoredPassage]:
    ends = [*cuts, len(document.text)]
    rows = []
    for i, (start, end) in enumerate(zip([0, *cuts], ends, strict=True)):
        passage = Passage(
            PassageKey(document.id, i), start, end, document.text[start:end], document.metadata
        )
        last = i == len(cuts)
        latents = torch.randn(3, 8)
        rows.append(
            StoredPassage.encode(passage, 11, document.content_hash(), last, latents, LAYOUT)
        )
    return rows


@pytest.fixture
def two() -> list[list[StoredPassage]]:
    a = Document("a", "Some words of the first.", {"n": 1.5, "tags": ["x", "y"]})
    b = Document("b", "  Other words,\n\nof the second. ", {})
    return [_rows(a, [5, 11]), _rows(b, [9])]


def _passage(row: StoredPassage, **changes: Any) -> StoredPassage:
    return replace(row, passage=replace(row.passage, **changes))


def _wrong(rows: list[StoredPassage], what: str) -> list[StoredPassage]:
    first, second, last = rows
    if what == "span":
        p = second.passage
        return [first, _passage(second, end=p.end + 3), _passage(last, start=p.end + 3)]
    if what == "not finite":
        encoded = second.encoded.copy()
        encoded[1, 4:6] = 0xFF
        return [first, replace(second, encoded=encoded), last]
    return {
        "latents": [first, replace(second, tokens=40), last],
        "no last": [first, second],
        "gap": [first, last],
        "two last": [first, replace(second, last=True), last],
        "twice": [first, second, last, first, second, last],
        "one twice": [first, second, second, last],
        "hash": [replace(row, document_hash=b"\1" * 32) for row in rows],
        "text": [first, _passage(second, text="x" * len(second.passage.text)), last],
        "blank": [_passage(replace(first, last=True), text=" " * 5)],
    }[what]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("span", r"passage a#1 has a span of 9, but 6 characters"),
        ("latents", r"passage a#1 has 3 latents for 40 tokens"),
        ("not finite", r"latents are not finite"),
        ("no last", r"'a' is not whole: its last passage"),
        ("gap", r"'a' is not whole: passage 1 is missing"),
        ("two last", r"'a' is not whole: its last passage"),
        ("twice", r"Passage a#0 is there twice"),
        ("one twice", r"Passage a#1 is there twice"),
        ("hash", r"'a' is not whole: its text or metadata"),
        ("text", r"'a' is not whole: its text or metadata"),
        ("blank", r"'a' is not whole: Document 'a' is empty"),
    ],
)
def test_rows_that_were_written_wrong_are_named(
    tmp_path: Path, two: list[list[StoredPassage]], what: str, sentence: str
) -> None:
    a, b = two
    LatentStore.create(tmp_path, LAYOUT)
    store = _written(tmp_path, [*_wrong(a, what), *b])
    problems = list(verify_store(store))
    assert any(re.search(sentence, problem.sentence) for problem in problems), problems
    assert {problem.document_id for problem in problems} == {"a"}
    store.close()


@pytest.mark.parametrize("seed", range(3))
def test_documents_may_lie_in_any_order(
    tmp_path: Path, two: list[list[StoredPassage]], seed: int
) -> None:
    rows = [row for document in two for row in document]
    random.Random(seed).shuffle(rows)
    LatentStore.create(tmp_path, LAYOUT)
    _written(tmp_path, rows[:2])
    store = _written(tmp_path, rows[2:])
    assert list(verify_store(store)) == []
    store.close()


def test_totals_and_foreign_rows(tmp_path: Path, two: list[list[StoredPassage]]) -> None:
    LatentStore.create(tmp_path, LAYOUT)
    store = _written(tmp_path, [row for document in two for row in document])
    totals = replace(store.manifest.totals, documents=3)
    wrong = LatentStore(store.folder, replace(store.manifest, totals=totals))
    (problem,) = verify_store(wrong)
    assert "Version 1 says that it has" in problem.sentence
    store.close()


def test_every_error_of_a_damaged_fragment_is_one_of_ours(
    tmp_path: Path, two: list[list[StoredPassage]]
) -> None:
    """A bit in every third byte before the keys and in every fifth of the footer, as a sample of what Arrow
    says of a file: a wrong one must never end the process."""
    LatentStore.create(tmp_path, LAYOUT)
    store = _written(tmp_path, two[0])
    (entry,) = store.entries()
    path = tmp_path / "fragments" / entry.name
    kept = path.read_bytes()
    footer = len(kept) - 2500
    offsets = (*range(0, entry.keys_offset, 3), *range(footer, len(kept), 5))
    noticed = 0
    for offset in offsets:
        changed = bytearray(kept)
        changed[offset] ^= 1 << offset % 8
        path.write_bytes(changed)
        opened = LatentStore(store.folder, store.manifest)
        for row in range(entry.rows):
            try:
                opened.fragment(entry.name).read(row)
            except DamagedError:
                noticed += 1
    assert 0 < noticed < entry.rows * len(offsets)  # Padding may be anything.
    path.write_bytes(kept)
    opened = LatentStore(store.folder, store.manifest)
    assert [opened.fragment(entry.name).read(row).passage for row in range(entry.rows)] == [
        row.passage for row in two[0]
    ]
    store.close()
