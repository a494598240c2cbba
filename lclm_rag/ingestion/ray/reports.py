"""The reports of encoders to the driver, and their totals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.ingestion.local import Counts
from lclm_rag.ingestion.ray.handovers import Handovers, Run
from lclm_rag.ingestion.ray.work_rows import Source
from lclm_rag.ingestion.unique_ids import UniqueIds
from lclm_rag.store import StoreWriter, Totals
from lclm_rag.store.manifest import unpack_entry
from lclm_rag.store.store import Place
from lclm_rag.types import AddReport, WorkerReport

__all__ = ["DocumentRows", "NotWritten", "RunTotals", "ShardReport"]


@dataclass(frozen=True)
class NotWritten:
    """A document of which nothing is written.

    Attributes:
        kind: See `WorkRow`.
        source: Where the document was read.
        document_id: The document's id; "" if it is unknown.
        document_hash: The hash of its content, in hex.
        updated: Whether the store has another version of the document.
        message: See `WorkRow`.
    """

    kind: str
    source: Source
    document_id: str
    document_hash: str
    updated: bool
    message: str


@dataclass(frozen=True)
class DocumentRows:
    """Successive rows of a fragment that belong to one document.

    Attributes:
        source: Where the document was read.
        document_id: The document's id.
        updated: Whether the store has another version of the document.
        first: The first row.
        rows: The number of rows.
        ordinal: The ordinal of the first row's passage.
        ended: Whether the last row is the document's last passage.
    """

    source: Source
    document_id: str
    updated: bool
    first: int
    rows: int
    ordinal: int
    ended: bool


@dataclass(frozen=True)
class ShardReport:
    """An encoder's report on one fragment, or on documents of which nothing was written.

    Attributes:
        worker: The worker, as "host:pid".
        runs: The readers' rows that the report is on. The first report on a shard has all of them.
        entry: The fragment's packed entry; None if there is no fragment.
        written: The documents with rows in the fragment.
        not_written: The documents of which nothing was written.
        totals: The totals of the fragment's rows.
        reused: See `AddReport`.
        tokens: See `AddReport`.
        latents: See `AddReport`.
        seconds: The time that the fragment took.
    """

    worker: str
    runs: list[Run] = field(default_factory=list)
    entry: dict[str, Any] | None = None
    written: list[DocumentRows] = field(default_factory=list)
    not_written: list[NotWritten] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    reused: int = 0
    tokens: int = 0
    latents: int = 0
    seconds: float = 0.0

    @staticmethod
    def table(reports: Sequence[ShardReport]) -> pa.Table:
        """The reports on one shard as a table with one row, as JSON in the column `reports`."""
        return pa.table({"reports": [json.dumps([asdict(report) for report in reports])]})

    @classmethod
    def parse(cls, reports: str) -> list[ShardReport]:
        """The reports from the JSON that `table` made."""
        return [cls._of(raw) for raw in json.loads(reports)]

    @classmethod
    def _of(cls, raw: dict[str, Any]) -> ShardReport:
        raw["runs"] = [Run(**run) for run in raw["runs"]]
        for name, kind in (("written", DocumentRows), ("not_written", NotWritten)):
            raw[name] = [kind(**{**each, "source": Source(**each["source"])}) for each in raw[name]]
        return cls(**{**raw, "totals": Totals(**raw["totals"])})


@dataclass
class _Pieces:
    """A document whose passages come in several reports: how many are there, and how many it has.

    `places` are the rows that will be committed unless the document is left out after all.
    """

    document_id: str
    passages: int = 0
    wanted: int | None = None
    places: list[Place] = field(default_factory=list)


class RunTotals:
    """The totals of all workers' reports; they also decide what the writer will commit.

    Args:
        writer: The store's writer. The caller commits it.
        skip: Whether a document that cannot be read or compressed is left out; otherwise it ends the run.
        on_ignore: Called with a sentence on each thing that the corpus leaves out by rule.
        on_document: Called with the id of each document.
    """

    def __init__(
        self,
        writer: StoreWriter,
        *,
        skip: bool,
        on_ignore: Callable[[str], None],
        on_document: Callable[[str], None],
    ) -> None:
        self.counts = Counts()
        self._writer = writer
        self._may_skip = skip
        self._on_ignore = on_ignore
        self._on_document = on_document
        self._seen = UniqueIds()
        self._updated: set[str] = set()
        self._skipped: list[str] = []
        self._left_out: dict[Source, str] = {}
        self._workers: dict[str, WorkerReport] = {}
        self._handovers = Handovers()
        self._pieces: dict[Source, _Pieces] = {}

    def take(self, report: ShardReport) -> None:
        """Take a report into account.

        Args:
            report: The report of one encoder.

        Raises:
            KnowledgeBaseError: When a document ends the run, or a part of the corpus was read twice and was
                not the same.
        """
        for run in report.runs:
            self._handovers.take(run)
        for not_written in report.not_written:
            self._take_not_written(not_written)
        if report.entry is None:
            return
        entry = unpack_entry(report.entry)
        self._writer.adopt(entry, report.totals)
        for rows in report.written:
            self._take_written(rows, entry.name)
        counts = self.counts
        counts.passages += report.totals.passages
        counts.reused += report.reused
        counts.tokens += report.tokens
        counts.latents += report.latents
        done = self._workers.get(report.worker, WorkerReport(report.worker, 0, 0, 0.0))
        self._workers[report.worker] = WorkerReport(
            done.worker,
            done.passages + report.totals.passages,
            done.tokens + report.tokens,
            done.seconds + report.seconds,
        )

    def finish(self, parts: int) -> AddReport:
        """Settle the changes once all reports are in.

        First check that all documents are whole. Then remove rows that were written for documents that are
        left out after all. Last, delete the earlier versions of updated documents, except those of documents
        left out: these keep the earlier version.

        Args:
            parts: The number of parts of the corpus.

        Returns:
            What was added.

        Raises:
            KnowledgeBaseError: When rows of a part, or passages of a document, are missing.
            ValueError: When there were no documents.
        """
        self._handovers.check(parts)
        for source, pieces in self._pieces.items():
            if source not in self._left_out:
                raise KnowledgeBaseError(
                    f"Passages of {pieces.document_id!r} are missing: nothing was committed. Run the same "
                    "command again."
                )
        if not self.counts.documents and not self._skipped:
            raise ValueError("There are no documents to add.")
        # A document that is left out is never whole, so all that is there of it is noted in its pieces.
        pieces_left = (self._pieces.get(source) for source in self._left_out)
        if places := [place for pieces in pieces_left if pieces for place in pieces.places]:
            self._drop(places)
        left_out = {name for name in self._left_out.values() if name}
        for document_id in self._updated - left_out:
            self._writer.delete_document(document_id)
        workers = tuple(self._workers[name] for name in sorted(self._workers))
        return replace(self.counts.report(), skipped=tuple(self._skipped), workers=workers)

    def _take_not_written(self, not_written: NotWritten) -> None:
        if not_written.kind == "ignored":
            self._on_ignore(not_written.message)
            return
        if not not_written.document_id:
            self._skip(not_written.message)
            return
        is_new = self._note(not_written)
        if is_new is None:
            return
        if not_written.kind == "problem":
            if not_written.source not in self._left_out:
                self._left_out[not_written.source] = not_written.document_id
                self._skip(not_written.message)
                if not is_new:  # An earlier report with some of its passages counted it.
                    self._count(not_written, -1)
        elif not_written.kind == "unchanged":
            self.counts.unchanged += 1
        else:
            self._count(not_written, 1)
            taken = self._writer.take_over(
                not_written.document_id, bytes.fromhex(not_written.document_hash)
            )
            if not taken:
                raise KnowledgeBaseError(
                    f"What a run before had finished of {not_written.document_id!r} is gone: something else "
                    "has removed it meanwhile. Run the same command again."
                )
            self.counts.passages += taken
            self.counts.reused += taken

    def _take_written(self, rows: DocumentRows, fragment: str) -> None:
        self._piece_together(rows)
        is_new = self._note(rows)
        places = [(fragment, row) for row in range(rows.first, rows.first + rows.rows)]
        if is_new is None or rows.source in self._left_out:
            self._drop(places)
            return
        if rows.source in self._pieces:
            self._pieces[rows.source].places += places
        if is_new:
            self._count(rows, 1)

    def _piece_together(self, rows: DocumentRows) -> None:
        """Count the passages of a document until all are there."""
        pieces = self._pieces.pop(rows.source, None) or _Pieces(rows.document_id)
        pieces.passages += rows.rows
        if rows.ended:
            pieces.wanted = rows.ordinal + rows.rows
        if pieces.passages != pieces.wanted:
            self._pieces[rows.source] = pieces

    def _note(self, of: NotWritten | DocumentRows) -> bool | None:
        """Whether a document is seen for the first time; None if another document has its id."""
        source = of.source
        before = self._seen.first(of.document_id, source.part, source.number)
        if before is None:
            self._on_document(of.document_id)
            return True
        if before == (source.part, source.number):
            return False
        if source not in self._left_out:
            self._left_out[source] = ""  # The id belongs to the other document, which stays.
            self._skip(f"{of.document_id}: another document has the same id; ids must be unique.")
        return None

    def _count(self, of: NotWritten | DocumentRows, documents: int) -> None:
        if of.updated:
            self.counts.updated += documents
            self._updated.add(of.document_id)
        else:
            self.counts.added += documents

    def _drop(self, places: list[Place]) -> None:
        self._writer.drop_adopted(places)
        self.counts.passages -= len(places)

    def _skip(self, message: str) -> None:
        if not self._may_skip:
            raise KnowledgeBaseError(message)
        self._skipped.append(message)
