"""Run the compressor over a corpus in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.ingestion.passages import (
    Splitting,
    compress_passages,
    split_documents,
    tokenized,
)
from lclm_rag.ingestion.unique_ids import UniqueIds
from lclm_rag.store import StoreWriter
from lclm_rag.store.store import Place
from lclm_rag.types import AddReport, Document

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor

__all__ = ["Counts", "add_documents"]

_REPORT_EVERY = 256
"""The number of documents after which progress is reported, even if none had to be compressed."""


@dataclass
class Counts:
    """Running counts, with the meanings that they have in `AddReport`."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    passages: int = 0
    reused: int = 0
    tokens: int = 0
    latents: int = 0

    @property
    def documents(self) -> int:
        """The number of documents counted so far."""
        return self.added + self.updated + self.unchanged

    def report(self) -> AddReport:
        """The counts as an `AddReport`, without deletions."""
        return AddReport(**vars(self), deleted=0)


def add_documents(
    writer: StoreWriter,
    documents: Iterable[Document],
    checkpoint: Checkpoint,
    compressor: Callable[[], Compressor],
    splitting: Splitting,
    *,
    on_progress: Callable[[AddReport], None],
    on_document: Callable[[str], None] = lambda document_id: None,
) -> AddReport:
    """Compress new and changed documents and hand them to the writer, without committing it.

    Documents, and the passages of a long one, stream through, so that memory does not grow with either.
    Unchanged documents cost a hash, and so do those that a killed run had finished. In changed documents,
    passages whose content is already stored keep their latents.

    Args:
        writer: The store's writer. The caller commits it.
        documents: The documents, read once.
        checkpoint: The store's checkpoint.
        compressor: Loads the encoder; called only once there is something to compress.
        splitting: How documents become passages.
        on_progress: Called with the counts so far after each batch, and every 256 documents.
        on_document: Called with each document's id.

    Returns:
        What was added.

    Raises:
        ValueError: When there are no documents, or an id occurs twice.
    """
    counts = Counts()
    seen = UniqueIds()

    def changed() -> Iterator[tuple[Document, bytes, dict[str, Place]]]:
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
            yield document, digest, writer.compressed.passages(document.id)

    work = split_documents(changed(), checkpoint, splitting)
    batches = tokenized(work, checkpoint, splitting.memory)
    read = writer.compressed.read
    for items, rows in compress_passages(batches, compressor, writer.layout, read):
        for item, row in zip(items, rows, strict=True):
            writer.add(row)
            counts.passages += 1
            if item.known is None:
                counts.tokens += row.tokens
                counts.latents += len(row.encoded)
            else:
                counts.reused += 1
        on_progress(counts.report())
    if not counts.documents:
        raise ValueError("There are no documents to add.")
    return counts.report()
