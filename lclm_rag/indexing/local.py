"""Run the compressor over a corpus in this process."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

from lclm_rag.answer import AddReport
from lclm_rag.checkpoint import Space
from lclm_rag.compression import Compressor
from lclm_rag.documents import Document, Passage, PassageKey, split_document
from lclm_rag.store import StoredPassage, StoreWriter

__all__ = ["add_documents", "compress_documents"]

_DOCUMENTS_AT_ONCE = 256
"""Enough for length-sorted batches to be nearly free of padding; few enough to stream."""


def add_documents(
    writer: StoreWriter,
    documents: Iterable[Document],
    compressor: Compressor,
    passage_tokens: int | None,
    on_progress: Callable[[AddReport], None],
) -> AddReport:
    """Compress what is new or changed and hand it to the writer, which is not committed here.

    passage_tokens: None makes each document one passage.
    Raises ValueError where there are no documents, or an id occurs twice.
    """
    added = updated = unchanged = passages = tokens = latents = 0
    seen: set[bytes] = set()

    def changed() -> Iterator[Document]:
        nonlocal added, updated, unchanged
        for document in documents:
            digest = hashlib.blake2b(
                document.id.encode("utf-8", "surrogatepass"), digest_size=16
            ).digest()
            if digest in seen:
                raise ValueError(f"Document id {document.id!r} occurs twice; ids must be unique.")
            seen.add(digest)
            stored = writer.base.document_hash(document.id)
            if stored == document.content_hash():
                unchanged += 1
                continue
            added, updated = added + (stored is None), updated + (stored is not None)
            yield document

    space = writer.base.layout.space
    for document, rows in compress_documents(changed(), compressor, passage_tokens, space):
        writer.delete_document(document.id)
        for row in rows:
            writer.add(row)
        passages += len(rows)
        tokens += sum(row.tokens for row in rows)
        latents += sum(len(row.latents) for row in rows)
        on_progress(AddReport(added, updated, unchanged, passages, tokens, latents))
    if not seen:
        raise ValueError("There are no documents to add.")
    return AddReport(added, updated, unchanged, passages, tokens, latents)


def compress_documents(
    documents: Iterable[Document], compressor: Compressor, passage_tokens: int | None, space: Space
) -> Iterator[tuple[Document, list[StoredPassage]]]:
    """Each document with its passages and their latents, in the order given; memory stays bounded."""
    stream = iter(documents)
    while chunk := list(itertools.islice(stream, _DOCUMENTS_AT_ONCE)):
        split = [
            [Passage(PassageKey(d.id, 0), 0, len(d.text), d.text, d.metadata)]
            if passage_tokens is None
            else split_document(d, compressor.token_offsets, passage_tokens)
            for d in chunk
        ]
        token_ids = compressor.tokenize([p.text for passages in split for p in passages])
        latents = compressor.compress_token_ids(token_ids, space)
        pairs = iter(zip(token_ids, latents, strict=True))
        for document, passages in zip(chunk, split, strict=True):
            digest = document.content_hash()
            yield (
                document,
                [
                    StoredPassage(passage, len(ids), digest, vectors)
                    for passage, (ids, vectors) in zip(passages, pairs, strict=False)
                ],
            )
