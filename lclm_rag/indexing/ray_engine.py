"""Run the compressor over a corpus on a Ray cluster: the driver's side."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from importlib import util
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from lclm_rag.answer import AddReport, WorkerReport
from lclm_rag.checkpoint import BUNDLED, Checkpoint
from lclm_rag.documents import Document, DocumentParts
from lclm_rag.errors import KnowledgeBaseError, LclmRagError
from lclm_rag.folders import Folder
from lclm_rag.indexing.attempts import forget_attempts, suspects
from lclm_rag.indexing.local import Counts
from lclm_rag.indexing.passage_index import ServerPoints
from lclm_rag.indexing.passages import Splitting
from lclm_rag.indexing.ray_workers import (
    EncodeShards,
    Job,
    Left,
    ShardReport,
    Written,
    read_documents,
    read_part,
    upsert_fragments,
)
from lclm_rag.indexing.work_rows import Source
from lclm_rag.seen_ids import SeenIds
from lclm_rag.store import StoreWriter
from lclm_rag.store.manifest import unpack_entry
from lclm_rag.store.store import Place

__all__ = ["RayEngine", "add_documents_on_ray"]

_SHARD_BYTES = 4 * 2**20
"""Of text and token ids: about half a million tokens, which is what a worker that dies has to do again."""

_TRIES = 4
"""Of a task whose worker died, besides the first; a document at which workers die is found in 3."""

_RESTARTS = 100
"""Of an actor. Machines come and go in a long run; but what can never start must end."""

_READER_CPUS = 0.5
"""That a reader asks for."""

_DOCUMENTS_AT_ONCE = 1_000
_CHARACTERS_AT_ONCE = 4 * 2**20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayEngine:
    """Compress on a Ray cluster: `KnowledgeBase.add(documents, engine=RayEngine(encoders=8))`.

    encoders: how many actors hold an encoder; (2, 8) lets Ray start more as there is work. gpus: of each, a
    fraction where several share one; None: 1 where the cluster has any, else 0. cpus: of each without a GPU,
    its threads. token_budget: tokens in one batch of an encoder (default: `Compressor`'s). address: of the
    cluster, as for `ray.init`; None: the one that RAY_ADDRESS names, or one on this machine. on_error: a
    document that cannot be read or compressed, or at which workers die, "fail" ends the run with nothing
    changed; "skip" leaves it out and lists it in `AddReport.skipped`. on_ignore: is told what is left out of
    a corpus by rule.

    All machines need this package and the checkpoint, and must reach the knowledge base's folder (shared file
    system or object store) under the same name.
    """

    encoders: int | tuple[int, int] = 1
    gpus: float | None = None
    cpus: int = 1
    token_budget: int | None = None
    address: str | None = None
    on_error: Literal["fail", "skip"] = "fail"
    on_ignore: Callable[[str], None] = field(default=lambda said: None, repr=False)

    def __post_init__(self) -> None:
        least, most = self.bounds
        if not 1 <= least <= most:
            raise ValueError(
                f"encoders must be at least 1, and (least, most), not {self.encoders}."
            )
        if self.cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {self.cpus}.")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus must not be negative, not {self.gpus}.")
        if self.on_error not in ("fail", "skip"):
            raise ValueError(f'on_error is "fail" or "skip", not {self.on_error!r}.')

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and most encoders."""
        return (self.encoders, self.encoders) if isinstance(self.encoders, int) else self.encoders

    def upsert(self, points: ServerPoints) -> None:
        """Have points put on a Qdrant server by the cluster."""
        ray = _ray()
        _connect(ray, self)
        rows = [{"number": number} for number in range(len(points.rows))]
        with _ray_errors(ray, None), _data_settings(ray):
            fragments = ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))
            done = fragments.map_batches(
                upsert_fragments,
                batch_size=1,
                num_cpus=_READER_CPUS,
                max_retries=_TRIES,
                fn_kwargs={"points": points},
            )
            for _ in done.iter_rows():
                pass


def add_documents_on_ray(
    writer: StoreWriter,
    documents: Iterable[Document] | DocumentParts,
    checkpoint: Checkpoint,
    splitting: Splitting,
    engine: RayEngine,
    *,
    device: str,
    dtype: str,
    on_progress: Callable[[AddReport], None],
    on_document: Callable[[str], None] = lambda document_id: None,
) -> AddReport:
    """As `lclm_rag.indexing.local.add_documents`, on many machines. The writer is not committed here.

    A stream of documents is read here, and waits in Ray's object store, which spills to disk; parts are read
    by the workers. Raises KnowledgeBaseError where a document ends the run, or workers cannot be had;
    ImportError without Ray.
    """
    ray = _ray()
    _connect(ray, engine)
    gpus = _gpus(ray, engine)
    _check_room(ray, engine, gpus)
    folder = writer.base.folder
    parts = documents.parts if isinstance(documents, DocumentParts) else ()
    job = Job(
        store=str(folder if folder.local is None else folder.local.resolve()),
        version=writer.base.version,
        left=tuple(writer.compressed.left.manifest.fragments),
        layout=writer.layout,
        checkpoint=checkpoint.name if checkpoint.name == BUNDLED else _everywhere(checkpoint),
        splitting=splitting,
        parts=tuple(parts),
        device=device if gpus else "cpu",
        dtype=dtype,
        token_budget=engine.token_budget,
        threads=engine.cpus,
        resumable=writer.resumable,
    )
    forget_attempts(folder)
    tally = _Tally(writer, engine, on_document)
    with _ray_errors(ray, folder), closing(_run(ray, documents, job, engine, gpus)) as reports:
        for report in reports:
            tally.take(report)
            on_progress(tally.counts.report())
    return tally.finish()


def _run(
    ray: Any,
    documents: Iterable[Document] | DocumentParts,
    job: Job,
    engine: RayEngine,
    gpus: float,
) -> Generator[ShardReport, None, None]:
    with _data_settings(ray):
        readers = {"num_cpus": _READER_CPUS, "max_retries": _TRIES, "fn_kwargs": {"job": job}}
        if isinstance(documents, DocumentParts):
            numbers = [{"part": number} for number in range(len(job.parts))]
            source = ray.data.from_items(numbers, override_num_blocks=max(1, len(numbers)))
            work = source.map_batches(read_part, batch_size=1, **readers)
        else:
            source = ray.data.from_arrow_refs(list(map(ray.put, _document_tables(documents))))
            work = source.map_batches(
                read_documents, batch_size=None, batch_format="pyarrow", **readers
            )
        least, most = engine.bounds
        shards = work.map_batches(
            EncodeShards,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
            num_gpus=gpus or None,
            num_cpus=_encoder_cpus(engine, gpus),
            max_restarts=_RESTARTS,
            max_task_retries=_TRIES,
        )
    for row in shards.iter_rows():
        yield ShardReport.parse(row["report"])


@contextmanager
def _data_settings(ray: Any) -> Iterator[None]:
    """For the data sets that are made meanwhile: each keeps the settings of that time."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "target_max_block_size": _SHARD_BYTES,
        # On a terminal, two live displays would write over each other.
        "enable_progress_bars": context.enable_progress_bars and not sys.stderr.isatty(),
    }
    before = {name: getattr(context, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        with warnings.catch_warnings():
            # How often a worker is started again has no named parameter yet.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _document_tables(documents: Iterable[Document]) -> Iterator[pa.Table]:
    """Some documents at a time, with where they come from: the number of the table, and theirs in it."""
    rows: list[dict[str, Any]] = []
    part = size = 0
    for document in documents:
        metadata = json.dumps(dict(document.metadata), ensure_ascii=False)
        row = {"id": document.id, "text": document.text, "metadata": metadata}
        rows.append({"part": part, "number": len(rows), **row})
        size += len(document.text) + len(metadata)
        if len(rows) >= _DOCUMENTS_AT_ONCE or size >= _CHARACTERS_AT_ONCE:
            yield _document_table(rows)
            rows, part, size = [], part + 1, 0
    if rows:
        yield _document_table(rows)


def _document_table(rows: list[dict[str, Any]]) -> pa.Table:
    texts = [(name, pa.large_string()) for name in ("id", "text", "metadata")]
    schema = pa.schema([("part", pa.int64()), ("number", pa.int64()), *texts])
    return pa.Table.from_pylist(rows, schema)


class _Tally:
    """What the reports of all workers come to, and what is to be committed."""

    def __init__(
        self, writer: StoreWriter, engine: RayEngine, on_document: Callable[[str], None]
    ) -> None:
        self.counts = Counts()
        self._writer = writer
        self._engine = engine
        self._on_document = on_document
        self._seen = SeenIds()
        self._updated: set[str] = set()
        self._skipped: list[str] = []
        self._left_out: dict[Source, str] = {}
        self._workers: dict[str, WorkerReport] = {}

    def take(self, report: ShardReport) -> None:
        """Raises KnowledgeBaseError where a document ends the run."""
        for left in report.left:
            self._take_left(left)
        if report.entry is None:
            return
        entry = unpack_entry(report.entry)
        self._writer.adopt(entry, report.totals)
        for run in report.written:
            self._take_written(run, entry.name)
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

    def finish(self) -> AddReport:
        """All reports are there: take out what was written of documents that are left out after all, and
        delete what was replaced."""
        if not self.counts.documents and not self._skipped:
            raise ValueError("There are no documents to add.")
        left_out = {name for name in self._left_out.values() if name}
        if left_out:
            self._drop(self._writer.adopted_places(left_out))
        for document_id in self._updated - left_out:
            self._writer.delete_document(document_id)
        workers = tuple(self._workers[name] for name in sorted(self._workers))
        return replace(self.counts.report(), skipped=tuple(self._skipped), workers=workers)

    def _take_left(self, left: Left) -> None:
        if left.kind == "ignored":
            self._engine.on_ignore(left.said)
            return
        if not left.document_id:
            self._skip(left.said)
            return
        is_new = self._note(left)
        if is_new is None:
            return
        if left.kind == "problem":
            if left.source not in self._left_out:
                self._left_out[left.source] = left.document_id
                self._skip(left.said)
            if not is_new:  # Some of its passages came before.
                self._count(left, -1)
        elif left.kind == "unchanged":
            self.counts.unchanged += 1
        else:
            self._count(left, 1)
            taken = self._writer.take_over(left.document_id, bytes.fromhex(left.document_hash))
            if not taken:
                raise KnowledgeBaseError(
                    f"What a run before had finished of {left.document_id!r} is gone: something else has "
                    "removed it meanwhile. Run the same command again."
                )
            self.counts.passages += taken
            self.counts.reused += taken

    def _take_written(self, run: Written, fragment: str) -> None:
        is_new = self._note(run)
        if is_new is None or run.source in self._left_out:
            self._drop([(fragment, row) for row in range(run.first, run.first + run.rows)])
        elif is_new:
            self._count(run, 1)

    def _note(self, of: Left | Written) -> bool | None:
        """Whether a document is seen for the first time; None where another has its id."""
        source = of.source
        before = self._seen.first(of.document_id, source.part, source.number)
        if before is None:
            self._on_document(of.document_id)
            return True
        if before == (source.part, source.number):
            return False
        if source not in self._left_out:
            self._left_out[source] = ""  # Its id is the other's, which stays.
            self._skip(f"{of.document_id}: another document has the same id; ids must be unique.")
        return None

    def _count(self, of: Left | Written, documents: int) -> None:
        if of.updated:
            self.counts.updated += documents
            self._updated.add(of.document_id)
        else:
            self.counts.added += documents

    def _drop(self, places: list[Place]) -> None:
        self._writer.drop_adopted(places)
        self.counts.passages -= len(places)

    def _skip(self, said: str) -> None:
        if self._engine.on_error == "fail":
            raise KnowledgeBaseError(said)
        self._skipped.append(said)


# --- Ray ------------------------------------------------------------------------------------------


def _ray() -> Any:
    if util.find_spec("ray") is None:
        raise ImportError("Compressing on Ray needs ray: pip install 'lclm-rag[ray]'")
    import ray
    import ray.data

    return ray


def _connect(ray: Any, engine: RayEngine) -> None:
    if ray.is_initialized():
        return
    if engine.address is None and "RAY_ADDRESS" not in os.environ:
        ray.init(include_dashboard=False)
    else:
        ray.init(address=engine.address)


def _gpus(ray: Any, engine: RayEngine) -> float:
    """That each encoder asks for."""
    there = ray.cluster_resources().get("GPU", 0)
    if engine.gpus and not there:
        raise KnowledgeBaseError(
            f"Each encoder is to have {engine.gpus:g} GPUs, and the Ray cluster has none."
        )
    return (1.0 if there else 0.0) if engine.gpus is None else engine.gpus


def _encoder_cpus(engine: RayEngine, gpus: float) -> float:
    """That each encoder asks Ray for: less than it uses, because an actor pool that holds every CPU leaves
    none to the readers, and waits for them for ever (ray issue 44687)."""
    return 0.5 if gpus else engine.cpus - 0.25


def _check_room(ray: Any, engine: RayEngine, gpus: float) -> None:
    there = ray.cluster_resources().get("CPU", 0)
    needed = engine.bounds[1] * _encoder_cpus(engine, gpus) + _READER_CPUS
    if needed <= there:
        return
    said = f"{engine.bounds[1]} encoders and a reader need {needed:g} CPUs"
    if len(ray.nodes()) == 1:
        raise KnowledgeBaseError(
            f"{said}, and Ray has {there:g} here; ask for fewer encoders, or fewer CPUs for each."
        )
    _log.warning("%s, and the cluster has %g: they wait until it grows.", said, there)


@contextmanager
def _ray_errors(ray: Any, folder: Folder | None) -> Iterator[None]:
    """Errors of workers as if they had been raised here. folder: of the store, where work on documents
    leaves notes."""
    try:
        yield
    except ray.exceptions.RayError as error:
        own = _own_error(error)
        if own is not None:
            raise own from error
        if folder is not None and (names := suspects(folder)):
            raise KnowledgeBaseError(
                f"Workers died again and again while they were at {', '.join(names[:5])}: nothing was "
                "committed. Leave that out, or see in Ray's logs what killed them."
            ) from error
        reason = str(error).strip().splitlines()[-1]
        raise KnowledgeBaseError(f"The Ray job failed: {reason}") from error


def _own_error(error: BaseException) -> Exception | None:
    """What a worker raised, where it is meant for people."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, LclmRagError | OSError):
            return each
        pending += [each.__cause__, each.__context__, getattr(each, "cause", None)]
    return None


def _everywhere(checkpoint: Checkpoint) -> str:
    """How other machines name it."""
    path = Path(checkpoint.name).expanduser()
    return str(path.resolve()) if path.is_dir() else checkpoint.name
