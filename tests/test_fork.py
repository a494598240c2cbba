"""Forked children, and knowledge bases that are handed to other processes.

`python tests/test_fork.py NAME PATH` is a program that forks, and whose children end in the ordinary way.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lclm_rag.ingestion.passages
import lclm_rag.store.writer
from lclm_rag import Document, KnowledgeBase, PassageKey
from lclm_rag.decoding import Sampling
from lclm_rag.decoding.event_loop import EventLoopThread
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import DecoderError, LclmRagError, LockedError, PassageIndexError, StoreError
from lclm_rag.forking import keep_for_ever
from lclm_rag.indexing.private import PrivateFolder
from lclm_rag.retrieval import Bm25Settings, EdgeIndex, IndexEntry
from lclm_rag.store import writing
from lclm_rag.store.locks import versions_read
from lclm_rag.torch_setup import resolve_device
from support.processes import LIMIT, in_child

# Python 3.12 warns of every fork of a process with threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

SHORT = Sampling(max_tokens=8)


def town(number: int) -> Document:
    name = f"zq{number}w"
    return Document(name, f"Town guide: {name}. The mayor of {name} is Gedul Gizel.")


def asked(number: int) -> str:
    return f"Who is the mayor of zq{number}w?"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A knowledge base of twelve towns, closed."""
    with KnowledgeBase.create(tmp_path / "kb", device="cpu") as kb:
        kb.add(map(town, range(12)))
    return tmp_path / "kb"


def program(name: str, *arguments: str | Path) -> None:
    """Run one of the functions at the end of this file in a new process."""
    command = [sys.executable, __file__, name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT)
    assert done.returncode == 0, done.stderr


def ordinary_child(work: Callable[[], Any] = lambda: None) -> None:
    """Wait for a forked child that does some work and ends by SystemExit, from where it was forked."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIMIT)  # What hangs is killed.
        work()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def leases(path: Path) -> set[str]:
    return {file.name for file in (path / "store/readers").iterdir()} - {"gate"}


# --- children that end in the ordinary way --------------------------------------------------------


@pytest.mark.slow
def test_a_child_answers_and_its_parent_keeps_its_version_against_vacuum(path: Path) -> None:
    program("answer_in_children", path)


@pytest.mark.slow
def test_a_child_that_leaves_its_parents_write_takes_nothing_of_it(path: Path) -> None:
    program("write_with_children", path)


# --- children of multiprocessing ------------------------------------------------------------------


def _best(kb: KnowledgeBase) -> tuple[int, str, str]:
    return (
        kb.store.version,
        kb.retrieve(asked(3), 1)[0].key.document_id,
        kb.query(asked(3), 2, sampling=SHORT).text,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_knowledge_base_is_an_argument_for_multiprocessing(path: Path, method: str) -> None:
    with KnowledgeBase.open(path, device="cpu") as kb:
        assert in_child(_best, kb, method=method) == _best(kb)


def test_a_child_has_its_own_lease_index_and_models_and_closes_no_other(path: Path) -> None:
    with KnowledgeBase.open(path, device="cpu") as kb:
        before, answer = leases(path), _best(kb)
        adapter, decoder = kb.adapter, kb.decoder

        def work() -> tuple[Any, ...]:
            untouched = leases(path)
            found = _best(kb)
            opened = leases(path) - before
            new = kb.adapter is not adapter and kb.decoder is not decoder
            kb.add([town(50)])
            kb.close()
            return untouched, found, len(opened), new, leases(path)

        assert in_child(work) == (before, answer, 1, True, before)
        assert _best(kb) == answer
        assert kb.adapter is adapter
        (folder,) = (path / "index/private").glob(f"{os.getpid()}-*[!k]")
        assert any((folder / "edge").iterdir())


def test_a_knowledge_base_that_was_closed_stays_closed_in_a_child(path: Path) -> None:
    kb = KnowledgeBase.open(path, device="cpu")
    kb.close()

    def work() -> set[str]:
        len(kb)
        kb.close()
        return leases(path)

    assert in_child(work) == set()


def test_a_child_of_a_child_opens_its_own_too(path: Path) -> None:
    with KnowledgeBase.open(path, device="cpu") as kb:
        answer = _best(kb)
        assert in_child(lambda: in_child(lambda: _best(kb))) == answer
        assert in_child(lambda: (_best(kb), in_child(lambda: _best(kb)))) == (answer, answer)


def test_locks_that_another_thread_holds_at_the_fork_are_not_waited_for(
    path: Path, decoder: TransformersDecoder
) -> None:
    given = KnowledgeBase.open(path, device="cpu", decoder=decoder)
    with KnowledgeBase.open(path, device="cpu") as kb, given:
        answer, stop = _best(kb), threading.Event()

        def go_on(work: Callable[[], Any]) -> None:
            while not stop.is_set():
                work()

        works = (lambda: kb.retrieve(asked(2)), lambda: _best(given))
        threads = [threading.Thread(target=go_on, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        try:
            for _ in range(4):
                assert in_child(lambda: (_best(kb), _best(given))) == (answer, answer)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert _best(kb) == answer


def test_a_lock_held_at_the_fork_is_new_in_the_child(
    path: Path, decoder: TransformersDecoder
) -> None:
    """As above, but certain to be held: by this thread, as far as another one can tell."""
    with KnowledgeBase.open(path, device="cpu", decoder=decoder) as kb:
        answer = _best(kb)
        held = [kb._loading, decoder._lock, kb.reader._opening, kb.index._lock]  # type: ignore[attr-defined]
        in_cached = vars(type(kb.checkpoint))["decoder_tokenizer"]
        held += [in_cached.lock] if sys.version_info < (3, 12) else []
        taken, ended = threading.Event(), threading.Event()

        def hold() -> None:
            for lock in held:
                lock.acquire()
            taken.set()
            ended.wait()
            for lock in held:
                lock.release()

        def work() -> tuple[int, str, str]:
            vars(kb.checkpoint).pop("decoder_tokenizer")
            assert kb.checkpoint.decoder_tokenizer.get_vocab_size()
            return _best(kb)

        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait()
        try:
            assert in_child(work) == answer
        finally:
            ended.set()
            thread.join()


# --- parts by themselves --------------------------------------------------------------------------


def test_what_is_kept_for_ever_is_neither_closed_nor_destroyed() -> None:
    ended: list[str] = []

    class Thing:
        def __del__(self) -> None:
            ended.append("destroyed")

    kept, other = Thing(), Thing()
    for thing, name in ((kept, "kept"), (other, "other")):
        weakref.finalize(thing, ended.append, name)
    keep_for_ever(kept)
    del kept, other, thing
    gc.collect()
    assert sorted(ended) == ["destroyed", "other"]


def test_an_index_is_closed_in_a_child_and_open_in_its_parent(tmp_path: Path) -> None:
    index = EdgeIndex.create(tmp_path / "edge", bm25=Bm25Settings())
    index.upsert([IndexEntry(PassageKey(town(1).id, 0), town(1).text, {})])

    def work() -> None:
        index.close()
        with pytest.raises(PassageIndexError, match="is closed"):
            index.search(asked(1), 1)

    in_child(work)
    assert len(index.search(asked(1), 1)) == 1
    index.close()


def test_a_private_folder_is_not_removed_by_a_child(tmp_path: Path) -> None:
    own = PrivateFolder(tmp_path)
    in_child(own.close)
    assert own.path.is_dir()
    own.close()
    assert not own.path.exists()


def test_a_decoder_that_runs_in_the_parent_refuses_in_a_child() -> None:
    async def one() -> int:
        return 1

    thread = EventLoopThread("test")

    def work() -> None:
        with pytest.raises(DecoderError, match="the process that this one was forked from"):
            thread.run(one)
        assert not thread.stop.alive

    in_child(work)
    assert thread.run(one) == 1
    thread.close()


def test_cuda_in_a_child_of_a_process_that_has_used_it_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    for name in ("auto", "cuda", "cuda:1"):
        with pytest.raises(LclmRagError, match="multiprocessing's spawn"):
            resolve_device(name)
    assert resolve_device("cpu").type == "cpu"


# --- pickled --------------------------------------------------------------------------------------


def again(kb: KnowledgeBase) -> KnowledgeBase:
    copy: KnowledgeBase = pickle.loads(pickle.dumps(kb))
    return copy


def test_a_pickled_knowledge_base_is_opened_again_with_the_same_options(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "decoder": "http://localhost:1/v1",
        "decoder_options": {"retries": 1},
        "device": "cpu",
        "dtype": "bfloat16",
        "compressor_options": {"token_budget": 512},
        "wait": 3.0,
    }
    monkeypatch.chdir(path.parent)
    with KnowledgeBase.open("kb", **options) as kb:
        pickled = pickle.dumps(kb)
        monkeypatch.chdir("/")
        with pickle.loads(pickled) as copy:
            assert type(copy) is KnowledgeBase
            assert copy.path == path
            for name in ("device", "dtype", "compressor_options", "wait", "read_only"):
                assert getattr(copy, name) == getattr(kb, name)
            assert (copy._decoder_name, copy._decoder_options) == (
                options["decoder"],
                options["decoder_options"],
            )
            assert copy.checkpoint == kb.checkpoint


def test_a_pickled_knowledge_base_is_opened_at_its_version(path: Path) -> None:
    with KnowledgeBase.open(path, device="cpu") as kb, KnowledgeBase.open(path, version=0) as first:
        pickled = pickle.dumps(kb)
        assert again(first).read_only
        assert len(again(first)) == 0
        kb.add([town(50)])
        with pickle.loads(pickled) as copy:
            assert (copy.store.version, len(copy)) == (1, 12)
            assert copy.add([town(51)]).added == 1
            assert (copy.store.version, len(copy)) == (3, 14)


def test_a_checkpoint_in_a_folder_is_found_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KnowledgeBase.open(path) as kb:
        (tmp_path / "moved").symlink_to(kb.checkpoint.path)
    monkeypatch.chdir(tmp_path)
    with KnowledgeBase.open(path, checkpoint="moved") as kb:
        pickled = pickle.dumps(kb)
        monkeypatch.chdir("/")
        with pickle.loads(pickled) as copy:
            assert copy.checkpoint.config == kb.checkpoint.config


def test_a_knowledge_base_with_a_given_decoder_is_not_pickled(small_kb: KnowledgeBase) -> None:
    with pytest.raises(TypeError, match="cannot be pickled with a decoder that was given"):
        pickle.dumps(small_kb)


# --- programs -------------------------------------------------------------------------------------


def answer_in_children(folder: str) -> None:
    path = Path(folder)
    torch.set_num_threads(2)
    reader = KnowledgeBase.open(path, device="cpu")
    answer, lease = _best(reader), leases(path)

    def work() -> None:
        assert _best(reader) == answer
        assert torch.get_num_threads() == 2
        assert len(leases(path)) == others + 2

    others = 0
    ordinary_child(work)
    ordinary_child(reader.close)
    ordinary_child()
    assert leases(path) == lease
    with KnowledgeBase.open(path, device="cpu") as other:
        other.delete([town(3).id])
        other.compact()
        assert 1 not in other.vacuum().removed
        assert _best(reader) == answer
        others = 1
        ordinary_child(work)
        reader.close()
        assert 1 in other.vacuum().removed
    assert leases(path) == set()


def write_with_children(folder: str) -> None:
    path = Path(folder)
    # Small, so that a few documents make several batches and fragments.
    lclm_rag.ingestion.passages._PASSAGES_AT_ONCE = 2
    lclm_rag.ingestion.passages._DOCUMENTS_AT_ONCE = 2
    lclm_rag.store.writer.FRAGMENT_BYTES = 500
    kb = KnowledgeBase.open(path, device="cpu")

    def documents(*numbers: int) -> Iterator[Document]:
        yield from map(town, numbers[:-2])
        committed = {entry.name for entry in kb.store.entries()}
        assert {file.name for file in (path / "store/fragments").iterdir()} - committed
        ordinary_child()
        yield from map(town, numbers[-2:])

    for first, resume in ((100, True), (200, False)):
        assert kb.add(documents(*range(first, first + 7)), resume=resume).added == 7
        for number in range(first, first + 7):
            assert kb.retrieve(asked(number), 1)[0].key.document_id == town(number).id
    with pytest.raises(ValueError, match="occurs twice"):
        kb.add(documents(300, 301, 302, 300))
    assert len(kb) == 12 + 14
    assert len(list(kb.store.passages())) == len(kb)

    with writing(path / "store", "add") as writer:
        mark = path / "store" / f"writer-{os.getpid()}"
        rows = kb.store.read(kb.store.document_keys(town(1).id))

        def refused() -> None:
            with pytest.raises(LockedError, match=f"pid {mark.name.removeprefix('writer-')}"):
                kb.add([town(300)])
            with pytest.raises(StoreError, match="forked from it since"):
                writer.add(rows[0])
            with pytest.raises(StoreError, match="forked from it since"):
                writer.commit()

        ordinary_child(refused)
        assert mark.exists()
        writer.delete_document(town(1).id)
        assert len(writer.commit()) == len(kb) - 1
    assert versions_read(path / "store/readers") == {kb.store.version}
    kb.close()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
