"""The store: what is committed stays, what is not is never seen."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_rag import LockedError, Passage, PassageKey, StoreError
from lclm_rag.store import LatentStore, Layout, StoredPassage

WIDTH = 8


def layout(codec: str = "bf16", width: int = WIDTH) -> Layout:
    return Layout(codec, "encoder", width, "f" * 16, 4)  # type: ignore[arg-type]


def row(document_id: str, ordinal: int = 0, latents: int = 3, seed: int = 0) -> StoredPassage:
    generator = torch.Generator().manual_seed(seed)
    text = f"text of {document_id}"
    return StoredPassage(
        Passage(PassageKey(document_id, ordinal), 0, len(text), text, {"n": ordinal, "ok": True}),
        tokens=latents * 4,
        document_hash=seed.to_bytes(32, "big"),
        latents=torch.randn(latents, WIDTH, generator=generator),
    )


def add(store: LatentStore, *rows: StoredPassage) -> LatentStore:
    with store.writer() as writer:
        for each in rows:
            writer.delete_document(each.passage.key.document_id)
        for each in rows:
            writer.add(each)
        return writer.commit()


@pytest.mark.parametrize("codec", ["bf16", "fp16"])
def test_what_is_written_is_read_back(tmp_path: Path, codec: str) -> None:
    rows = [row(f"d{i}", latents=1 + i % 5, seed=i) for i in range(600)]
    add(LatentStore.create(tmp_path, layout(codec)), *rows)
    store = LatentStore.open(tmp_path)
    dtype = torch.bfloat16 if codec == "bf16" else torch.float16
    found = store.read(r.passage.key for r in reversed(rows))
    for a, b in zip(found, reversed(rows), strict=True):
        assert a.passage == b.passage
        assert (a.tokens, a.document_hash) == (b.tokens, b.document_hash)
        assert torch.equal(a.latents, b.latents.to(dtype))
    assert (len(store), store.count_documents()) == (600, 600)


def test_latents_are_read_from_the_map_without_a_copy(tmp_path: Path) -> None:
    store = add(LatentStore.create(tmp_path, layout()), *(row(f"d{i}", seed=i) for i in range(300)))
    before = pa.total_allocated_bytes()
    first, again = store.read([PassageKey("d7", 0)] * 2)
    assert first.latents.data_ptr() == again.latents.data_ptr()
    assert pa.total_allocated_bytes() - before < 64 * 2**10
    with pytest.raises(KeyError, match="no passage d999#0 in version 1"):
        store.read([PassageKey("d999", 0)])


Operations = st.lists(
    st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("abcde"), st.integers(1, 4)),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(operations=Operations)
def test_any_sequence_of_changes_gives_what_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, str, int]]
) -> None:
    path = tmp_path_factory.mktemp("store")
    store = LatentStore.create(path, layout())
    model: dict[str, int] = {}
    for number, (operation, name, passages) in enumerate(operations):
        with store.writer() as writer:
            writer.delete_document(name)
            model.pop(name, None)
            if operation == "put":
                model[name] = passages
                for ordinal in range(passages):
                    writer.add(row(name, ordinal, seed=number))
            store = writer.commit()
    store = LatentStore.open(path)
    assert sorted(r.passage.key for r in store.passages()) == sorted(
        PassageKey(name, i) for name, passages in model.items() for i in range(passages)
    )
    assert store.count_documents() == len(model)
    for name, passages in model.items():
        assert len(store.document_keys(name)) == passages


def test_an_open_version_stays_as_it_was(tmp_path: Path) -> None:
    old = add(LatentStore.create(tmp_path, layout()), row("a", seed=1), row("b", seed=2))
    with old.writer() as writer:
        writer.delete_document("a")
        writer.commit()
    assert PassageKey("a", 0) in old
    assert PassageKey("a", 0) not in LatentStore.open(tmp_path)
    assert PassageKey("a", 0) in LatentStore.open(tmp_path, version=1)


def test_leaving_without_commit_changes_nothing(tmp_path: Path) -> None:
    store = add(LatentStore.create(tmp_path, layout()), row("a"))
    big = [row(f"b{i}", latents=40_000) for i in range(60)]  # More than one fragment holds.
    with store.writer() as writer:
        for each in big:
            writer.add(each)
        assert len(list((tmp_path / "fragments").iterdir())) == 2
    assert len(LatentStore.open(tmp_path)) == 1
    assert len(list((tmp_path / "fragments").iterdir())) == 1


def test_long_texts_and_large_metadata_are_written_before_they_fill_the_memory(
    tmp_path: Path,
) -> None:
    store = LatentStore.create(tmp_path, layout())
    long = [replace(row(f"t{i}").passage, text="x" * 2**20, header="H > h") for i in range(40)]
    large = [replace(row(f"m{i}").passage, metadata={"m": ["x" * 2**20]}) for i in range(40)]
    with store.writer() as writer:
        for passage in (*long, *large):
            writer.add(replace(row("any", latents=1), passage=passage))
        assert len(list((tmp_path / "fragments").iterdir())) == 1
        store = writer.commit()
    assert [row.passage for row in store.passages()] == [*long, *large]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    store = LatentStore.create(tmp_path, layout())
    with store.writer():
        context = multiprocessing.get_context("spawn")
        with (
            context.Pool(1) as pool,
            pytest.raises(LockedError, match="written by another process"),
        ):
            pool.apply(_write_once, (tmp_path,))
    _write_once(tmp_path)


def _write_once(path: Path) -> None:
    with LatentStore.open(path).writer() as writer:
        writer.commit()


WRITE_FOR_EVER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_store import LatentStore, add, row
store = LatentStore.open(Path(sys.argv[1]))
print("ready", flush=True)
number = store.version
while True:
    store = add(store, *(row(f"{number}-{i}", seed=number) for i in range(20)))
    print(store.version, flush=True)
    number = store.version
"""


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_committed(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, layout())
    for delay in (0.0, 0.013, 0.029, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        said = process.stdout.read().split()
        process.wait()
        store = LatentStore.open(tmp_path)
        assert store.version >= max(map(int, said), default=0)
        assert len(list(store.passages())) == len(store) == 20 * store.version
        with store.writer() as writer:  # Takes the dead one's lock, and clears up what it left.
            writer.commit()
        named = {entry.name for entry in store.manifest.fragments}
        assert {path.name for path in (tmp_path / "fragments").iterdir()} == named


def test_a_damaged_manifest_is_noticed(tmp_path: Path) -> None:
    add(LatentStore.create(tmp_path, layout()), row("a"))
    path = tmp_path / "manifests" / "0000000001.json"
    path.write_text(path.read_text().replace('"rows": 1', '"rows": 2'))
    with pytest.raises(StoreError, match="checksum does not match"):
        LatentStore.open(tmp_path)


def test_a_fragment_of_another_layout_is_refused(tmp_path: Path) -> None:
    store = add(LatentStore.create(tmp_path / "a", layout()), row("a"))
    (name,) = [entry.name for entry in store.manifest.fragments]
    other = LatentStore.create(tmp_path / "b", layout("fp16"))
    add(other, row("a"))
    stolen = next((tmp_path / "b" / "fragments").iterdir())
    (tmp_path / "a" / "fragments" / name).write_bytes(stolen.read_bytes())
    with pytest.raises(StoreError, match="does not have the layout"):
        list(LatentStore.open(tmp_path / "a").passages())


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [("bf16", float("nan"), "are not finite"), ("fp16", 1e6, "do not fit into fp16; use bf16")],
)
def test_latents_that_a_codec_cannot_hold_are_refused(
    tmp_path: Path, codec: str, value: float, message: str
) -> None:
    store = LatentStore.create(tmp_path, layout(codec))
    bad = row("a")
    bad.latents[1, 2] = value
    with pytest.raises(StoreError, match=message):
        add(store, bad)
    assert len(LatentStore.open(tmp_path)) == 0
    assert not list((tmp_path / "fragments").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small file system")
def test_a_full_disk_leaves_the_last_version_and_says_so(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    ).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        store = add(LatentStore.create(tmp_path, layout()), row("a"))
        with pytest.raises(
            StoreError, match=r"disk is full: nothing was committed .* version 1 still"
        ):
            add(store, *(row(f"d{i}", latents=200) for i in range(200)))
        assert [r.passage.key for r in LatentStore.open(tmp_path).passages()] == [
            PassageKey("a", 0)
        ]
        assert not list(tmp_path.rglob("*.tmp"))
        add(store, row("b"))  # There is room again for what fits.
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
