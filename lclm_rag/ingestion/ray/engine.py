"""Run the compressor over a corpus on a Ray cluster: the driver's side."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lclm_rag import errors
from lclm_rag.checkpoint import OWN, Checkpoint
from lclm_rag.errors import KnowledgeBaseError, LclmRagError
from lclm_rag.ingestion.passages import Splitting
from lclm_rag.ingestion.ray.attempts import Notes
from lclm_rag.ingestion.ray.faults import FURTHER_TRIES
from lclm_rag.ingestion.ray.reports import RunTotals, ShardReport
from lclm_rag.ingestion.ray.workers import (
    EncodeShards,
    Job,
    pack_fragments,
    packed_parts,
    read_documents,
    read_part,
)
from lclm_rag.offline import require_online
from lclm_rag.store import StoreWriter
from lclm_rag.types import AddReport, Document, DocumentParts

if TYPE_CHECKING:
    from lclm_rag.indexing.points import OnPut, ServerPoints

__all__ = ["RayEngine", "add_documents_on_ray"]

_SHARD_BYTES = 4 * 2**20
"""The size of a shard, in bytes of text and token ids.

This is about half a million tokens, and the work that is lost and repeated when a worker dies.
"""

_RESTARTS = 100
"""Restarts of an actor, and further tries of a task, that Ray allows.

Machines come and go in a long run, and a worker that dies also costs the tasks a try that only waited for it.
A task that is to blame is ended by `Attempts`, long before; an actor that never starts must end the run, too.
"""

_READER_CPUS = 0.5
"""The CPUs that a reader asks Ray for."""

_DOCUMENTS_AT_ONCE = 1_000
_CHARACTERS_AT_ONCE = 4 * 2**20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayEngine:
    """Compress on a Ray cluster: `KnowledgeBase.add(documents, engine=RayEngine(encoders=8))`.

    All machines need this package and the checkpoint, and must reach the knowledge base's folder (shared file
    system or object store) under the same name.

    Attributes:
        encoders: The number of actors that hold an encoder. A pair such as (2, 8) lets Ray start more, up to
            the second number, if there is work for them. On a cluster they wait until there is room for them.
        gpus: The GPUs of each encoder; a fraction lets several share one. None means 0 if the knowledge
            base's device is "cpu", else 1 if the cluster has any GPU now, else 0, with a warning. With a
            number, encoders wait for GPUs that the cluster does not have yet.
        cpus: The threads of each encoder without a GPU.
        address: The cluster's address, as for `ray.init`. None means the cluster in RAY_ADDRESS if that is
            set, else Ray on this machine.
        on_error: What happens if a document cannot be read or compressed, or workers die at it: "fail" ends
            the run with nothing changed; "skip" leaves the document out and lists it in `AddReport.skipped`.
        index_writers: The most processes that put passages on a Qdrant server at once. If the index has an
            embedder, each holds one, on `gpus` GPUs or on what each would get of the cluster's, at least a
            quarter of one.
        on_ignore: Called with a sentence on each thing that the corpus leaves out by rule.

    Raises:
        ValueError: When a setting is out of its range.
    """

    encoders: int | tuple[int, int] = 1
    gpus: float | None = None
    cpus: int = 1
    address: str | None = None
    on_error: Literal["fail", "skip"] = "fail"
    index_writers: int = 8
    on_ignore: Callable[[str], None] = field(default=lambda sentence: None, repr=False)

    def __post_init__(self) -> None:
        least, most = self.bounds
        if not 1 <= least <= most:
            raise ValueError(
                f"encoders must be at least 1, and (least, most), not {self.encoders}."
            )
        if self.index_writers < 1:
            raise ValueError(f"index_writers must be at least 1, not {self.index_writers}.")
        if self.cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {self.cpus}.")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus must not be negative, not {self.gpus}.")
        if self.on_error not in ("fail", "skip"):
            raise ValueError(f'on_error is "fail" or "skip", not {self.on_error!r}.')

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the most encoders."""
        return (self.encoders, self.encoders) if isinstance(self.encoders, int) else self.encoders

    def reach(self, url: str) -> None:
        """Check that the cluster reaches a Qdrant server, before anything is compressed.

        Args:
            url: The server's URL.

        Raises:
            PassageIndexError: When a machine of the cluster cannot reach it, or is not let in.
            KnowledgeBaseError: When the Ray job fails.
            ImportError: When Ray is not installed.
        """
        from lclm_rag.ingestion.ray.upserts import reach_from_ray

        ray = _ray()
        _connect(ray, self)
        with _ray_errors(ray):
            reach_from_ray(ray, url)

    def upsert(self, points: ServerPoints, on_put: OnPut) -> None:
        """Let the cluster put passages on a Qdrant server.

        Args:
            points: The passages and the server.
            on_put: Called with the name of each fragment of which the server has all rows.

        Raises:
            PassageIndexError: When the server fails.
            KnowledgeBaseError: When the Ray job fails.
            ImportError: When Ray is not installed.
        """
        from lclm_rag.ingestion.ray.upserts import put_on_ray

        ray = _ray()
        _connect(ray, self)
        with _ray_errors(ray), _data_settings(ray):
            put_on_ray(
                ray,
                points,
                on_put,
                writers=self.index_writers,
                gpus=self.gpus,
                threads=self.cpus,
            )


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
    """Do what `lclm_rag.ingestion.local.add_documents` does, on many machines.

    This process reads a stream of documents, which then wait in Ray's object store; that spills to disk.
    `DocumentParts` are read by the workers.

    Args:
        writer: The store's writer. The caller commits it.
        documents: The documents, or parts of a corpus.
        checkpoint: The store's checkpoint.
        splitting: How documents become passages.
        engine: The cluster and its encoders.
        device: The encoders' device if they have GPUs; without GPUs it is always the CPU.
        dtype: The encoders' dtype.
        compressor_options: Further options of `Compressor.from_pretrained`.
        on_progress: Called with the counts so far after each report of an encoder.
        on_document: Called with each document's id.

    Returns:
        What was added.

    Raises:
        KnowledgeBaseError: When a document ends the run, this process's own Ray lacks GPUs or CPUs, or the
            Ray job fails.
        ValueError: When there are no documents.
        ImportError: When Ray is not installed.
    """
    ray = _ray()
    _connect(ray, engine)
    gpus = _gpus(ray, engine, device)
    _check_room(ray, engine, gpus)
    folder = writer.base.folder
    job = Job(
        store=str(folder if folder.local is None else folder.local.resolve()),
        version=writer.base.version,
        uncommitted=ray.put(list(writer.compressed.uncommitted.entries())),
        layout=writer.layout,
        checkpoint=checkpoint.name if checkpoint.name in OWN else _everywhere(checkpoint),
        splitting=splitting,
        device=device if gpus else "cpu",
        dtype=dtype,
        compressor_options=dict(compressor_options),
        threads=engine.cpus,
        resumable=writer.resumable,
        attempts=_notes(ray),
    )
    tally = RunTotals(
        writer,
        skip=engine.on_error == "skip",
        on_ignore=engine.on_ignore,
        on_document=on_document,
    )
    try:
        with _ray_errors(ray):
            work, count = _work(ray, documents, job)
            with closing(_run(ray, work, job, engine, gpus)) as reports:
                for report in reports:
                    tally.take(report)
                    on_progress(tally.counts.report())
            added = tally.finish(count)
            _pack(ray, writer, job)
            return added
    finally:
        with suppress(ray.exceptions.RayError):  # Ray is gone, and the actor with it.
            ray.kill(job.attempts)


def _work(ray: Any, documents: Iterable[Document] | DocumentParts, job: Job) -> tuple[Any, int]:
    """The data set of the readers' rows, and the number of parts that they read."""
    readers = {"num_cpus": _READER_CPUS, "max_retries": _RESTARTS, "fn_kwargs": {"job": job}}
    with _data_settings(ray):
        if isinstance(documents, DocumentParts):
            # A block for each, so that no task gets more than its own part.
            parts = packed_parts(documents.parts)
            source = ray.data.from_items(parts, override_num_blocks=max(1, len(parts)))
            return source.map_batches(read_part, batch_size=1, **readers), len(parts)
        tables = list(map(ray.put, _document_tables(documents)))
        source = ray.data.from_arrow_refs(tables)
        work = source.map_batches(
            read_documents, batch_size=None, batch_format="pyarrow", **readers
        )
        return work, len(tables)


def _run(
    ray: Any, work: Any, job: Job, engine: RayEngine, gpus: float
) -> Generator[ShardReport, None, None]:
    with _data_settings(ray):
        least, most = engine.bounds
        # A shard is whatever a reader handed over, and `map_batches` demands a number of rows for GPUs.
        shards = work.map_batches_internal(
            EncodeShards,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(
                min_size=least, max_size=most, enable_true_multi_threading=True
            ),
            max_concurrency=2,  # One compresses while one writes.
            num_gpus=gpus or None,
            num_cpus=_encoder_cpus(engine, gpus),
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
    for row in shards.iter_rows():
        yield from ShardReport.parse(row["reports"])


def _pack(ray: Any, writer: StoreWriter, job: Job) -> None:
    """Make large fragments of those that the encoders have written."""
    kept = {"num_cpus": 1, "max_retries": FURTHER_TRIES, "retry_exceptions": [OSError]}
    pack = ray.remote(pack_fragments).options(**kept)
    waiting = {pack.remote(packing, job): packing for packing in writer.to_pack()}
    while waiting:
        (done, *_), _ = ray.wait([*waiting])
        packing, packed = waiting.pop(done), ray.get(done)
        if packed is not None:
            writer.packed(packing, packed)


@contextmanager
def _data_settings(ray: Any) -> Iterator[None]:
    """Settings for the data sets that are made within the context. Each keeps them afterwards."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "target_max_block_size": _SHARD_BYTES,
        # No limit: machines may be waited for, and a shard takes long on a CPU.
        "execution_no_progress_timeout_s": -1,
        # On a terminal, Ray's live display and ours would overwrite each other.
        "enable_progress_bars": context.enable_progress_bars and not sys.stderr.isatty(),
    }
    before = {name: getattr(context, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        with warnings.catch_warnings():
            # The number of a worker's restarts has no named parameter yet.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _document_tables(documents: Iterable[Document]) -> Iterator[pa.Table]:
    """Documents in tables, with their source: the number of the table, and the document's number in it."""
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
    import ray.util.scheduling_strategies

    return ray


def _connect(ray: Any, engine: RayEngine) -> None:
    if ray.is_initialized():
        return
    if engine.address is None and "RAY_ADDRESS" not in os.environ:
        ray.init(include_dashboard=False)
    else:
        require_online(f"the Ray cluster {engine.address or os.environ['RAY_ADDRESS']}")
        ray.init(address=engine.address)


def _gpus(ray: Any, engine: RayEngine, device: str) -> float:
    """The GPUs that each encoder asks Ray for."""
    if engine.gpus is not None:
        return engine.gpus
    if device == "cpu":
        return 0.0
    if ray.cluster_resources().get("GPU", 0):
        return 1.0
    _log.warning(
        "Ray has no GPU now, so the encoders run on CPUs; gpus=1 (--gpus-per-encoder 1) waits for GPUs."
    )
    return 0.0


def _encoder_cpus(engine: RayEngine, gpus: float) -> float:
    """The CPUs that each encoder asks Ray for, which are fewer than it uses.

    An actor pool that holds every CPU leaves none for the readers, and waits for them forever (ray issue
    44687).
    """
    return 0.5 if gpus else engine.cpus - 0.25


def _check_room(ray: Any, engine: RayEngine, gpus: float) -> None:
    """Say what the encoders will have to wait for, and refuse what cannot come."""
    most = engine.bounds[1]
    there = ray.cluster_resources()
    needed = {"GPU": most * gpus, "CPU": most * _encoder_cpus(engine, gpus) + _READER_CPUS}
    if all(number <= there.get(name, 0) for name, number in needed.items()):
        return
    names = [name for name in needed if needed[name]]
    wanted, found = (
        " and ".join(f"{numbers.get(name, 0):g} {name}s" for name in names)
        for numbers in (needed, there)
    )
    sentence = f"{most} encoders and a reader need {wanted}, and Ray has {found}"
    if _is_own(ray):
        raise KnowledgeBaseError(
            f"{sentence} on this machine; ask for fewer encoders, or for less for each of them."
        )
    _log.warning("%s now: what is missing is waited for.", sentence)


def _is_own(ray: Any) -> bool:
    """Whether this process has started its own Ray, which cannot grow.

    Nothing tells whether another one can: in Ray 2.60 only some platforms publish a cluster's limits, and a
    cluster that grows from zero begins as one machine without GPUs.
    """
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


@contextmanager
def _ray_errors(ray: Any) -> Iterator[None]:
    """Raise the errors of workers as if they had occurred in this process."""
    try:
        yield
    except ray.exceptions.RayError as error:
        own = _own_error(ray, error)
        if own is not None:
            raise own from error
        reason = str(error).strip().splitlines()[-1]
        # Of what an actor raised when it was made, Ray keeps only the traceback's text.
        name, _, sentence = reason.removeprefix(f"{errors.__name__}.").partition(": ")
        if name in errors.__all__ and sentence:
            raise getattr(errors, name)(sentence) from error
        raise KnowledgeBaseError(f"The Ray job failed: {reason}") from error


def _notes(ray: Any) -> Any:
    """An actor beside the driver, which lives as long."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    # If it is killed and starts again, it knows nothing of earlier deaths. This may end the run, but no
    # document is lost: `handovers` sees to that.
    kept = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Notes).options(scheduling_strategy=here, **kept).remote()


def _own_error(ray: Any, error: BaseException) -> Exception | None:
    """The error that a worker raised, if it is one that a person is meant to read."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        # Ray's errors are of the class of the worker's error as well, but their message is a traceback.
        if isinstance(each, LclmRagError | OSError) and not isinstance(
            each, ray.exceptions.RayError
        ):
            return each
        pending += [each.__cause__, each.__context__, getattr(each, "cause", None)]
    return None


def _everywhere(checkpoint: Checkpoint) -> str:
    """The checkpoint's name for other machines: the absolute path if it is a folder."""
    path = Path(checkpoint.name).expanduser()
    return str(path.resolve()) if path.is_dir() else checkpoint.name
