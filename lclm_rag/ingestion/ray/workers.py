"""The code that runs on the machines of a Ray cluster: readers make passages, encoders write fragments.

Nothing that is written here is visible before the driver commits. Until then the fragments are like those
that a killed writer leaves behind, and their notes are the journal from which the next run continues.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.errors import CheckpointError, DamagedError
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
from lclm_rag.ingestion.ray.faults import is_fault, worker_ends_at_faults
from lclm_rag.ingestion.ray.handovers import Numbering, runs
from lclm_rag.ingestion.ray.reports import DocumentRows, NotWritten, ShardReport
from lclm_rag.ingestion.ray.work_rows import Kind, Source, WorkRow, from_table, to_table
from lclm_rag.printable import first_line
from lclm_rag.storage import open_folder
from lclm_rag.store import LatentStore, Layout, StoredPassage, Totals
from lclm_rag.store.compressed import Compressed
from lclm_rag.store.lists import FragmentEntry
from lclm_rag.store.manifest import pack_entry
from lclm_rag.store.store import Place, row_totals
from lclm_rag.store.writer import FRAGMENT_BYTES, Packing, pack_uncommitted, write_uncommitted
from lclm_rag.types import Document, ReadablePart

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor

__all__ = [
    "EncodeShards",
    "Job",
    "pack_fragments",
    "packed_parts",
    "read_documents",
    "read_part",
]

_DOCUMENTS_AT_ONCE = 64
"""The documents that a reader notes one by one after a death, and the number between notes before one."""

_ROWS_AT_ONCE = 4_096
"""The most rows in a table between readers and encoders; reached if documents need no compression."""


@dataclass(frozen=True)
class Job:
    """What all workers need to know; each gets it as a pickle with every task, so it is small.

    Attributes:
        store: The latent store's folder or URL, under a name that is valid on all machines.
        version: The store's version that the run builds on.
        uncommitted: The fragments that a killed run had finished, as a reference to an object of Ray: there
            may be many, and each worker fetches them once.
        layout: The store's layout.
        checkpoint: The checkpoint, under a name that is valid on all machines.
        splitting: How documents become passages.
        device: The encoders' device.
        dtype: The encoders' dtype.
        compressor_options: Further options of `Compressor.from_pretrained`.
        threads: The threads of an encoder on a CPU.
        resumable: Whether fragments get notes, from which a later run can continue.
        attempts: The actor with the tasks' notes (`attempts.Notes`).
    """

    store: str
    version: int
    uncommitted: Any
    layout: Layout
    checkpoint: str
    splitting: Splitting
    device: str
    dtype: str
    compressor_options: dict[str, Any]
    threads: int
    resumable: bool
    attempts: Any


# --- readers ----------------------------------------------------------------------------------------


def packed_parts(parts: Iterable[ReadablePart]) -> list[dict[str, Any]]:
    """Parts of the corpus for `read_part`: each with its number, and as a pickle."""
    from ray import cloudpickle

    return [{"number": n, "part": cloudpickle.dumps(part)} for n, part in enumerate(parts)]


def read_part(batch: dict[str, Any], job: Job) -> Iterator[pa.Table]:
    """Read parts of the corpus and split their documents.

    Args:
        batch: Parts as `packed_parts` made them.
        job: The job.

    Yields:
        Tables of `WorkRow`s.
    """
    for number, part in zip(map(int, batch["number"]), batch["part"], strict=True):
        items = pickle.loads(part).read()
        sourced = ((Source(number, i), item) for i, item in enumerate(items))
        yield from _work_tables(job, number, sourced)


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
    return _work_tables(job, rows[0]["part"], documents)


def _work_tables(
    job: Job, part: int, items: Iterable[tuple[Source, Document | Exception | str]]
) -> Iterator[pa.Table]:
    """The rows of one part in tables. All tries make the same, up to where one of them died."""
    attempts = Attempts(job.attempts, f"part-{part}", _DOCUMENTS_AT_ONCE)
    with worker_ends_at_faults(attempts.tries):
        checkpoint = _checkpoint(job.checkpoint)
        numbering = Numbering()
        rows: list[WorkRow] = []
        size = 0
        for row in _rows(part, items, job, checkpoint, attempts, numbering):
            rows.append(numbering.next(row))
            size += row.work.passage.characters if row.work is not None else 0
            ended = row.kind == "end"
            if size >= CHARACTERS_AT_ONCE or len(rows) >= _ROWS_AT_ONCE or ended:
                table = to_table(_with_token_ids(rows, checkpoint, job.splitting.memory))
                attempts.hand_over(numbering.rows)
                yield table
                rows, size = [], 0
        attempts.done(forget=False)


def _rows(
    part: int,
    items: Iterable[tuple[Source, Document | Exception | str]],
    job: Job,
    checkpoint: Checkpoint,
    attempts: Attempts,
    numbering: Numbering,
) -> Iterator[WorkRow]:
    compressed = _compressed(job.store, job.version, job.uncommitted)
    count = 0
    for count, (source, item) in enumerate(items, start=1):  # noqa: B007
        if isinstance(item, Document):
            yield from _document_rows(
                source, item, job, checkpoint, compressed, attempts, numbering
            )
        else:
            kind: Kind = "ignored" if isinstance(item, str) else "problem"
            yield WorkRow(kind, source, "", b"", False, str(item))
    yield WorkRow("end", Source(part, count), "", b"", False)


def _document_rows(
    source: Source,
    document: Document,
    job: Job,
    checkpoint: Checkpoint,
    compressed: Compressed,
    attempts: Attempts,
    numbering: Numbering,
) -> Iterator[WorkRow]:
    stored, digest = compressed.base.document_hash(document.id), document.content_hash()

    def row(kind: Kind, message: str = "", work: PassageWork | None = None) -> WorkRow:
        return WorkRow(kind, source, document.id, digest, stored is not None, message, work)

    if stored == digest:
        yield row("unchanged")
        return
    if compressed.finished(document.id, digest):
        yield row("finished")
        return
    known = compressed.passages(document.id)
    try:
        with attempts.at(document.id):
            passages = passage_work(document, digest, known, checkpoint, job.splitting)
            # Asked before each passage is made, because making it may be what kills the worker.
            while not attempts.gives_up(document.id, numbering.rows):
                work = next(passages, None)
                if work is None:
                    return
                if attempts.careful:  # What kills the worker may be the tokenizer.
                    (work,) = with_token_ids([work], checkpoint, job.splitting.memory)
                yield row("passage", work=work)
    except Exception as error:  # Every error but those of storage concerns this document alone.
        if is_fault(error):
            raise
        yield row("problem", _failed(document.id, error))
        return
    yield row("problem", _deadly(document.id))


def _with_token_ids(rows: list[WorkRow], checkpoint: Checkpoint, memory: str) -> list[WorkRow]:
    new = [row.work for row in rows if row.work is not None and not row.work.token_ids]
    work = iter(with_token_ids(new, checkpoint, memory))
    return [
        row if row.work is None or row.work.token_ids else replace(row, work=next(work))
        for row in rows
    ]


def _deadly(document_id: str) -> str:
    return f"{document_id}: a worker died {DEATHS} times while it was at it."


def _failed(document_id: str, error: Exception) -> str:
    reason = first_line(error)
    return f"{document_id}: {reason}"


# A worker process runs one task after another, so these are kept between tasks.


@lru_cache(maxsize=1)
def _checkpoint(name: str) -> Checkpoint:
    return Checkpoint.open(name)


@lru_cache(maxsize=1)
def _compressed(store: str, version: int, uncommitted: Any) -> Compressed:
    import ray

    entries: list[FragmentEntry] = ray.get(uncommitted)
    return Compressed(LatentStore.open_for_worker(store, version), entries)


# --- encoders ---------------------------------------------------------------------------------------


class EncodeShards:
    """An actor with an encoder: takes tables of `WorkRow`s, writes fragments, and returns `ShardReport`s.

    Two threads call it: one waits for the storage while the other has the encoder.

    Args:
        job: The job.

    Raises:
        CheckpointError: When this machine's checkpoint is not the one that the store was made with.
    """

    def __init__(self, job: Job) -> None:
        import ray

        # The name stays the same when Ray restarts the actor.
        name = f"the start of encoder {ray.get_runtime_context().get_actor_id()}"
        attempts = Attempts(job.attempts, name)
        with worker_ends_at_faults(attempts.tries):
            self._start(job)
            attempts.done(forget=True)

    def _start(self, job: Job) -> None:
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
        self._compressing, self._writing = threading.Lock(), threading.Lock()
        self._busy_until = 0.0

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Compress one shard, and write it while another thread compresses the next.

        If the actor dies, Ray repeats the whole call, and that of the other thread.
        """
        rows = from_table(table)
        not_written = [
            _not_written(row, row.kind, row.message)
            for row in rows
            if row.work is None and row.kind != "end"
        ]
        new = [row for row in rows if row.work is not None]
        with ExitStack() as turn:
            turn.enter_context(self._compressing)
            begun = time.perf_counter()
            # Not before: what waits for its turn has no part in a death.
            attempts = Attempts(self._job.attempts, _name(rows))
            if attempts.careful:
                # If the other thread ended the worker now, a document that is noted would get the blame.
                turn.enter_context(self._writing)
            with worker_ends_at_faults(attempts.tries):
                compressed, problems = self._compressed(new, attempts)
            if not attempts.careful:
                turn.close()
                turn.enter_context(self._writing)
            with worker_ends_at_faults(attempts.tries):
                reports = [self._write(part) for part in _fragments(compressed)]
                attempts.done(forget=True)
            # Without the time that the shard before has had already.
            seconds = time.perf_counter() - max(begun, self._busy_until)
            self._busy_until = time.perf_counter()
        first = ShardReport(self._worker, runs=runs(rows), not_written=[*not_written, *problems])
        each_took = seconds / max(1, len(reports))
        # All at once: of several outputs, some could come from another try than the rest.
        yield ShardReport.table([first, *(replace(each, seconds=each_took) for each in reports)])

    def _compressed(
        self, rows: list[WorkRow], attempts: Attempts
    ) -> tuple[list[tuple[WorkRow, StoredPassage]], list[NotWritten]]:
        """The passages with their latents, and the documents that cannot be compressed."""
        if attempts.careful:
            # If this fails, it is this machine and no document.
            self._compressor.compress(["This machine works."])
        else:
            try:
                return self._latents(rows), []
            except Exception as error:
                if is_fault(error):
                    raise
                # Caused by a single document, which is found below.
        done: list[tuple[WorkRow, StoredPassage]] = []
        problems: list[NotWritten] = []
        errors: list[Exception] = []
        for _, group in groupby(rows, lambda row: row.source):
            document = list(group)
            name = document[0].document_id
            if attempts.gives_up(name):
                problems.append(_not_written(document[0], "problem", _deadly(name)))
                continue
            try:
                # The worker ends while the document is noted: it is given up if this happens again.
                with attempts.at(name), worker_ends_at_faults(attempts.tries):
                    done += self._latents(document)
            except Exception as error:
                if is_fault(error):
                    raise
                errors.append(error)
                problems.append(_not_written(document[0], "problem", _failed(name, error)))
        if len(errors) > 1 and not done:
            raise errors[0]  # Nothing works, so it is not the documents.
        return done, problems

    def _latents(self, rows: list[WorkRow]) -> list[tuple[WorkRow, StoredPassage]]:
        job = self._job
        work = [row.work for row in rows if row.work is not None]
        done = compress_passages(batched(work), lambda: self._compressor, job.layout, self._known)
        pairs = chain.from_iterable(zip(*each, strict=True) for each in done)
        return [
            (replace(row, work=item), stored)
            for row, (item, stored) in zip(rows, pairs, strict=True)
        ]

    def _known(self, place: Place) -> StoredPassage | None:
        job = self._job
        return _compressed(job.store, job.version, job.uncommitted).read(place)

    def _write(self, compressed: list[tuple[WorkRow, StoredPassage]]) -> ShardReport:
        """Write one fragment and report it."""
        rows = [row for _, row in compressed]
        entry = write_uncommitted(self._folder, rows, noted=self._job.resumable)
        new = [row for work, row in compressed if work.work and work.work.known is None]
        written = []
        first = 0
        for source, group in groupby(compressed, lambda pair: pair[0].source):
            work = [row for row, _ in group]
            written.append(_written(source, work, first))
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


def pack_fragments(packing: Packing, job: Job) -> list[FragmentEntry] | None:
    """Make large fragments of small ones.

    Args:
        packing: The fragments.
        job: The job.

    Returns:
        The new fragments; None if a row is damaged, so that the small ones stay: that shows when the row is
        read, or by verify.
    """
    base = LatentStore.open_for_worker(job.store, job.version)
    try:
        return pack_uncommitted(base, packing, job.layout, noted=job.resumable)
    except DamagedError:
        return None


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


def _written(source: Source, work: list[WorkRow], first: int) -> DocumentRows:
    passages = [row.work for row in work if row.work is not None]
    ordinal, ended = passages[0].passage.key.ordinal, passages[-1].last
    return DocumentRows(
        source, work[0].document_id, work[0].updated, first, len(work), ordinal, ended
    )


def _not_written(row: WorkRow, kind: str, message: str) -> NotWritten:
    digest = row.document_hash.hex()
    return NotWritten(kind, row.source, row.document_id, digest, row.updated, message)


def _name(rows: list[WorkRow]) -> str:
    """The name of a shard, which is always the same for the same rows."""
    first, last = rows[0], rows[-1]
    begin, end = (f"row {row.row} of part-{row.source.part}" for row in (first, last))
    return f"{begin} to {end}"
