"""Passages stream through splitting, tokenizing and compressing, in order, whichever thread does what."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from lclm_rag import Document, PassageKey
from lclm_rag.compression import Compressor
from lclm_rag.ingestion.passages import (
    PassageWork,
    Splitting,
    compress_passages,
    split_documents,
    tokenized,
)
from lclm_rag.store import Layout
from lclm_rag.store.store import Place
from lclm_rag.types import Passage

TEXTS = [f"Passage {i} says {'many words ' * (i % 9)}of thing {i}." for i in range(1_500)]


@pytest.fixture
def layout(compressor: Compressor) -> Layout:
    checkpoint = compressor.checkpoint
    return Layout("fp16", "encoder", checkpoint.encoder_width, "f" * 16, 4)


def work(read: list[int]) -> Iterator[PassageWork]:
    for i, text in enumerate(TEXTS):
        read.append(i)
        passage = Passage(PassageKey(f"d{i}", 0), 0, len(text), text, {})
        yield PassageWork(passage, b"h" * 32, True, None)


class LikeAGpu:
    """A compressor that works beside the thread that reads; `allowed` says for how many batches."""

    device = torch.device("cuda")

    def __init__(self, compressor: Compressor, allowed: int | None = None) -> None:
        self.inner = compressor
        self.allowed = allowed
        self.threads: set[int] = set()
        self.batches = 0

    def compress_together(self, token_ids: Sequence[Sequence[int]], space: Any) -> Any:
        self.threads.add(threading.get_ident())
        self.batches += 1
        if self.allowed is not None and self.batches > self.allowed:
            raise RuntimeError("the device is gone")
        return self.inner.compress_together(token_ids, space)


def none(place: Place) -> None:
    """Reads known passages, where there are none."""
    pytest.fail(f"{place} is read")


def test_work_under_way_on_a_gpu_comes_back_in_order(
    compressor: Compressor, layout: Layout
) -> None:
    gpu: Any = LikeAGpu(compressor)
    batches = tokenized(work([]), compressor.checkpoint)
    beside = [
        row for _, rows in compress_passages(batches, lambda: gpu, layout, none) for row in rows
    ]
    batches = tokenized(work([]), compressor.checkpoint)
    steps = compress_passages(batches, lambda: compressor, layout, none)
    here = [row for _, rows in steps for row in rows]
    assert [row.passage.text for row in beside] == TEXTS
    assert all((a.encoded == b.encoded).all() for a, b in zip(beside, here, strict=True))
    assert threading.get_ident() not in gpu.threads
    assert len(gpu.threads) == 1


def test_what_fails_on_the_gpu_is_raised_here(compressor: Compressor, layout: Layout) -> None:
    gpu: Any = LikeAGpu(compressor, allowed=1)
    steps = compress_passages(tokenized(work([]), compressor.checkpoint), lambda: gpu, layout, none)
    batch, _ = next(steps)
    assert batch[0].passage.text == TEXTS[0]
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(steps)


def test_leaving_early_reads_little_and_waits_for_nothing(
    compressor: Compressor, layout: Layout
) -> None:
    read: list[int] = []
    batches = tokenized(work(read), compressor.checkpoint)
    steps = compress_passages(batches, lambda: compressor, layout, none)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert len(read) < len(TEXTS) / 2


def test_documents_tokenized_together_are_split_as_alone(compressor: Compressor) -> None:
    checkpoint = compressor.checkpoint
    documents = [
        Document(f"d{i}", f"# Heading {i}\n\n" + f"A sentence on thing {i}. " * (1 + i % 40))
        for i in range(150)
    ]
    for splitting in (Splitting(30, False), Splitting(30, True), Splitting(None, False)):
        changed = [(document, b"h" * 32, {}) for document in documents]
        together = list(split_documents(changed, checkpoint, splitting))
        alone = [w for each in changed for w in split_documents([each], checkpoint, splitting)]
        assert together == alone
        assert [w.passage.key for w in together if w.last] == [
            max(w.passage.key for w in together if w.passage.key.document_id == d.id)
            for d in documents
        ]
