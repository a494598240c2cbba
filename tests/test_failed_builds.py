"""What a build that fails takes away: what it made itself, and only while that is nothing."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core import Document as LlamaDocument

from lclm_rag import Document, KnowledgeBase, KnowledgeBaseError, LockedError
from lclm_rag.connectors.corpora import read_corpus
from lclm_rag.connectors.llama_index import LatentIndex
from lclm_rag.creation import making
from lclm_rag.ingestion import passages as steps
from lclm_rag.storage import LocalFolder
from lclm_rag.verify import verify
from support.commands import Run

TOWNS = [Document(f"town-{i}", f"zq{i}w is a town. It lies by a lake.") for i in range(12)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "towns.jsonl"
    path.write_text("".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in TOWNS))
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "x", "text": "Fine."}\nnot json\n')
    return path


def _files(kb: Path) -> set[str]:
    """But the locks and marks of who is at work."""
    found = {str(path.relative_to(kb)) for path in kb.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(("store/writer-", "store/readers/"))}


# --- while another build runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["the same corpus", "nothere.jsonl", "bad record"])
def test_a_second_build_takes_nothing_from_the_first(
    run: Run, corpus: Path, bad: Path, tmp_path: Path, second: str
) -> None:
    kb = tmp_path / "kb"
    named = {"the same corpus": corpus, "nothere.jsonl": "nothere.jsonl", "bad record": bad}[second]

    def documents() -> Iterator[Document]:
        yield from TOWNS[:6]
        (kb / "mine.txt").write_text("precious")
        before = _files(kb)
        code, out, err = run("build", named, "--kb", kb)
        assert (code, out) == (1 if second == "nothere.jsonl" else 4, ""), err
        if code == 4:
            assert f"is being written by another process (pid {os.getpid()})" in err
        assert _files(kb) == before
        yield from TOWNS[6:]

    with KnowledgeBase.create(kb, resume=True) as first:
        first.add(documents())
    with KnowledgeBase.open(kb) as built:
        assert [h.key.document_id for h in built.retrieve("zq7w", 2)] == ["town-7"]
    assert (kb / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("second", ["towns.jsonl", "bad.jsonl"])
def test_a_second_build_that_waited_leaves_what_the_first_has_committed(
    corpus: Path, bad: Path, tmp_path: Path, second: str
) -> None:
    kb, failures = tmp_path / "kb", list[BaseException]()

    def wait() -> None:
        waiting = KnowledgeBase.create(kb, resume=True, wait=60)
        try:
            waiting.add(read_corpus(tmp_path / second))
        except BaseException as error:
            failures.append(error)
            waiting.abandon()

    other = threading.Thread(target=wait)

    def documents() -> Iterator[Document]:
        other.start()
        time.sleep(1)  # It has opened the knowledge base by now, most likely, and waits.
        yield from TOWNS

    with KnowledgeBase.create(kb, resume=True) as first:
        first.add(documents())
    other.join()
    (failure,) = failures
    assert isinstance(failure, KnowledgeBaseError)
    assert "is finished already: 12 documents, version 1" in str(failure)
    found = verify(kb)
    assert (found.problems, found.documents) == ([], 12)


def test_who_fails_to_build_leaves_what_somebody_else_has_open(tmp_path: Path) -> None:
    first = KnowledgeBase.create(tmp_path / "kb", resume=True)
    with pytest.raises(ValueError, match="no documents"):
        first.add([])
    with KnowledgeBase.create(tmp_path / "kb", resume=True) as second:
        assert first.abandon() == 0
        second.add(TOWNS)
    assert verify(tmp_path / "kb").documents == 12


def test_a_folder_in_which_another_process_is_making_one_is_waited_for(tmp_path: Path) -> None:
    with making(LocalFolder(tmp_path / "kb"), 0.0, True):
        with pytest.raises(LockedError, match=rf"being written by .* \(pid {os.getpid()}\)"):
            KnowledgeBase.create(tmp_path / "kb", resume=True)
        assert (tmp_path / "kb" / "store").is_dir()
    KnowledgeBase.create(tmp_path / "kb").close()


# --- alone --------------------------------------------------------------------------------------------------


def test_a_build_that_fails_leaves_what_it_has_not_made(run: Run, tmp_path: Path) -> None:
    kb = tmp_path / "kb"
    assert run("build", "nothere.jsonl", "--kb", kb)[0] == 1
    assert not kb.exists()
    kb.mkdir()
    assert run("build", "nothere.jsonl", "--kb", kb, "--codec", "int8")[0] == 1
    assert list(kb.iterdir()) == []

    def documents() -> Iterator[Document]:
        (kb / "mine.txt").write_text("precious")
        raise OSError("the drive went away")
        yield

    made = KnowledgeBase.create(kb, resume=True)
    with pytest.raises(OSError, match="went away"):
        made.add(documents())
    assert made.abandon() == 0
    assert list(kb.iterdir()) == [kb / "mine.txt"]


def test_a_build_that_was_begun_by_another_run_is_left_as_it_was(
    run: Run, bad: Path, tmp_path: Path
) -> None:
    KnowledgeBase.create(tmp_path / "kb", codec="int8").close()
    before = _files(tmp_path / "kb")
    assert run("build", "nothere.jsonl", "--kb", tmp_path / "kb", "--codec", "int8")[0] == 1
    assert _files(tmp_path / "kb") == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_llama_indexs_from_documents_keeps_what_it_has_compressed_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: type[BaseException],
) -> None:
    monkeypatch.setattr(steps, "_PASSAGES_AT_ONCE", 4)
    monkeypatch.setattr(steps, "_DOCUMENTS_AT_ONCE", 4)
    documents = [LlamaDocument(text=d.text, doc_id=d.id) for d in TOWNS]

    def broken() -> Iterator[LlamaDocument]:
        yield from documents[:8]
        raise failure("in the middle")

    with pytest.raises(failure):
        LatentIndex.from_documents(broken(), tmp_path / "kb")
    assert "What was compressed stays in" in caplog.text
    with KnowledgeBase.open(tmp_path / "kb") as left:
        stays = left.uncommitted_passages()
        assert (len(left), stays >= 4) == (0, True)
    index = LatentIndex.from_documents(documents, tmp_path / "kb")
    assert len(index.ref_doc_info) == 12
    index.close()
    with pytest.raises(KnowledgeBaseError, match=r"is a knowledge base already: .*from_path"):
        LatentIndex.from_documents(documents, tmp_path / "kb")
    assert verify(tmp_path / "kb").documents == 12


def test_from_documents_is_locked_out_by_who_writes(tmp_path: Path) -> None:
    kb = tmp_path / "kb"
    with KnowledgeBase.create(kb) as other, other._writing("add"):
        with pytest.raises(LockedError):
            LatentIndex.from_documents([LlamaDocument(text="A text.")], kb)
        assert (kb / "kb.json").exists()
