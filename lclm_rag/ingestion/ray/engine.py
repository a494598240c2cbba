"""Run the compressor over a corpus on a Ray cluster: the driver's side."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lclm_rag.checkpoint import BUNDLED, Checkpoint
from lclm_rag.errors import KnowledgeBaseError, LclmRagError
from lclm_rag.ingestion.passages import Splitting
from lclm_rag.ingestion.ray.attempts import forget_attempts, suspects
from lclm_rag.ingestion.ray.reports import RunTotals, ShardReport
from lclm_rag.ingestion.ray.workers import (
    EncodeShards,
    Job,
    read_documents,
    read_part,
    upsert_fragments,
)
from lclm_rag.storage import Folder
from lclm_rag.store import StoreWriter
from lclm_rag.types import AddReport, Document, DocumentParts

if TYPE_CHECKING:
    from lclm_rag.indexing.server import ServerPoints

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
    its threads. address: of the cluster, as for `ray.init`; None: the one that RAY_ADDRESS names, or one on
    this machine. on_error: a document that cannot be read or compressed, or at which workers die, "fail" ends
    the run with nothing changed; "skip" leaves it out and lists it in `AddReport.skipped`. on_ignore: is told
    what is left out of a corpus by rule.

    All machines need this package and the checkpoint, and must reach the knowledge base's folder (shared file
    system or object store) under the same name.
    """

    encoders: int | tuple[int, int] = 1
    gpus: float | None = None
    cpus: int = 1
    address: str | None = None
    on_error: Literal["fail", "skip"] = "fail"
    on_ignore: Callable[[str], None] = field(default=lambda sentence: None, repr=False)

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
    compressor_options: Mapping[str, Any],
    on_progress: Callable[[AddReport], None],
    on_document: Callable[[str], None] = lambda document_id: None,
) -> AddReport:
    """As `lclm_rag.ingestion.local.add_documents`, on many machines. The writer is not committed here.

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
        uncommitted=tuple(writer.compressed.uncommitted.manifest.fragments),
        layout=writer.layout,
        checkpoint=checkpoint.name if checkpoint.name == BUNDLED else _everywhere(checkpoint),
        splitting=splitting,
        parts=tuple(parts),
        device=device if gpus else "cpu",
        dtype=dtype,
        compressor_options=dict(compressor_options),
        threads=engine.cpus,
        resumable=writer.resumable,
    )
    forget_attempts(folder)
    tally = RunTotals(
        writer,
        skip=engine.on_error == "skip",
        on_ignore=engine.on_ignore,
        on_document=on_document,
    )
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
    sentence = f"{engine.bounds[1]} encoders and a reader need {needed:g} CPUs"
    if len(ray.nodes()) == 1:
        raise KnowledgeBaseError(
            f"{sentence}, and Ray has {there:g} here; ask for fewer encoders, or fewer CPUs for each."
        )
    _log.warning("%s, and the cluster has %g: they wait until it grows.", sentence, there)


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
