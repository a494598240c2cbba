"""Corpora in an object store: S3 on loopback."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from lclm_rag.connectors.corpora import corpus_parts, count_documents, read_corpus
from lclm_rag.types import Document
from support.corpus_files import HTML, error_of, packed, read_one, read_skipping
from support.processes import in_child

LONG_LINES = [json.dumps({"text": f"{i} " + "x" * 300_000}) for i in range(40)]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a bucket with some files, in an S3 server on loopback: with {} for the path."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()  # Another module's server may be gone.
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        rows = tmp_path_factory.mktemp("rows")
        table = pa.table({"text": ["p1", "p2"]})
        pq.write_table(table, rows / "t.parquet")
        feather.write_feather(table, rows / "t.arrow")
        files = {
            "notes/a b.md": b"Some text.",
            "notes/deep/c.html": HTML.encode(),
            "notes/photo.png": b"x",
            "lines/1.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
            "lines/2.jsonl.gz": packed(b'{"text": "three"}\n', ".gz"),
            "long/a.jsonl": "\n".join(LONG_LINES).encode(),
            "lines/bad.jsonl.zst": packed("\n".join(LONG_LINES).encode(), ".zst")[:-9],
            "rows/lang=en/t.parquet": (rows / "t.parquet").read_bytes(),
            "rows/lang=de/t.arrow": (rows / "t.arrow").read_bytes(),
            "saved/state.json": b"{}",
            "odd/": b"",
            "odd/a%20[b].md": b"As it is written.",
            "twice//a.md": b"Below a folder without a name.",
            "twice/b.md": b"Beside it.",
            "lake/notes/a.md": b"A note.",
            "lake/kb/kb.json": b"{}",
            "lake/kb/store/fragments/t.arrow": (rows / "t.arrow").read_bytes(),
            "lake/kb/notes/own.md": b"Beside the store.",
        }
        for name, content in files.items():
            client.put_object(Bucket="corpus", Key=name, Body=content)
        yield "s3://corpus/{}"
        S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def new_connections() -> Iterator[None]:
    """None of before, and none for later."""
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


def test_folders_globs_and_files_in_an_object_store_read_as_they_do_here(bucket: str) -> None:
    def documents(path: str) -> dict[str, str]:
        found, _ = read_skipping(bucket.format(path))
        return {d.id: d.text for d in found}

    page = "## Café\n\nIt opens."
    assert documents("notes/") == {"a b.md": "Some text.", "deep/c.html": page}
    assert documents("notes/a b.md") == {"a b.md": "Some text."}
    assert documents("odd/a%20[b].md") == {"a%20[b].md": "As it is written."}
    assert documents("odd/*20[[]b].md") == {"a%20[b].md": "As it is written."}
    assert documents("no*/**/*.html") == {"notes/deep/c.html": page}
    lines = {"1.jsonl:1": "one", "1.jsonl:2": "two", "2.jsonl.gz:1": "three"}
    assert {k: v for k, v in documents("lines/*").items() if not k.startswith("bad")} == lines
    assert documents("lines/2.jsonl.gz") == {"2.jsonl.gz:1": "three"}
    rows = list(read_corpus(bucket.format("rows")))
    assert [(d.text, d.metadata["lang"]) for d in rows] == [
        ("p1", "de"),
        ("p2", "de"),
        ("p1", "en"),
        ("p2", "en"),
    ]
    assert count_documents(bucket.format("lines/1.jsonl")) is None


def test_errors_of_an_object_store_name_the_file_and_show_no_secret(bucket: str) -> None:
    missing = error_of(bucket.format("nowhere"))
    assert missing == "s3://corpus/nowhere: no such file or folder; check the path."
    assert error_of("s3://no-such-bucket/a.md") == (
        "s3://no-such-bucket/a.md: cannot be read (there is no bucket no-such-bucket); check the file and "
        "its rights."
    )
    broken = error_of(bucket.format("lines/bad.jsonl.zst"))
    assert broken.startswith("s3://corpus/lines/bad.jsonl.zst: cannot be read")
    assert "Truncated" in broken
    assert "copy it, or name its files: 's3://corpus/saved/*.arrow'" in error_of(
        bucket.format("saved")
    )
    _, messages = read_skipping(bucket.format("notes"))
    assert messages == ["s3://corpus/notes/photo.png: not read, it is of no kind that can be read."]
    for secret in ("nope://me:secret@host/x", "s3://corpus/x?secret", "s3://a:secret@corpus/x"):
        message = error_of(secret)
        assert "must not hold keys or options, because it is shown: give them as" in message
        assert "secret" not in message
    unknown = error_of("nope://host/x")
    assert unknown.startswith("nope://host/x: there is no such kind of store; use s3://, gs://")
    assert error_of("https://host/x") == (
        "https://host/x: nothing is read from the web; download it and name the file."
    )
    assert error_of(Path("s3://corpus/x")).startswith("s3:/corpus/x is neither a path nor a URL")


@pytest.mark.usefixtures("new_connections")
def test_a_store_that_cannot_be_reached_is_named_with_the_reason(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    message = error_of(bucket.format("x"))
    assert message.startswith(
        "s3://corpus/x: cannot be read (Could not connect to the endpoint URL:"
    )
    assert message.endswith("; check the file and its rights.")


def test_objects_below_a_folder_without_a_name_are_not_left_out_in_silence(bucket: str) -> None:
    documents, messages = read_skipping(bucket.format("twice"))
    assert [d.id for d in documents] == ["b.md"]
    assert messages == [
        "s3://corpus/twice/: cannot be read (a folder without a name cannot be listed); check the file "
        "and its rights."
    ]


def test_without_the_library_of_the_object_store_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None; from lclm_rag.connectors.corpora import read_corpus; "
        "read_corpus('s3://corpus/notes')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: s3://corpus/notes lies in an object store: pip install ")
    assert "'lclm-rag[object-stores]'" in last


@pytest.mark.usefixtures("new_connections")
def test_of_a_table_in_an_object_store_only_needed_columns_are_fetched(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = pa.array([os.urandom(1 << 20) for _ in range(8)])
    table = pa.table({"text": [f"row {i}" for i in range(8)], "vector": vectors})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    feather.write_feather(table, tmp_path / "t.arrow", compression="uncompressed", chunksize=4)
    fetched: list[int] = []
    cat_file = S3FileSystem._cat_file

    async def counted(self: Any, *arguments: Any, **options: Any) -> bytes:
        piece: bytes = await cat_file(self, *arguments, **options)
        fetched.append(len(piece))
        return piece

    monkeypatch.setattr(S3FileSystem, "_cat_file", counted)
    for name in ("t.parquet", "t.arrow"):
        data = (tmp_path / name).read_bytes()
        boto3.client("s3").put_object(Bucket="corpus", Key=f"wide/{name}", Body=data)
        documents = read_corpus(bucket.format(f"wide/{name}"))
        assert [d.text for d in documents] == [f"row {i}" for i in range(8)]
        print(f"{name}: {sum(fetched):,} of {len(data):,} bytes in {len(fetched)} requests")
        assert sum(fetched) < len(data) / 3
        fetched.clear()


@pytest.mark.usefixtures("new_connections")
def test_long_lines_in_an_object_store_come_in_few_requests(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []
    call = S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        requests.append(method)
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    documents = read_corpus(bucket.format("long/a.jsonl"))
    assert [d.text.split()[0] for d in documents] == [str(i) for i in range(40)]
    assert requests.count("get_object") == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_corpus_in_an_object_store_goes_on_in_a_forked_child_and_in_another_process(
    bucket: str,
) -> None:
    documents = read_corpus(bucket.format("long/a.jsonl"))
    expected = [f"a.jsonl:{i}" for i in range(1, 41)]
    assert next(documents).id == expected[0]
    assert in_child(lambda: [d.id for d in documents]) == expected[1:]
    assert [d.id for d in documents] == expected[1:]
    parts = corpus_parts(bucket.format("notes"))
    assert parts is not None
    assert b"secret" not in pickle.dumps(parts)
    (part,) = pickle.loads(pickle.dumps(parts)).parts
    found = [item for item in part.read() if isinstance(item, Document)]
    assert [d.id for d in found] == ["a b.md", "deep/c.html"]


def test_a_knowledge_base_in_an_object_store_is_no_corpus(bucket: str) -> None:
    documents, messages = read_skipping(bucket.format("lake"))
    assert [d.id for d in documents] == ["notes/a.md"]
    assert messages == ["s3://corpus/lake/kb: not read, it is a knowledge base."]
    assert read_one(bucket.format("lake/kb/notes")).id == "own.md"
    below = ("/kb.json", "/store", "/store/fragments", "/store/fragments/t.arrow", "/**/*.arrow")
    for named in ("", "/", *below):
        message = error_of(bucket.format(f"lake/kb{named}"))
        assert message.startswith(f"s3://corpus/lake/kb{named.rstrip('/')}: ")
        assert message.endswith(
            "is a knowledge base, not a corpus; name the documents it was made from."
        )


def test_bad_records_in_object_stores_name_their_line(
    bucket: str,
) -> None:
    options: dict[str, Any] = {"text_column": "body"}
    found = error_of(bucket.format("lines/2.jsonl.gz"), **options)
    assert found.startswith("s3://corpus/lines/2.jsonl.gz, line 1: no field 'body', only 'text'")
