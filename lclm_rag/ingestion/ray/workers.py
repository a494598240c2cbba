"""The code that runs on the machines of a Ray cluster: readers make passages, encoders write fragments.

Nothing that is written here is visible before the driver commits. Until then the fragments are like those
that a killed writer leaves behind, and their notes are the journal from which the next run continues.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.errors import CheckpointError
from lclm_rag.ingestion.passages import (
    CHARACTERS_AT_ONCE,
    PassageWork,
    Splitting,
    batched,
    compress_passages,
    passage_work,
    with_token_ids,
)
from lclm_rag.ingestion.ray.attempts import DEATHS, Attempts
from lclm_rag.ingestion.ray.reports import DocumentRows, NotWritten, ShardReport
from lclm_rag.ingestion.ray.work_rows import Kind, Source, WorkRow, from_table, to_table
from lclm_rag.storage import open_folder
from lclm_rag.store import LatentStore, Layout, StoredPassage, Totals
from lclm_rag.store.compressed import Compressed
from lclm_rag.store.manifest import FragmentEntry, pack_entry
from lclm_rag.store.store import row_totals
from lclm_rag.store.writer import FRAGMENT_BYTES, write_uncommitted
from lclm_rag.types import Document, ReadablePart

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor
    from lclm_rag.indexing.server import ServerPoints

__all__ = [
    "EncodeShards",
    "Job",
    "read_documents",
    "read_part",
    "upsert_fragments",
]

_ROWS_AT_ONCE = 4_096
"""The most rows in a table between readers and encoders; reached if documents need no compression."""


@dataclass(frozen=True)
class Job:
    """What workers need to know; each gets it as a pickle.

    Attributes:
        store: The latent store's folder or URL, under a name that is valid on all machines.
        version: The store's version that the run builds on.
        uncommitted: The fragments that a killed run had finished.
        layout: The store's layout.
        checkpoint: The checkpoint, under a name that is valid on all machines.
        splitting: How documents become passages.
        parts: The parts of the corpus; empty if the driver reads the documents.
        device: The encoders' device.
        dtype: The encoders' dtype.
        compressor_options: Further options of `Compressor.from_pretrained`.
        threads: The threads of an encoder on a CPU.
        resumable: Whether fragments get notes, from which a later run can continue.
    """

    store: str
    version: int
    uncommitted: tuple[FragmentEntry, ...]
    layout: Layout
    checkpoint: str
    splitting: Splitting
    parts: tuple[ReadablePart, ...]
    device: str
    dtype: str
    compressor_options: dict[str, Any]
    threads: int
    resumable: bool


# --- readers ----------------------------------------------------------------------------------------


def read_part(batch: dict[str, Any], job: Job) -> Iterator[pa.Table]:
    """Read parts of the corpus and split their documents.

    Args:
        batch: The numbers of the parts, in the column `part`.
        job: The job.

    Yields:
        Tables of `WorkRow`s.
    """
    for number in map(int, batch["part"]):
        items = job.parts[number].read()
        sourced = ((Source(number, i), item) for i, item in enumerate(items))
        yield from _work_tables(job, f"part-{number}", sourced)


def read_documents(table: pa.Table, job: Job) -> Iterator[pa.Table]:
    """Split documents that the driver has read.

    Args:
        table: The documents, with the columns `part`, `number`, `id`, `text` and `metadata` (JSON).
        job: The job.

    Returns:
        Tables of `WorkRow`s.
    """
    rows = table.to_pylist()
    documents = (
        (
            Source(row["part"], row["number"]),
            Document(row["id"], row["text"], json.loads(row["metadata"])),
        )
        for row in rows
    )
    return _work_tables(job, f"part-{rows[0]['part']}", documents)


def _work_tables(
    job: Job, task: str, items: Iterable[tuple[Source, Document | Exception | str]]
) -> Iterator[pa.Table]:
    checkpoint = _checkpoint(job.checkpoint)
    compressed = _compressed(job.store, job.version, job.uncommitted)
    attempts = Attempts(open_folder(job.store), task)
    rows: list[WorkRow] = []
    size = 0
    for source, item in items:
        for row in _document_rows(source, item, job, checkpoint, compressed, attempts):
            rows.append(row)
            size += row.work.passage.characters if row.work is not None else 0
            if size >= CHARACTERS_AT_ONCE or len(rows) >= _ROWS_AT_ONCE:
                yield to_table(_with_token_ids(rows, checkpoint, job.splitting.memory))
                rows, size = [], 0
    if rows:
        yield to_table(_with_token_ids(rows, checkpoint, job.splitting.memory))
    attempts.done()


def _document_rows(
    source: Source,
    item: Document | Exception | str,
    job: Job,
    checkpoint: Checkpoint,
    compressed: Compressed,
    attempts: Attempts,
) -> Iterator[WorkRow]:
    if not isinstance(item, Document):
        kind: Kind = "ignored" if isinstance(item, str) else "problem"
        yield WorkRow(kind, source, "", b"", False, str(item))
        return
    stored, digest = compressed.base.document_hash(item.id), item.content_hash()

    def row(kind: Kind, message: str = "", work: PassageWork | None = None) -> WorkRow:
        return WorkRow(kind, source, item.id, digest, stored is not None, message, work)

    if stored == digest:
        yield row("unchanged")
    elif compressed.finished(item.id, digest):
        yield row("finished")
    elif attempts.deadly(item.id):
        yield row("problem", _deadly(item.id))
    else:
        known = compressed.passages(item.id)
        try:
            with attempts.at(item.id):
                offsets = checkpoint.token_offsets
                for work in passage_work(item, digest, known, offsets, job.splitting):
                    yield row("passage", work=work)
        except Exception as error:  # Every error concerns this document alone.
            yield row("problem", _failed(item.id, error))


def _with_token_ids(rows: list[WorkRow], checkpoint: Checkpoint, memory: str) -> list[WorkRow]:
    new = [row.work for row in rows if row.work is not None]
    work = iter(with_token_ids(new, checkpoint, memory))
    return [replace(row, work=next(work)) if row.work is not None else row for row in rows]


def _deadly(document_id: str) -> str:
    return f"{document_id}: a worker died {DEATHS} times while it was at it."


def _failed(document_id: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{document_id}: {reason}"


# A worker process runs one task after another, so these are kept between tasks.


@lru_cache(maxsize=1)
def _checkpoint(name: str) -> Checkpoint:
    return Checkpoint.open(name)


@lru_cache(maxsize=1)
def _compressed(store: str, version: int, uncommitted: tuple[FragmentEntry, ...]) -> Compressed:
    return Compressed(LatentStore.open_for_worker(store, version), uncommitted)


# --- encoders ---------------------------------------------------------------------------------------


class EncodeShards:
    """An actor with an encoder: takes tables of `WorkRow`s, writes fragments, and returns `ShardReport`s.

    Args:
        job: The job.

    Raises:
        CheckpointError: When this machine's checkpoint is not the one that the store was made with.
    """

    def __init__(self, job: Job) -> None:
        import torch

        from lclm_rag.compression import Compressor

        torch.set_num_threads(job.threads)
        checkpoint = _checkpoint(job.checkpoint)
        found, wanted = checkpoint.fingerprint(job.layout.space), job.layout.fingerprint
        if found != wanted:
            raise CheckpointError(
                f"On {socket.gethostname()} the checkpoint {job.checkpoint} has fingerprint {found}; the "
                f"knowledge base was made with {wanted}. Give all machines the same."
            )
        self._job = job
        self._folder = open_folder(job.store)
        self._compressor: Compressor = Compressor.from_pretrained(
            checkpoint, job.device, job.dtype, **job.compressor_options
        )
        self._worker = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Compress one shard. If the actor dies, Ray repeats the whole call."""
        begun = time.perf_counter()
        rows = from_table(table, self._job.layout)
        attempts = Attempts(self._folder, _name(rows))
        not_written = [_not_written(row, row.kind, row.message) for row in rows if row.work is None]
        new = [row for row in rows if row.work is not None]
        compressed, problems = self._compressed(new, attempts)
        reports = [self._write(part) for part in _fragments(compressed)]
        attempts.done()
        if not_written or problems:
            yield ShardReport(self._worker, not_written=[*not_written, *problems]).table()
        seconds = (time.perf_counter() - begun) / max(1, len(reports))
        for report in reports:
            yield replace(report, seconds=seconds).table()

    def _compressed(
        self, rows: list[WorkRow], attempts: Attempts
    ) -> tuple[list[tuple[WorkRow, StoredPassage]], list[NotWritten]]:
        """The passages with their latents, and the documents that cannot be compressed."""
        if not attempts.careful:
            with suppress(Exception):  # Caused by a single document, which is found below.
                return self._latents(rows), []
        done: list[tuple[WorkRow, StoredPassage]] = []
        problems: list[NotWritten] = []
        errors: list[Exception] = []
        for _, group in groupby(rows, lambda row: row.source):
            document = list(group)
            name = document[0].document_id
            if attempts.deadly(name):
                problems.append(_not_written(document[0], "problem", _deadly(name)))
                continue
            try:
                with attempts.at(name):
                    done += self._latents(document)
            except Exception as error:
                errors.append(error)
                problems.append(_not_written(document[0], "problem", _failed(name, error)))
        if len(errors) > 1 and not done:
            raise errors[0]  # Nothing works, so it is not the documents.
        return done, problems

    def _latents(self, rows: list[WorkRow]) -> list[tuple[WorkRow, StoredPassage]]:
        work = [row.work for row in rows if row.work is not None]
        batches = batched(work)
        stored = compress_passages(batches, lambda: self._compressor, self._job.layout)
        return list(zip(rows, chain.from_iterable(each for _, each in stored), strict=True))

    def _write(self, compressed: list[tuple[WorkRow, StoredPassage]]) -> ShardReport:
        """Write one fragment and report it."""
        rows = [row for _, row in compressed]
        entry = write_uncommitted(self._folder, rows, noted=self._job.resumable)
        new = [row for work, row in compressed if work.work and work.work.known is None]
        written = []
        first = 0
        for source, group in groupby(compressed, lambda pair: pair[0].source):
            work = [row for row, _ in group]
            written.append(
                DocumentRows(source, work[0].document_id, work[0].updated, first, len(work))
            )
            first += len(work)
        return ShardReport(
            self._worker,
            entry=pack_entry(entry),
            written=written,
            totals=sum(map(row_totals, rows), Totals()),
            reused=len(rows) - len(new),
            tokens=sum(row.tokens for row in new),
            latents=sum(len(row.encoded) for row in new),
        )


def _fragments(
    compressed: list[tuple[WorkRow, StoredPassage]],
) -> Iterator[list[tuple[WorkRow, StoredPassage]]]:
    """The passages in groups, each the size of a fragment."""
    part: list[tuple[WorkRow, StoredPassage]] = []
    size = 0
    for pair in compressed:
        part.append(pair)
        size += pair[1].bytes
        if size >= FRAGMENT_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _not_written(row: WorkRow, kind: str, message: str) -> NotWritten:
    digest = row.document_hash.hex()
    return NotWritten(kind, row.source, row.document_id, digest, row.updated, message)


def _name(rows: list[WorkRow]) -> str:
    """The name of a shard, which is always the same for the same rows."""
    ends = (rows[0], rows[-1])
    places = [(row.source, row.work.passage.key.ordinal if row.work else 0) for row in ends]
    return hashlib.blake2b(repr((places, len(rows))).encode(), digest_size=16).hexdigest()


# --- the passage index ------------------------------------------------------------------------------


def upsert_fragments(batch: dict[str, Any], points: ServerPoints) -> dict[str, Any]:
    """Put the passages of some fragments on the Qdrant server. Doing so again does no harm.

    Args:
        batch: The fragments, as indexes into `points.rows` in the column `number`.
        points: The passages and the server.

    Returns:
        The batch.
    """
    for number in map(int, batch["number"]):
        replace(points, rows=(points.rows[number],)).upsert()
    return batch
