"""Run the compressor over a corpus in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lclm_rag.answer import AddReport
from lclm_rag.checkpoint import Space
from lclm_rag.compression import Compressor
from lclm_rag.documents import Document, Passage, PassageKey
from lclm_rag.seen_ids import SeenIds
from lclm_rag.splitting import split_document
from lclm_rag.store import StoredPassage, StoreWriter

__all__ = ["add_documents", "compress_passages"]

_PASSAGES_AT_ONCE = 512
_CHARACTERS_AT_ONCE = 1 << 19
"""Enough for length-sorted batches to be nearly free of padding; few enough that neither long texts nor
large metadata fill the memory."""

_REPORT_EVERY = 256
"""Unchanged documents after which progress is told, where no compression tells it."""

HashedPassage = tuple[Passage, bytes]
"""A passage and the content hash of its document."""


def add_documents(
    writer: StoreWriter,
    documents: Iterable[Document],
    compressor: Compressor,
    *,
    passage_tokens: int | None,
    contextual_headers: bool,
    on_progress: Callable[[AddReport], None],
) -> AddReport:
    """Compress what is new or changed and hand it to the writer, which is not committed here.

    Documents, and the passages of a long one, stream through: memory does not grow with either.

    passage_tokens: None makes each document one passage, without a header.
    Raises ValueError where there are no documents, or an id occurs twice.
    """
    added = updated = unchanged = passages = tokens = latents = 0
    seen = SeenIds()

    def report() -> AddReport:
        return AddReport(added, updated, unchanged, passages, tokens, latents)

    def changed() -> Iterator[HashedPassage]:
        nonlocal added, updated, unchanged
        for document in documents:
            if seen.first(document.id) is not None:
                raise ValueError(f"Document id {document.id!r} occurs twice; ids must be unique.")
            stored, digest = writer.base.document_hash(document.id), document.content_hash()
            if stored == digest:
                unchanged += 1
                if unchanged % _REPORT_EVERY == 0:
                    on_progress(report())
                continue
            if stored is None:
                added += 1
            else:
                updated += 1
                writer.delete_document(document.id)
            for passage in _passages(document, compressor, passage_tokens, contextual_headers):
                yield passage, digest

    for rows in compress_passages(changed(), compressor, writer.base.layout.space):
        for row in rows:
            writer.add(row)
        passages += len(rows)
        tokens += sum(row.tokens for row in rows)
        latents += sum(len(row.latents) for row in rows)
        on_progress(report())
    if not added + updated + unchanged:
        raise ValueError("There are no documents to add.")
    return report()


def compress_passages(
    passages: Iterable[HashedPassage], compressor: Compressor, space: Space
) -> Iterator[list[StoredPassage]]:
    """Passages with their latents, in the order given, some hundreds at a time."""
    for batch in _batches(passages):
        token_ids = compressor.tokenize([passage.content for passage, _ in batch])
        latents = compressor.compress_token_ids(token_ids, space)
        yield [
            StoredPassage(passage, len(ids), digest, vectors)
            for (passage, digest), ids, vectors in zip(batch, token_ids, latents, strict=True)
        ]


def _passages(
    document: Document,
    compressor: Compressor,
    passage_tokens: int | None,
    contextual_headers: bool,
) -> Iterator[Passage]:
    if passage_tokens is None:
        key = PassageKey(document.id, 0)
        return iter([Passage(key, 0, len(document.text), document.text, document.metadata)])
    return split_document(
        document,
        compressor.token_offsets,
        passage_tokens,
        contextual_headers=contextual_headers,
    )


def _batches(passages: Iterable[HashedPassage]) -> Iterator[list[HashedPassage]]:
    batch: list[HashedPassage] = []
    characters = 0
    for passage, digest in passages:
        batch.append((passage, digest))
        characters += passage.characters
        if len(batch) >= _PASSAGES_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
