"""The store: what is committed stays, what is not is never seen, and nobody waits for a reader."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lclm_rag import Document, LockedError, Passage, PassageKey, StoreError
from lclm_rag.storage import LocalFolder
from lclm_rag.store import (
    CODECS,
    CodecName,
    LatentStore,
    Layout,
    StoredPassage,
    compact,
    convert,
    decode_latents,
    read_versions,
    vacuum,
    writing,
)
from lclm_rag.store import writer as writer_module
from lclm_rag.store.verify import verify_store
from lclm_rag.store.writer import uncommitted_entries

WIDTH = 8


def layout(codec: str = "bf16", width: int = WIDTH) -> Layout:
    return Layout(codec, "encoder", width, "f" * 16, 4)  # type: ignore[arg-type]


def rows_of(
    document_id: str, passages: int = 1, latents: int = 3, seed: int = 0, codec: str = "bf16"
) -> list[StoredPassage]:
    """A document of so many passages, as `add` would write it."""
    generator = torch.Generator().manual_seed(seed)
    texts = [f"passage {i} of {document_id}, {seed}. " for i in range(passages)]
    metadata = {"seed": seed, "ok": True}
    digest = Document(document_id, "".join(texts), metadata).content_hash()
    rows, start = [], 0
    for i, text in enumerate(texts):
        key = PassageKey(document_id, i)
        rows.append(
            StoredPassage.encode(
                Passage(key, start, start + len(text), text, metadata, header=f"H > {i}"),
                tokens=latents * 4 - i % 3,
                document_hash=digest,
                last=i == passages - 1,
                latents=torch.randn(latents, WIDTH, generator=generator),
                layout=layout(codec),
            )
        )
        start += len(text)
    return rows


def add(location: Path, *documents: list[StoredPassage]) -> LatentStore:
    with writing(location, "add", resumable=True) as writer:
        for rows in documents:
            writer.delete_document(rows[0].passage.key.document_id)
            for row in rows:
                writer.add(row)
        return writer.commit()


def delete(location: Path, *names: str) -> LatentStore:
    with writing(location, "delete") as writer:
        for name in names:
            writer.delete_document(name)
        return writer.commit()


def fragments(location: Path) -> set[str]:
    return {path.name for path in (location / "fragments").iterdir()}


# --- reading back --------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_written_is_read_back(tmp_path: Path, codec: str) -> None:
    documents = [rows_of(f"d{i}", latents=1 + i % 5, seed=i, codec=codec) for i in range(600)]
    LatentStore.create(tmp_path, layout(codec))
    add(tmp_path, *documents)
    store = LatentStore.open(tmp_path)
    expected = [rows[0] for rows in reversed(documents)]
    found = store.read(row.passage.key for row in expected)
    for a, b, latents in zip(found, expected, decode_latents(found), strict=True):
        assert a.passage == b.passage
        assert (a.tokens, a.document_hash, a.last) == (b.tokens, b.document_hash, b.last)
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.latents, latents)
    assert (len(store), store.count_documents()) == (600, 600)
    assert store.manifest.totals.tokens == sum(row.tokens for row in expected)
    assert store.manifest.totals.latents == sum(len(row.latents) for row in expected)


def test_latents_are_read_from_the_map_without_a_copy(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    store = add(tmp_path, *(rows_of(f"d{i}", seed=i) for i in range(300)))
    before = pa.total_allocated_bytes()
    first, again = store.read([PassageKey("d7", 0)] * 2)
    assert first.latents.data_ptr() == again.latents.data_ptr()
    assert pa.total_allocated_bytes() - before < 64 * 2**10
    with pytest.raises(KeyError, match="no passage d999#0 in version 1"):
        store.read([PassageKey("d999", 0)])


def test_a_fragment_is_plain_arrow_that_any_program_reads(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    add(tmp_path, rows_of("d", passages=3))
    (name,) = fragments(tmp_path)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "fragments" / name))).read_all()
    assert table["document_id"].to_pylist() == ["d"] * 3
    assert table["last"].to_pylist() == [0, 0, 1]
    assert [len(latents) for latents in table["latents"].to_pylist()] == [3, 3, 3]
    assert table.schema.metadata[b"codec"] == b"bf16"


# --- versions ------------------------------------------------------------------------------------


def test_an_open_version_stays_as_it_was(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    old = add(tmp_path, rows_of("a", seed=1), rows_of("b", seed=2))
    delete(tmp_path, "a")
    compact(tmp_path)
    vacuum(tmp_path)
    assert [row.passage.key.document_id for row in old.passages()] == ["a", "b"]
    assert PassageKey("a", 0) not in LatentStore.open(tmp_path)
    assert PassageKey("a", 0) in LatentStore.open(tmp_path, version=1)
    assert [m.operation for m in read_versions(tmp_path)] == ["add", "compact"]


def test_vacuum_keeps_what_is_asked_for_and_frees_the_rest(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    for i in range(5):
        add(tmp_path, rows_of(f"d{i}", latents=50)).close()
    delete(tmp_path, "d0", "d1").close()
    assert vacuum(tmp_path, keep=3).kept == [4, 5, 6]
    assert len(fragments(tmp_path)) == 5
    compact(tmp_path).close()
    before = sum(path.stat().st_size for path in tmp_path.rglob("*"))
    freed = vacuum(tmp_path)
    assert (freed.kept, freed.removed) == ([7], [4, 5, 6])
    assert before - sum(path.stat().st_size for path in tmp_path.rglob("*")) == freed.bytes
    assert len(fragments(tmp_path)) == 1
    assert [r.passage.key.document_id for r in LatentStore.open(tmp_path).passages()] == [
        "d2",
        "d3",
        "d4",
    ]
    with pytest.raises(StoreError, match=r"no version 4 in .*there is 7"):
        LatentStore.open(tmp_path, 4)
    with pytest.raises(ValueError, match="newest version always stays"):
        vacuum(tmp_path, keep=0)


def test_a_reader_that_died_holds_nothing_back(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout()).close()
    add(tmp_path, rows_of("a")).close()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_open_and_die, args=(tmp_path,))
    process.start()
    process.join()
    delete(tmp_path, "a").close()
    assert vacuum(tmp_path).kept == [2]
    assert {path.name for path in (tmp_path / "readers").iterdir()} == {"gate"}


def _open_and_die(path: Path) -> None:
    held = LatentStore.open(path)
    os._exit(0 if len(held) else 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_a_folder_that_cannot_be_written_is_read_without_a_lease(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    add(tmp_path, rows_of("a")).close()
    commands = [["--bind", tmp_path, tmp_path], ["-o", "remount,ro,bind", tmp_path]]
    if any(subprocess.run(["mount", *command]).returncode for command in commands):
        pytest.skip("no right to mount")
    try:
        assert len(list(LatentStore.open(tmp_path).passages())) == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.slow
def test_many_small_inserts_do_not_leave_many_fragments(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    for i in range(150):
        store = add(tmp_path, rows_of(f"d{i}", seed=i))
    assert store.manifest.fragments < 64
    assert sorted(row.passage.key for row in store.passages()) == sorted(
        PassageKey(f"d{i}", 0) for i in range(150)
    )


# --- any sequence of changes ---------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What a dictionary knows of a document."""

    passages: int
    seed: int


NAMES = st.sampled_from("abcdefgh")


class StoreAgainstADictionary(RuleBasedStateMachine):
    """Add, update, delete, compact, convert, vacuum, killed writers, in any order."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / os.urandom(6).hex()
        self.path.mkdir()
        self.codec: CodecName = "bf16"
        LatentStore.create(self.path, layout()).close()
        self.model: dict[str, Known] = {}
        self.old: list[tuple[LatentStore, dict[str, Known]]] = []
        self.seed = 0

    @rule(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), passages=st.integers(1, 3))
    def put(self, names: list[str], passages: int) -> None:
        documents = []
        for name in names:
            self.seed += 1
            self.model[name] = Known(passages, self.seed)
            documents.append(rows_of(name, passages, seed=self.seed, codec=self.codec))
        add(self.path, *documents).close()

    @rule(names=st.lists(NAMES, max_size=3))
    def remove(self, names: list[str]) -> None:
        delete(self.path, *names).close()
        for name in names:
            self.model.pop(name, None)

    @rule()
    def merge(self) -> None:
        compact(self.path).close()

    @rule(codec=st.sampled_from(CODECS))
    def store_otherwise(self, codec: CodecName) -> None:
        if codec != self.codec:
            convert(self.path, codec).close()
            self.codec = codec

    @rule(keep=st.integers(1, 2))
    def clean(self, keep: int) -> None:
        vacuum(self.path, keep=keep)

    @rule(name=NAMES)
    def fail(self, name: str) -> None:
        with writing(self.path, "add", resumable=True) as writer:
            writer.delete_document(name)
            for row in rows_of(name, 2, seed=-1, codec=self.codec):
                writer.add(row)
            # No commit.

    @rule(name=NAMES)
    def go_on(self, name: str) -> None:
        digest = rows_of(name, 2, seed=-1)[0].document_hash
        with writing(self.path, "add", resumable=True) as writer:
            if taken := writer.take_over(name, digest):
                assert taken == 2
                writer.delete_document(name)
                self.model[name] = Known(2, -1)
            writer.commit().close()

    @precondition(lambda self: len(self.old) < 3)
    @rule()
    def hold(self) -> None:
        self.old.append((LatentStore.open(self.path), dict(self.model)))

    @invariant()
    def equals_the_dictionary(self) -> None:
        for store, model in [(LatentStore.open(self.path), self.model), *self.old]:
            assert_equals(store, model)

    def teardown(self) -> None:
        assert list(verify_store(LatentStore.open(self.path))) == []
        shutil.rmtree(self.path)


def assert_equals(store: LatentStore, model: dict[str, Known]) -> None:
    texts = {
        PassageKey(name, i): f"passage {i} of {name}, {known.seed}. "
        for name, known in model.items()
        for i in range(known.passages)
    }
    assert {row.passage.key: row.passage.text for row in store.passages()} == texts
    assert (len(store), store.count_documents()) == (len(texts), len(model))
    for name, known in model.items():
        assert len(store.document_keys(name)) == known.passages
        # int4 of bf16 of int4 …: near the first latents, whatever came between.
        latents = torch.cat([row.latents.float() for row in store.read(store.document_keys(name))])
        first = torch.cat(
            [r.latents.float() for r in rows_of(name, known.passages, seed=known.seed)]
        )
        similarity = torch.nn.functional.cosine_similarity(latents.flatten(), first.flatten(), 0)
        assert similarity > 0.95


def test_any_sequence_of_changes_gives_what_a_dictionary_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    StoreAgainstADictionary.folder = tmp_path
    # Two or three passages a fragment, merged from eight fragments on.
    monkeypatch.setattr(writer_module, "FRAGMENT_BYTES", 400)
    monkeypatch.setattr(writer_module, "_SMALL_FRAGMENTS", 8)
    run_state_machine_as_test(
        StoreAgainstADictionary,
        settings=settings(max_examples=40, stateful_step_count=15, deadline=None),
    )


# --- writers -------------------------------------------------------------------------------------


def test_leaving_without_commit_changes_nothing_and_loses_no_work(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    add(tmp_path, rows_of("a"))
    big = [rows_of(f"b{i}", latents=40_000) for i in range(120)]  # More than one fragment holds.
    with writing(tmp_path, "add", resumable=True) as writer:
        for (row,) in big:
            writer.add(row)
    assert len(LatentStore.open(tmp_path)) == 1
    with writing(tmp_path, "add", resumable=True) as writer:
        for (row,) in big[:100]:
            assert writer.take_over(row.passage.key.document_id, row.document_hash) == 1
        store = writer.commit()
    assert sorted(row.passage.key for row in store.passages()) == sorted(
        [PassageKey("a", 0), *(row.passage.key for (row,) in big[:100])]
    )
    assert not list((tmp_path / "uncommitted").iterdir())
    with writing(tmp_path, "add", resumable=True) as writer:
        for (row,) in big[100:]:
            assert writer.take_over(row.passage.key.document_id, row.document_hash) == 0


def test_half_a_million_tokens_are_the_most_that_a_killed_writer_loses(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    rows = [replace(rows_of(f"d{i}")[0], tokens=2**17) for i in range(9)]
    with writing(tmp_path, "add", resumable=True) as writer:
        for row in rows:
            writer.add(row)
        assert len(fragments(tmp_path)) == len(list((tmp_path / "uncommitted").iterdir())) == 2


def test_a_fragment_of_a_killed_writer_whose_keys_are_damaged_is_not_taken_over_and_the_rest_is(
    tmp_path: Path,
) -> None:
    LatentStore.create(tmp_path, layout())
    rows = [replace(rows_of(f"d{i}")[0], tokens=2**17) for i in range(8)]
    with writing(tmp_path, "add", resumable=True) as writer:
        for row in rows:
            writer.add(row)
    folder = LocalFolder(tmp_path)
    damaged, sound = uncommitted_entries(folder, layout())
    file = tmp_path / "fragments" / damaged.name
    content = bytearray(file.read_bytes())
    content[damaged.keys_offset] ^= 1
    file.write_bytes(content)
    with writing(tmp_path, "add", resumable=True) as writer:
        taken = [writer.take_over(f"d{i}", row.document_hash) for i, row in enumerate(rows)]
        store = writer.commit()
    assert sorted(taken) == [0] * damaged.rows + [1] * sound.rows
    assert len(store) == sound.rows == 4


def test_a_document_that_was_cut_off_is_not_taken_over_but_its_passages_are_known(
    tmp_path: Path,
) -> None:
    LatentStore.create(tmp_path, layout())
    rows = rows_of("long", passages=5)
    with writing(tmp_path, "add", resumable=True) as writer:
        for row in rows[:3]:
            writer.add(row)
    with writing(tmp_path, "add", resumable=True) as writer:
        assert writer.take_over("long", rows[0].document_hash) == 0
        known = writer.compressed.passages("long")
        assert set(known) == {row.passage.content for row in rows[:3]}
        second = writer.compressed.read(known[rows[1].passage.content])
        assert second is not None
        assert torch.equal(second.latents, rows[1].latents)


def test_long_texts_and_large_metadata_are_written_before_they_fill_the_memory(
    tmp_path: Path,
) -> None:
    LatentStore.create(tmp_path, layout())

    def passages(name: str, passage: Passage) -> Iterable[StoredPassage]:
        for i in range(40):
            (row,) = rows_of(f"{name}{i}", latents=1)
            yield replace(row, passage=replace(passage, key=row.passage.key))

    long = Passage(PassageKey("", 0), 0, 2**20, "x" * 2**20, {}, "H > h")
    large = Passage(PassageKey("", 0), 0, 1, "x", {"m": ["x" * 2**20]})
    rows = [*passages("t", long), *passages("m", large)]
    with writing(tmp_path, "add") as writer:
        for row in rows:
            writer.add(row)
        assert len(fragments(tmp_path)) == 1
        store = writer.commit()
    assert [row.passage for row in store.passages()] == [row.passage for row in rows]


def test_a_second_writer_is_refused_by_pid_or_waits(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(_write_once, (tmp_path, 0.0))
        with writing(tmp_path, "add"):
            with pytest.raises(LockedError, match=rf"another process \(pid {os.getpid()}\)"):
                pool.apply(_write_once, (tmp_path, 0.0))
            waiting = pool.apply_async(_write_once, (tmp_path, 60.0))
        waiting.get(60)


def _write_once(path: Path, wait: float) -> None:
    with writing(path, "add", wait=wait) as writer:
        writer.commit()


# --- damage --------------------------------------------------------------------------------------


def test_a_damaged_manifest_is_noticed(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    add(tmp_path, rows_of("a"))
    path = tmp_path / "manifests" / "0000000001.json"
    path.write_text(path.read_text().replace('"rows": 1', '"rows": 2'))
    with pytest.raises(StoreError, match="checksum does not match"):
        LatentStore.open(tmp_path)


def test_a_fragment_of_another_layout_is_refused(tmp_path: Path) -> None:
    LatentStore.create(tmp_path / "a", layout())
    add(tmp_path / "a", rows_of("a"))
    LatentStore.create(tmp_path / "b", layout("fp16"))
    add(tmp_path / "b", rows_of("a", codec="fp16"))
    (name,), (other,) = fragments(tmp_path / "a"), fragments(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "fragments" / other, tmp_path / "a" / "fragments" / name)
    with pytest.raises(StoreError, match="does not have the layout"):
        list(LatentStore.open(tmp_path / "a").passages())


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [("bf16", float("nan"), "are not finite"), ("fp16", 1e6, "do not fit into fp16; use bf16")],
)
def test_latents_that_a_codec_cannot_hold_are_refused(
    codec: str, value: float, message: str
) -> None:
    (row,) = rows_of("a")
    latents = row.latents.float()
    latents[1, 2] = value
    with pytest.raises(StoreError, match=message):
        StoredPassage.encode(row.passage, 12, row.document_hash, True, latents, layout(codec))


def test_a_folder_can_be_named_by_a_file_url(tmp_path: Path) -> None:
    LatentStore.create(f"file://{tmp_path}/s", layout())
    assert isinstance(LatentStore.open(tmp_path / "s").folder, LocalFolder)
