"""An embedder that is an object, and searches that are narrowed to documents."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lclm_rag import CheckpointError, Document, KnowledgeBase, KnowledgeBaseError
from lclm_rag.retrieval import OfDocuments, field, matches
from lclm_rag.retrieval.reranker import CrossEncoderReranker
from support.commands import Run

TEXTS = {"zebra": "aaaa aaaa", "bee": "bbbb bbbb", "cow": "cccc cccc"}


class Letters:
    """Counts letters, so that a text is found by what it is made of, without a word in common."""

    name, width = "letters", 26

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_question(text) for text in texts]

    def embed_question(self, text: str) -> list[float]:
        return [text.lower().count(chr(97 + i)) + 0.01 for i in range(26)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with KnowledgeBase.create(tmp_path / "kb", embedder=Letters()) as kb:
        kb.add(Document(name, text, {"of": name[0]}) for name, text in TEXTS.items())
    return tmp_path / "kb"


def test_it_searches_by_meaning_after_opening_and_after_pickling(path: Path) -> None:
    with KnowledgeBase.open(path, embedder=Letters()) as kb:
        assert kb.retrieve("bb", 1)[0].key.document_id == "bee"
        kb.add([Document("dog", "dddd")])
        with pickle.loads(pickle.dumps(kb)) as copy:
            assert copy.retrieve("dd", 1)[0].key.document_id == "dog"


def test_who_lacks_it_is_told_before_anything_is_searched_or_written(path: Path) -> None:
    with KnowledgeBase.open(path) as kb:
        version = kb.store.version
        with pytest.raises(KnowledgeBaseError, match="made with the embedder 'letters', given as"):
            kb.retrieve("bb")
        with pytest.raises(KnowledgeBaseError, match=r"KnowledgeBase\.open\(…, embedder=…\)"):
            kb.add([Document("dog", "dddd")])
        assert kb.versions()[-1].version == version
    other = Letters()
    other.name = "others"
    with pytest.raises(KnowledgeBaseError, match="the embedder 'letters', and cannot be searched"):
        KnowledgeBase.open(path, embedder=other)


def test_a_search_by_words_alone_leaves_it_out(path: Path) -> None:
    with KnowledgeBase.open(path, embedder=Letters()) as kb:
        assert kb.retrieve("bb", words_only=True) == []
        assert [hit.key.document_id for hit in kb.retrieve("bbbb", words_only=True)] == ["bee"]


def test_it_needs_the_embedded_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the embedded index"):
        KnowledgeBase.create(tmp_path / "kb", embedder=Letters(), qdrant_url="http://127.0.0.1:1")
    assert not (tmp_path / "kb").exists()


def test_a_search_is_narrowed_to_documents(path: Path) -> None:
    some = OfDocuments(("zebra", "cow"))
    with KnowledgeBase.open(path, embedder=Letters()) as kb:
        hits = kb.retrieve("bb", 3, some)
        assert {hit.key.document_id for hit in hits} == {"zebra", "cow"}
        (hit,) = kb.retrieve("bb", 3, some & (field("of") == "c"))
        assert hit.key.document_id == "cow"
        assert [key.document_id for key in kb.find(~some)] == ["bee"]
        assert kb.retrieve("bb", 3, OfDocuments(())) == []
    assert matches(some, {}, "cow")
    assert not matches(some, {}, "bee")
    with pytest.raises(ValueError, match="takes a tuple of document ids"):
        OfDocuments(["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("contents", [None, "{nonsense", '{"model_type": "nonsense"}'])
def test_a_model_that_cannot_be_loaded_is_named_in_a_sentence(
    tmp_path: Path, run: Run, contents: str | None
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    if contents is not None:
        (model / "config.json").write_text(contents)
    (tmp_path / "a.txt").write_text("Town guide: Velun.")
    kb = tmp_path / "kb"
    code, _, said = run("build", tmp_path / "a.txt", "--kb", kb, "--embedder", model)
    assert code == 1
    assert not kb.exists()
    errors = [line for line in said.splitlines() if line.startswith("Error")]
    (error,) = errors
    assert error.startswith(f"Error: The embedder '{model}' cannot be loaded: ")
    assert error.endswith("or its folder.")
    with pytest.raises(CheckpointError, match=r"The reranker '.*' cannot be loaded: "):
        CrossEncoderReranker(str(model))
