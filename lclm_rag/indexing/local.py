"""Run the compressor over a corpus in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lclm_rag.answer import AddReport
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.documents import Document, Passage, PassageKey
from lclm_rag.seen_ids import SeenIds
from lclm_rag.splitting import split_document
from lclm_rag.store import Encoding, Layout, StoredPassage, StoreWriter

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor
    from lclm_rag.store.codecs import Bytes

__all__ = ["PassageWork", "add_documents", "compress_passages"]

_PASSAGES_AT_ONCE = 512
_CHARACTERS_AT_ONCE = 1 << 19
"""Enough for batches of the encoder that are nearly all full; few enough that neither long texts nor large
metadata fill the memory."""

_BATCHES_AHEAD = 4
"""So many wait for a GPU: a second's work and more, while a fragment is written."""

_REPORT_EVERY = 256
"""Documents after which progress is told, where no compression tells it."""


@dataclass(frozen=True)
class PassageWork:
    """A passage on its way into the store.

    document_hash: of its document's content. last: whether it is its document's last passage. known: the
    stored passage with the same content, whose latents are taken again; None: to be compressed.
    """

    passage: Passage
    document_hash: bytes
    last: bool
    known: StoredPassage | None


@dataclass
class _Counts:
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    passages: int = 0
    reused: int = 0
    tokens: int = 0
    latents: int = 0

    def report(self) -> AddReport:
        return AddReport(**vars(self), deleted=0)


def add_documents(
    writer: StoreWriter,
    documents: Iterable[Document],
    checkpoint: Checkpoint,
    compressor: Callable[[], Compressor],
    *,
    passage_tokens: int | None,
    contextual_headers: bool,
    on_progress: Callable[[AddReport], None],
    on_document: Callable[[str], None] = lambda document_id: None,
) -> AddReport:
    """Compress what is new or changed and hand it to the writer, which is not committed here.

    Documents, and the passages of a long one, stream through: memory does not grow with either. Unchanged
    documents cost a hash; so do those that a killed run had finished. Of changed ones, passages whose content
    was there keep their latents.

    compressor: called once there is something to compress. passage_tokens: None makes each document one
    passage, without a header. on_document: gets the id of each.
    Raises ValueError where there are no documents, or an id occurs twice.
    """
    counts = _Counts()
    seen = SeenIds()

    def work() -> Iterator[PassageWork]:
        for number, document in enumerate(documents, start=1):
            if seen.first(document.id) is not None:
                raise ValueError(f"Document id {document.id!r} occurs twice; ids must be unique.")
            on_document(document.id)
            if number % _REPORT_EVERY == 0:
                on_progress(counts.report())
            stored, digest = writer.base.document_hash(document.id), document.content_hash()
            if stored == digest:
                counts.unchanged += 1
                continue
            if stored is None:
                counts.added += 1
            else:
                counts.updated += 1
            writer.delete_document(document.id)
            if taken := writer.take_over(document.id, digest):
                counts.passages += taken
                counts.reused += taken
                continue
            known = writer.known_passages(document.id)
            passages = _passages(document, checkpoint, passage_tokens, contextual_headers)
            for passage, last in _with_last(passages):
                yield PassageWork(passage, digest, last, known.get(passage.content))

    for items, rows in compress_passages(work(), compressor, writer.layout):
        for item, row in zip(items, rows, strict=True):
            writer.add(row)
            counts.passages += 1
            if item.known is None:
                counts.tokens += row.tokens
                counts.latents += len(row.encoded)
            else:
                counts.reused += 1
        on_progress(counts.report())
    if not counts.added + counts.updated + counts.unchanged:
        raise ValueError("There are no documents to add.")
    return counts.report()


def compress_passages(
    work: Iterable[PassageWork],
    compressor: Callable[[], Compressor],
    layout: Layout,
) -> Iterator[tuple[list[PassageWork], list[StoredPassage]]]:
    """Passages with their latents, in the order given, some hundreds at a time."""
    for batch, new in _encoded(_batches(work), compressor, layout):
        tokens_and_bytes = iter(new.result() if new else ())
        rows = []
        for item in batch:
            known = item.known
            tokens, encoded = (
                next(tokens_and_bytes) if known is None else (known.tokens, known.encoded)
            )
            rows.append(
                StoredPassage(item.passage, tokens, item.document_hash, item.last, encoded, layout)
            )
        yield batch, rows


@dataclass(frozen=True)
class _Encoded:
    """The latents of some texts, being encoded: source tokens and latents of each, and the latents of all."""

    tokens: list[int]
    latents: list[int]
    encoding: Encoding

    @classmethod
    def start(cls, token_ids: list[list[int]], compressor: Compressor, layout: Layout) -> _Encoded:
        latents, counts = compressor.compress_together(token_ids, layout.space)
        tokens = [len(ids) for ids in token_ids]
        return cls(tokens, counts, Encoding.start(latents, layout.codec))

    def result(self) -> Iterator[tuple[int, Bytes]]:
        """Source tokens and encoded latents of each text."""
        ends = np.cumsum(self.latents)
        return zip(self.tokens, np.split(self.encoding.result(), ends[:-1]), strict=True)


def _encoded(
    batches: Iterable[list[PassageWork]], load: Callable[[], Compressor], layout: Layout
) -> Iterator[tuple[list[PassageWork], _Encoded | None]]:
    """Each batch with what is new in it; None where nothing is.

    On a GPU some batches are under way while the caller reads, tokenizes and writes: one thread does nothing
    but hand work to the GPU. On a CPU there would be nothing to gain.
    """
    waiting: deque[tuple[list[PassageWork], Future[_Encoded] | None]] = deque()
    ahead = 0
    with ThreadPoolExecutor(1, "encoder") as encoder:
        try:
            for batch in batches:
                texts = [item.passage.content for item in batch if item.known is None]
                started = None
                if texts:
                    compressor = load()
                    token_ids = compressor.tokenize(texts)
                    if compressor.device.type == "cpu":
                        yield batch, _Encoded.start(token_ids, compressor, layout)
                        continue
                    ahead = _BATCHES_AHEAD
                    started = encoder.submit(_Encoded.start, token_ids, compressor, layout)
                waiting.append((batch, started))
                while len(waiting) > ahead:
                    yield _waited_for(*waiting.popleft())
            while waiting:
                yield _waited_for(*waiting.popleft())
        finally:
            encoder.shutdown(cancel_futures=True)


def _waited_for(
    batch: list[PassageWork], started: Future[_Encoded] | None
) -> tuple[list[PassageWork], _Encoded | None]:
    return batch, started.result() if started is not None else None


def _passages(
    document: Document,
    checkpoint: Checkpoint,
    passage_tokens: int | None,
    contextual_headers: bool,
) -> Iterator[Passage]:
    if passage_tokens is None:
        key = PassageKey(document.id, 0)
        return iter([Passage(key, 0, len(document.text), document.text, document.metadata)])
    return split_document(
        document,
        checkpoint.token_offsets,
        passage_tokens,
        contextual_headers=contextual_headers,
    )


def _with_last(passages: Iterator[Passage]) -> Iterator[tuple[Passage, bool]]:
    """Each with whether it is the last; one is held back to know it."""
    held = next(passages, None)
    for passage in passages:
        if held is not None:
            yield held, False
        held = passage
    if held is not None:
        yield held, True


def _batches(work: Iterable[PassageWork]) -> Iterator[list[PassageWork]]:
    batch: list[PassageWork] = []
    characters = 0
    for item in work:
        batch.append(item)
        characters += item.passage.characters
        if len(batch) >= _PASSAGES_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
