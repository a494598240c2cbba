"""What a killed run had finished stays where it is: the next run reads its keys and hashes, no latents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lclm_rag import Document, KnowledgeBase
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.ingestion.local import add_documents
from lclm_rag.ingestion.passages import Splitting
from lclm_rag.store import LatentStore, Layout, StoredPassage, writing
from lclm_rag.types import Passage, PassageKey

LAYOUT = Layout("bf16", "encoder", 64, "f" * 16, 4)
DOCUMENTS = [Document(f"d{number}", f"Text {number}.") for number in range(40)]


def rows(document: Document, latents: int) -> Iterator[StoredPassage]:
    """Three passages."""
    encoded = np.full((latents, LAYOUT.latent_bytes), 7, np.uint8)
    for ordinal in range(3):
        passage = Passage(PassageKey(document.id, ordinal), 0, 1, f"Part {ordinal}.", {})
        digest = document.content_hash()
        yield StoredPassage(passage, 4 * latents, digest, ordinal == 2, encoded, LAYOUT)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is read from the object store."""
    sizes: list[int] = []
    cat_file = MemoryFileSystem.cat_file

    def counted(self: Any, *arguments: Any, **options: Any) -> bytes:
        piece: bytes = cat_file(self, *arguments, **options)
        sizes.append(len(piece))
        return piece

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return sizes


def no_compressor() -> Compressor:
    raise AssertionError("Everything was finished.")


@pytest.mark.parametrize("latents", [500, 2_500])
def test_what_a_resumed_run_reads_does_not_grow_with_the_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[int], latents: int
) -> None:
    url = f"memory://resumed{latents}"
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    LatentStore.create(url, LAYOUT)
    with writing(url, "add", resumable=True) as killed:
        for row in (row for document in DOCUMENTS for row in rows(document, latents)):
            killed.add(row)
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "another-machine"))
    there = sum(facts.size for facts in (killed.base.folder / "fragments").files())
    fetched.clear()
    with writing(url, "add", resumable=True) as writer:
        add_documents(
            writer,
            DOCUMENTS,
            Checkpoint.open(),
            no_compressor,
            Splitting(200, contextual_headers=False),
            on_progress=lambda report: None,
        )
        store = writer.commit()
    assert len(store) == 3 * len(DOCUMENTS)
    assert there > 40 * 3 * latents * LAYOUT.latent_bytes
    # Two blocks of each fragment, where its columns lie and where it ends.
    fragments = store.manifest.fragments
    assert sum(fetched) < (2 * fragments + 1) * 2**18


def test_a_stored_passage_that_is_damaged_is_compressed_again_and_the_others_are_kept(
    tmp_path: Path,
) -> None:
    text = " ".join(f"word{i % 97}" for i in range(600))
    with KnowledgeBase.create(tmp_path / "kb", passage_tokens=200, codec="fp16") as kb:
        passages = kb.add([Document("d", text)]).passages
        before = [(row.tokens, row.encoded.tobytes()) for row in kb.store.passages()]
        (fragment,) = (tmp_path / "kb" / "store" / "fragments").iterdir()
        data = fragment.read_bytes()
        at = data.index(before[1][1])
        fragment.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with KnowledgeBase.open(tmp_path / "kb") as kb:
        report = kb.add([Document("d", text, {"changed": True})])
        assert (report.passages, report.reused) == (passages, passages - 1)
        after = [(row.tokens, row.encoded.tobytes()) for row in kb.store.passages()]
    assert after[0] == before[0]
    assert after[2:] == before[2:]
    assert after[1][0] == before[1][0]
