"""Knowledge bases in object stores: S3 on loopback, and a store without conditional writes."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lclm_rag import Document, KnowledgeBase, retries
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import DamagedError, KnowledgeBaseError, StoreError
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from lclm_rag.storage import LocalFolder, ObjectFolder, open_folder
from lclm_rag.store import LatentStore, Layout, StoredPassage, compact, vacuum, writing
from lclm_rag.store import maintenance as upkeep_of_stores
from lclm_rag.store import writer as writer_of_stores
from lclm_rag.types import Passage, PassageKey, RowPlace
from support.processes import in_child

LAYOUT = Layout("bf16", "encoder", 64, "f" * 16, 4)


@dataclass
class Bucket:
    """client: boto3's."""

    client: Any

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Everything below a folder, by the name in it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix=prefix)
        names = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {name.removeprefix(prefix + "/"): self.read(name) for name in names}

    def read(self, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket="lake", Key=name)["Body"].read())

    def write(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket="lake", Key=name, Body=data)

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket="lake", Key=name)

    def flip(self, name: str, offset: int) -> bytes:
        """Change one byte; returns what was there."""
        data = self.read(name)
        self.write(name, data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        return data


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-seen")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="lake")
        yield Bucket(client)
    server.stop()


@pytest.fixture(autouse=True)
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Makes this process one that has fetched nothing yet; returns its cache folder."""
    machines = iter(range(100))

    def make() -> Path:
        folder = tmp_path / f"cache-{next(machines)}"
        monkeypatch.setenv("LCLM_RAG_CACHE", str(folder))
        return folder

    make()
    return make


@pytest.fixture
def url(bucket: Bucket, request: pytest.FixtureRequest) -> str:
    """Where there is nothing yet."""
    return f"s3://lake/{request.node.name}"


@dataclass
class Fetched:
    bytes: int = 0
    requests: int = 0

    def clear(self) -> None:
        self.bytes = self.requests = 0


@pytest.fixture
def fetched(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetched]:
    """What comes out of the bucket, counted where it arrives."""
    from s3fs import S3FileSystem

    found = Fetched()
    cat_file = S3FileSystem._cat_file

    async def counted(self: Any, *arguments: Any, **options: Any) -> bytes:
        piece: bytes = await cat_file(self, *arguments, **options)
        found.bytes += len(piece)
        found.requests += 1
        return piece

    monkeypatch.setattr(S3FileSystem, "_cat_file", counted)
    S3FileSystem.clear_instance_cache()
    yield found
    S3FileSystem.clear_instance_cache()


@cache
def rows(document_id: str, passages: int = 16, latents: int = 1024) -> list[StoredPassage]:
    numbers = np.random.default_rng(abs(hash(document_id)) % 2**32)
    encoded = numbers.integers(0, 60, (passages, latents, LAYOUT.latent_bytes), np.uint8)
    return [
        StoredPassage(
            Passage(PassageKey(document_id, i), i, i + 1, "x", {}),
            latents * LAYOUT.compression_ratio,
            document_id.encode().ljust(32),
            i == passages - 1,
            encoded[i],
            LAYOUT,
        )
        for i in range(passages)
    ]


def add(location: Any, *documents: str, **options: Any) -> LatentStore:
    """One version with one fragment for each document."""
    with writing(location, "add", **options) as writer:
        for document in documents:
            for row in rows(document):
                writer.add(row)
            writer._flush()
        return writer.commit()


def keys(store: LatentStore) -> set[PassageKey]:
    return {row.passage.key for row in store.passages()}


# --- a knowledge base -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(
    url: str, sheets: list[FactSheet], decoder: TransformersDecoder, new_machine: Callable[[], Path]
) -> None:
    with KnowledgeBase.create(url, decoder=decoder) as kb:
        kb.add(sheet.document for sheet in sheets[:3])
        answer = kb.query(sheets[0].questions[0].question).text
        new_machine()

        def work() -> str:
            found = kb.query(sheets[0].questions[0].question).text
            assert kb.add([sheets[3].document]).added == 1
            kb.close()
            return found

        assert in_child(work) == answer
        assert (len(kb), [m.operation for m in kb.versions()]) == (3, ["create", "add", "add"])
        new_machine()
        with KnowledgeBase.open(url, decoder=decoder) as other:
            assert len(list(other.store.passages())) == 4


def test_a_knowledge_base_in_a_bucket_answers_as_one_in_a_folder(
    bucket: Bucket,
    url: str,
    tmp_path: Path,
    sheets: list[FactSheet],
    decoder: TransformersDecoder,
    new_machine: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    documents = [sheet.document for sheet in sheets[:8]]
    question = sheets[3].questions[0].question
    here = KnowledgeBase.create(tmp_path / "kb", decoder=decoder)
    there = KnowledgeBase.create(url, decoder=decoder)
    for kb in (here, there):
        kb.add(documents[:5])
        kb.add(documents[5:])
        kb.delete([documents[0].id])
        kb.compact()
    answer = here.query(question)
    assert there.query(question).text == answer.text
    assert there.path == url
    for kb in (here, there):
        kb.close()
    found = bucket.objects(url.removeprefix("s3://lake/"))
    parts = Counter(name.rpartition("/")[0] for name in found)
    files = {"manifests": 5, "fragments": 3, "lists": 4, "deletions": 1, "keys": 3}
    assert parts == {"": 1, "index": 1} | {f"store/{part}": n for part, n in files.items()}
    fragments = {p.read_bytes() for p in (tmp_path / "kb/store/fragments").iterdir()}
    assert fragments == {v for k, v in found.items() if k.startswith("store/fragments")}

    # Another machine: it takes the passage index that is there.
    machine = new_machine()
    from lclm_rag.indexing import embedded

    monkeypatch.setattr(embedded.EmbeddedIndex, "_build", None)
    with KnowledgeBase.open(url, decoder=decoder) as kb:
        assert kb.query(question).text == answer.text
        assert [m.operation for m in kb.versions()] == "create add add delete compact".split()
    published = list((machine / "index").glob("*/published/*"))
    assert len(published) == 1
    assert sum(f.stat().st_blocks * 512 for f in published[0].rglob("*")) < 2e6
    monkeypatch.undo()

    # And one that finds none, and one that finds a damaged one.
    packed = next(name for name in found if name.startswith("index"))
    path = f"{url.removeprefix('s3://lake/')}/{packed}"
    for spoil in (lambda: bucket.remove(path), lambda: bucket.write(path, found[packed][:-99])):
        spoil()
        new_machine()
        with KnowledgeBase.open(url, decoder=decoder, version=3) as kb:
            assert kb.query(question).text == answer.text


# --- reading --------------------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched_and_only_once(
    bucket: Bucket, url: str, fetched: Fetched, new_machine: Callable[[], Path]
) -> None:
    LatentStore.create(url, LAYOUT)
    size = add(url, *(f"d{i}" for i in range(8))).manifest.bytes
    assert size > 16e6
    new_machine()
    fetched.clear()
    store = LatentStore.open(url)
    wanted = [PassageKey("d1", 3), PassageKey("d4", 0), PassageKey("d1", 4)]
    found = store.read(wanted)
    assert [row.passage.key for row in found] == wanted
    assert np.array_equal(found[0].encoded, rows("d1")[3].encoded)
    print(f"{fetched.bytes:,} of {size:,} bytes in {fetched.requests} requests")
    assert fetched.bytes < size / 4
    fetched.clear()
    store.read(wanted)
    assert fetched.requests == 0
    LatentStore.open(url).read(wanted)
    assert fetched.requests == 1  # The manifest.
    # Another process, and nothing but the manifest is in the bucket.
    fragments = f"{url.removeprefix('s3://lake/')}/store/fragments"
    for name in bucket.objects(fragments):
        bucket.remove(f"{fragments}/{name}")
    done = subprocess.run(
        [sys.executable, "-c", READ, url], capture_output=True, text=True, check=True
    )
    assert done.stdout == "d1 3\nd4 0\n"


def test_a_passage_takes_three_requests_and_two_if_the_index_says_where_it_is(
    url: str, fetched: Fetched, new_machine: Callable[[], Path]
) -> None:
    LatentStore.create(url, LAYOUT)
    key, place = PassageKey("d0", 9), RowPlace(0, 9)
    assert add(url, "d0").manifest.bytes > 2e6
    for hints, requests in (({}, 3), ({key: place}, 2)):
        new_machine()
        fetched.clear()
        store = LatentStore.open(url)
        assert fetched.requests <= 4
        fetched.clear()
        (found,) = store.read([key], hints)
        assert np.array_equal(found.encoded, rows("d0")[9].encoded)
        assert fetched.requests == requests


READ = """
import sys
from lclm_rag.types import PassageKey
from lclm_rag.store import LatentStore
keys = [PassageKey("d1", 3), PassageKey("d4", 0)]
for row in LatentStore.open(sys.argv[1]).read(keys):
    print(*row.passage.key)
"""


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def test_the_cache_stays_within_its_limit_and_reading_goes_on(
    url: str, new_machine: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"d{i}" for i in range(6)]
    LatentStore.create(url, LAYOUT)
    add(url, *names)
    cache = new_machine() / "files"
    monkeypatch.setenv("LCLM_RAG_CACHE_GB", "0.005")
    store = LatentStore.open(url)
    held = {name: store.read([PassageKey(name, 2)])[0] for name in names}
    opened = dict(store._fragments)
    for _ in range(2):
        for row in store.passages():
            expected = rows(row.passage.key.document_id)[row.passage.key.ordinal]
            assert np.array_equal(row.encoded, expected.encoded)
        assert on_disk(cache) < 5.1e6
    for name, row in held.items():
        assert np.array_equal(row.encoded, rows(name)[2].encoded)
    evicted = [fragment for fragment in opened.values() if fragment.evicted()]
    assert len(evicted) >= 4
    for fragment in evicted:  # Who has it open can go on, without the file.
        assert len(list(fragment.read_all())) == 16
    assert on_disk(cache) < 5.1e6
    # Those go that were opened longest ago.
    left = set(cache.glob("*.data"))
    store.fragment(next(store.entries()).name).read(0)
    assert len(left - set(cache.glob("*.data"))) <= 1


def test_a_full_disk_is_an_error_and_not_the_end(
    url: str, new_machine: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    LatentStore.create(url, LAYOUT)
    add(url, "d0")
    cache = new_machine() / "files"
    store = LatentStore.open(url)
    row = store.read([PassageKey("d0", 0)])[0]
    for path in cache.glob("*.data"):
        path.unlink()
    from lclm_rag.storage import range_cache

    monkeypatch.setattr(range_cache, "_SPARE_BYTES", 1 << 60)
    fragment = next(iter(store._fragments.values()))
    with pytest.raises(OSError, match="No space left"):
        list(fragment.read_all())
    assert np.array_equal(row.encoded, rows("d0")[0].encoded)
    assert len(list(store.passages())) == 16


def test_what_is_damaged_in_the_cache_is_fetched_again(
    bucket: Bucket, url: str, new_machine: Callable[[], Path], fetched: Fetched
) -> None:
    LatentStore.create(url, LAYOUT)
    expected = {row.passage.key: row.encoded for row in rows("d0")}
    name = next(add(url, "d0").entries()).name
    cache = new_machine() / "files"
    LatentStore.open(url).read(expected)
    for path in (next(cache.glob("*.data")), next(cache.glob("*.range"))):
        whole = path.read_bytes()
        for offset in range(7, len(whole), 1 + len(whole) // 5):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
            store = LatentStore.open(url)
            assert {r.passage.key: r.encoded.tobytes() for r in store.read(expected)} == {
                key: encoded.tobytes() for key, encoded in expected.items()
            }
        path.write_bytes(whole[:-9])
        assert len(LatentStore.open(url).read(expected)) == 16

    # What is damaged in the bucket is an error, until it is mended there.
    path_there = f"{url.removeprefix('s3://lake/')}/fragments/{name}"
    whole = bucket.flip(path_there, 1_500_000)
    new_machine()
    store = LatentStore.open(url)
    for _ in range(2):
        with pytest.raises(DamagedError, match=f"Row 11 of fragment {url}/fragments/{name} is"):
            store.read(expected)
    bucket.write(path_there, whole)
    assert len(store.read(expected)) == 16
    bucket.write(path_there, whole[:-100_000])
    new_machine()
    with pytest.raises((DamagedError, OSError), match=f"{url}/fragments/{name}"):
        LatentStore.open(url).read(expected)


def test_verify_reads_the_bucket_and_not_the_cache(bucket: Bucket, url: str) -> None:
    from lclm_rag.verify import verify

    with KnowledgeBase.create(url, passage_tokens=64) as kb:
        kb.add(Document(f"d{i}", f"Tower {i} is {i} metres high. " * 40) for i in range(6))
    assert verify(url).problems == []
    folder = url.removeprefix("s3://lake/")
    name = next(n for n in bucket.objects(folder) if n.startswith("store/fragments"))
    whole = bucket.flip(f"{folder}/{name}", len(bucket.read(f"{folder}/{name}")) // 2)
    found = verify(url)
    assert any("its checksum does not match" in problem for problem in found.problems)
    assert any(name in problem for problem in found.problems)
    assert len(found.damaged_documents) == 1
    bucket.write(f"{folder}/{name}", whole)
    assert verify(url).problems == []


# --- writing --------------------------------------------------------------------------------------


def test_of_two_writers_one_commits_and_the_other_goes_on_from_where_it_was(url: str) -> None:
    LatentStore.create(url, LAYOUT)
    with writing(url, "add", resumable=True) as slow:
        for row in rows("slow"):
            slow.add(row)
        slow._flush()
        add(url, "fast", resumable=True)
        with pytest.raises(StoreError, match="committed by another writer meanwhile; run the same"):
            slow.commit()
    store = LatentStore.open(url)
    assert {key.document_id for key in keys(store)} == {"fast"}
    with writing(url, "add", resumable=True) as again:
        assert again.take_over("slow", b"slow".ljust(32)) == 16
        store = again.commit()
    assert {key.document_id for key in keys(store)} == {"fast", "slow"}
    assert store.manifest.fragments == 2
    assert (open_folder(url) / "uncommitted").files() == []


def test_two_runs_of_the_same_documents_at_once_lose_nothing_and_have_nothing_twice(
    url: str,
) -> None:
    LatentStore.create(url, LAYOUT)
    with writing(url, "add", resumable=True) as first:
        for row in rows("shared"):
            first.add(row)
        first._flush()
        # The second finds the first's note, and takes what is finished.
        with writing(url, "add", resumable=True) as second:
            for row in rows("second's"):
                second.add(row)
            second._flush()
            # What the first finishes from now on, the second does not see and leaves alone.
            for row in rows("first's"):
                first.add(row)
            first._flush()
            assert second.take_over("shared", b"shared".ljust(32)) == 16
            assert second.take_over("first's", b"first's".ljust(32)) == 0
            store = second.commit()
        assert {key.document_id for key in keys(store)} == {"shared", "second's"}
        with pytest.raises(StoreError, match="committed by another writer meanwhile; run the same"):
            first.commit()
    # The first's fragment is part of a version now, and stays, although its run has failed.
    assert len(LatentStore.open(url).read(LatentStore.open(url).document_keys("shared"))) == 16
    with writing(url, "add", resumable=True) as again:
        assert again.base.document_hash("shared") == b"shared".ljust(32)
        assert again.take_over("first's", b"first's".ljust(32)) == 16
        store = again.commit()
    assert sorted(row.passage.key.document_id for row in store.passages()) == sorted(
        name for name in ("shared", "second's", "first's") for _ in range(16)
    )
    assert (open_folder(url) / "uncommitted").files() == []


def test_many_writers_at_once(url: str) -> None:
    LatentStore.create(url, LAYOUT)
    ready = threading.Barrier(4)
    done: list[str] = []

    def write(name: str) -> None:
        with writing(url, "add") as writer:
            for row in rows(name, passages=1, latents=1):
                writer.add(row)
            ready.wait()
            try:
                writer.commit()
                done.append(name)
            except StoreError:
                return

    threads = [threading.Thread(target=write, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    store = LatentStore.open(url)
    assert store.version == 1
    assert {key.document_id for key in keys(store)} == set(done)


@pytest.mark.parametrize("sent_again", [True, False])
def test_a_commit_whose_answer_is_lost_is_a_commit(
    url: str, monkeypatch: pytest.MonkeyPatch, sent_again: bool
) -> None:
    from s3fs import S3FileSystem

    put = S3FileSystem._pipe_file

    async def put_and_lose(self: Any, path: str, data: bytes, **options: Any) -> None:
        await put(self, path, data, **options)
        if "manifests" in path and sent_again:
            await put(self, path, data, **options)
        elif "manifests" in path:
            raise ConnectionError("the network is gone")

    LatentStore.create(url, LAYOUT)
    add(url, "d0")
    add(url, "d1")
    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "_pipe_file", put_and_lose)
        S3FileSystem.clear_instance_cache()
        assert compact(url).version == 3
        if not sent_again:  # And nothing is heard of the store any more.
            patch.setattr(
                ObjectFolder, "read", unreachable(ObjectFolder.read, "manifests/0000000004")
            )
            with pytest.raises(OSError, match="the network is gone"):
                add(url, "d2")
    S3FileSystem.clear_instance_cache()
    assert len(keys(LatentStore.open(url))) == (32 if sent_again else 48)


def unreachable(read: Callable[..., bytes], what: str) -> Callable[..., bytes]:
    def fail(self: ObjectFolder, name: str) -> bytes:
        if what in str(self / name):
            raise OSError("the network is gone")
        return read(self, name)

    return fail


def test_what_a_dead_writer_leaves_is_unseen_and_a_day_later_reclaimed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    LatentStore.create(url, LAYOUT)
    add(url, "d0")
    folder = open_folder(url)
    writer = writer_of_stores.StoreWriter(LatentStore.open(url), "add", None, True)
    for row in rows("dead"):
        writer.add(row)
    writer._flush()
    del writer
    assert {key.document_id for key in keys(LatentStore.open(url))} == {"d0"}
    assert vacuum(url).removed == []
    assert len((folder / "fragments").files()) == 2
    monkeypatch.setattr(upkeep_of_stores, "_UNSEEN_READERS_SECONDS", -1)
    found = vacuum(url)
    assert (found.kept, found.removed) == ([1], [0])
    assert found.bytes > 2e6
    assert len((folder / "fragments").files()) == 1
    assert (folder / "uncommitted").files() == []
    assert len(keys(LatentStore.open(url))) == 16


def test_a_version_stays_for_a_day_after_it_was_the_newest(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    LatentStore.create(url, LAYOUT)
    add(url, "d0")
    add(url, "d1")
    compact(url)
    now = upkeep_of_stores.time.time()
    files = ObjectFolder.files

    def aged(self: ObjectFolder) -> Any:
        old = {"0000000000.json", "0000000001.json", "0000000002.json"}
        return [type(f)(f.name, f.size, now - 2 * 24 * 3600 * (f.name in old)) for f in files(self)]

    monkeypatch.setattr(ObjectFolder, "files", aged)
    reader = LatentStore.open(url, 2)
    assert vacuum(url).kept == [2, 3]
    assert len(keys(reader)) == 32


def test_a_writer_whose_fragments_were_vacuumed_says_so(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    LatentStore.create(url, LAYOUT)
    monkeypatch.setattr(upkeep_of_stores, "_UNSEEN_READERS_SECONDS", -1)
    with writing(url, "add", resumable=True) as writer:
        for row in rows("d0"):
            writer.add(row)
        writer._flush()
        vacuum(url)
        with pytest.raises(StoreError, match="committed; run the same command again"):
            writer.commit()
    assert LatentStore.open(url).version == 0


def test_a_store_without_conditional_writes_is_used_with_a_warning(
    bucket: Bucket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(LatentStore.create("s3://lake/conditional", LAYOUT).folder, "d0")
    assert caplog.text == ""
    LatentStore.create("memory://kb", LAYOUT)
    store = add("memory://kb", "d0", "d1")
    assert "memory://kb has no conditional writes: make sure that nobody else" in caplog.text
    assert len(keys(compact("memory://kb"))) == 32
    assert len(keys(LatentStore.open("memory://kb", 1))) == 32
    assert store.version == 1
    assert vacuum("memory://kb").removed == []
    assert [f.name for f in (store.folder / "uncommitted").files()] == []

    # One that speaks S3 and does not know the condition, or says that it does not.
    from s3fs import S3FileSystem

    put = S3FileSystem._pipe_file

    async def unknowing(self: Any, path: str, data: bytes, **options: Any) -> None:
        await put(self, path, data)

    async def refusing(self: Any, path: str, data: bytes, mode: str = "", **options: Any) -> None:
        if mode == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality")
        await put(self, path, data)

    for name, pipe in (("unknowing", unknowing), ("refusing", refusing)):
        monkeypatch.setattr(S3FileSystem, "_pipe_file", pipe)
        S3FileSystem.clear_instance_cache()
        caplog.clear()
        url = f"s3://lake/{name}"
        LatentStore.create(url, LAYOUT)
        assert add(url, "d0").version == 1
        assert f"{url} has no conditional writes" in caplog.text
    S3FileSystem.clear_instance_cache()


# --- errors ---------------------------------------------------------------------------------------


@pytest.fixture
def command(
    bucket: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs the command line; returns its exit code, stdout and stderr."""
    from s3fs import S3FileSystem

    from lclm_rag.cli.main import _run

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
            if not value:
                monkeypatch.delenv(name)
        S3FileSystem.clear_instance_cache()
        code = _run(arguments)
        return code, *capsys.readouterr()

    yield run
    S3FileSystem.clear_instance_cache()


def test_the_command_line(
    command: Callable[..., tuple[int, str, str]], url: str, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.md").write_text("The northern line opens in May.")
    code, out, error = command("build", str(tmp_path / "notes"), "--kb", url)
    assert code == 0, error
    assert out.startswith(f"{url}: 1 added")
    code, out, _ = command("info", "--kb", url, "--json")
    assert json.loads(out)["path"] == url
    for name in ("compact", "vacuum", "versions"):
        code, out, _ = command(name, "--kb", url)
        assert code == 0
    code, out, _ = command("verify", "--kb", url)
    assert (code, "all is as it was written" in out) == (0, True)
    code, _, error = command("build", str(tmp_path / "notes"), "--kb", url)
    assert (code, error.splitlines()[-1][: len(url) + 19]) == (1, f"Error: {url} is finished")


@pytest.mark.parametrize(
    ("location", "environment", "said"),
    [
        ("s3://lake/nothing", {}, "s3://lake/nothing is not a knowledge base: it has no kb.json."),
        (
            "s3://no-such-bucket/kb",
            {},
            "There is no bucket no-such-bucket for s3://no-such-bucket/",
        ),
        ("nope://lake/kb", {}, "nope://lake/kb: there is no such kind of store; use s3://, gs://"),
        ("s3:/lake/kb", {}, "s3:/lake/kb is neither a path nor a URL: write s3://, as text, or ./"),
        ("s3://key:not-to-be-seen@lake/kb", {}, "The URL of s3://lake/kb must not hold keys or"),
        ("s3://lake/kb?key=not-to-be-seen", {}, "The URL of s3://lake/kb must not hold keys or"),
        ("file://other/kb", {}, "file://other/kb is on another machine, other"),
        (
            "s3://lake/nothing",
            {
                "AWS_ACCESS_KEY_ID": "",
                "AWS_SECRET_ACCESS_KEY": "",
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
            },
            "s3://lake/nothing/kb.json cannot be read or written: Unable to locate credentials; set",
        ),
        (
            "s3://lake/nothing",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"},
            "s3://lake/nothing/kb.json cannot be read or written: Could not connect to the endpoint",
        ),
    ],
)
def test_trouble_is_one_sentence_without_secrets(
    command: Callable[..., tuple[int, str, str]],
    location: str,
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "_TRIES", 1)
    code, out, error = command("info", "--kb", location, **environment)
    assert (code, out) == (1, "")
    assert said in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert "not-to-be-seen" not in error


def test_who_waits_for_a_store_is_told(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_FIRST", 0.0)
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    monkeypatch.setattr(retries, "_TRIES", 2)
    code, _, error = command("info", "--kb", "s3://lake/nothing", **away)
    waiting, last = error.splitlines()
    assert waiting.startswith("s3://lake/nothing/kb.json failed (Could not connect to")
    assert waiting.endswith("; again in 0.0 s.")
    assert (code, last.startswith("Error: s3://lake/nothing/kb.json cannot be read")) == (1, True)


def test_building_where_there_is_no_bucket_is_refused_at_once(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("text")
    code, _, error = command("build", str(tmp_path), "--kb", "s3://no-such-bucket/kb")
    assert code == 1
    assert "Error: There is no bucket no-such-bucket for" in error


def test_where_making_one_was_killed_it_is_made_again(bucket: Bucket, url: str) -> None:
    KnowledgeBase.create(url).close()
    with pytest.raises(KnowledgeBaseError, match="is not empty; choose another"):
        KnowledgeBase.create(url)
    bucket.remove(f"{url.removeprefix('s3://lake/')}/kb.json")
    KnowledgeBase.create(url).close()
    KnowledgeBase.open(url).close()


def test_a_failed_build_by_llama_index_says_what_failed(bucket: Bucket, url: str) -> None:
    from llama_index.core import Document as LlamaDocument

    from lclm_rag.connectors.llama_index import LatentIndex

    odd = LlamaDocument(text="x", metadata={"x": {1, 2}})
    with pytest.raises(ValueError, match="holds a set"):
        LatentIndex.from_documents([odd], url)
    good = LlamaDocument(text="A town by a lake.", doc_id="town")
    index = LatentIndex.from_documents([good], url)
    assert list(index.ref_doc_info) == ["town"]
    index.close()


def test_a_missing_library_is_named(bucket: Bucket) -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None; from lclm_rag.cli import main; "
        "main(['info', '--kb', 's3://lake/kb'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: s3://lake/kb lies in an object store: pip install 'lclm-")
    assert done.stderr.count("\n") == 1


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert open_folder(f"file://{tmp_path}/a%20b") == LocalFolder(tmp_path / "a b")
    with pytest.raises(ValueError, match="neither a path nor a URL"):
        open_folder(Path("s3://lake/kb"))
    assert open_folder("./s3:/lake") == LocalFolder(Path("s3:/lake"))
