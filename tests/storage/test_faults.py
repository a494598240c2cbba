"""An object store that is busy, does not answer or drops the connection costs a pause, and nothing else."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, EndpointConnectionError
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFileSystem
from gcsfs.retry import HttpError
from s3fs.errors import translate_boto_error

from lclm_rag import retries
from lclm_rag.connectors.corpora import read_corpus
from lclm_rag.errors import PassageIndexError, StoreError
from lclm_rag.indexing.state import State, read_state, write_state
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.storage import ObjectFolder, objects, open_folder
from lclm_rag.storage.faults import pause_after
from lclm_rag.store import LatentStore, Layout, StoredPassage, compact, vacuum, writing
from lclm_rag.types import Passage, PassageKey

LAYOUT = Layout("bf16", "encoder", 8, "f" * 16, 4)


def answer(status: int, code: str, **headers: str) -> Exception:
    """What s3fs raises for an answer of the store."""
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    raw = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": metadata}
    return translate_boto_error(ClientError(raw, "PutObject"))  # type: ignore[no-any-return]


FAULTS: dict[str, Callable[[], Exception]] = {
    "429": lambda: answer(429, "TooManyRequests", **{"retry-after": "7"}),
    "503": lambda: answer(503, "SlowDown"),
    "time-out": FSTimeoutError,
    "dropped": lambda: ClientPayloadError("Response payload is not completed"),
}


@dataclass
class Weather:
    """At which calls the store fails, how, and whether it has carried them out."""

    at: frozenset[int] = frozenset()
    fault: Callable[[], Exception] = FAULTS["503"]
    after: bool = False
    calls: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


weather = Weather()
inside = threading.local()


class Blinking(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory with conditional writes, which fails at the calls that `weather` names."""

    protocol = "blinking"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs: list[str] = [""]  # noqa: RUF012

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if getattr(
            inside, "call", False
        ):  # One of the store's own, of which a client knows nothing.
            return getattr(super(), name)(*arguments, **options)
        inside.call = True
        try:
            return self._outer_call(name, *arguments, **options)
        finally:
            inside.call = False

    def _outer_call(self, name: str, *arguments: Any, **options: Any) -> Any:
        weather.calls.append(f"{name} {arguments[0]}")
        if len(weather.calls) not in weather.at:
            return getattr(super(), name)(*arguments, **options)
        if weather.after:
            with suppress(OSError):  # Whatever the answer is, it is lost.
                getattr(super(), name)(*arguments, **options)
        raise weather.fault()

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self._call("ls", path, detail, **options)

    def info(self, path: str, **options: Any) -> Any:
        return self._call("info", path, **options)

    def cat_file(self, path: str, *span: Any, **options: Any) -> Any:
        return self._call("cat_file", path, *span, **options)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> Any:
        return self._call("pipe_file", path, value, **options)

    def put_file(self, local: str, path: str, **options: Any) -> Any:
        return self._call("put_file", local, path, **options)

    def get_file(self, path: str, local: str, **options: Any) -> Any:
        return self._call("get_file", path, local, **options)

    def rm_file(self, path: str) -> Any:
        return self._call("rm_file", path)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    fsspec.register_implementation("blinking", Blinking, clobber=True)
    monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "_CONDITIONAL", ("blinking",))
    clock = SimpleNamespace(sleep=lambda s: weather.waits.append(s), monotonic=lambda: 0.0)
    monkeypatch.setattr(retries, "time", clock)
    be()
    yield "blinking://lake/kb"
    be()


def be(at: frozenset[int] = frozenset(), kind: str = "503", after: bool = False) -> None:
    """Set the weather, over an empty store."""
    Blinking.store.clear()
    weather.__init__(at, FAULTS[kind], after)  # type: ignore[misc]


def row(document_id: str, ordinal: int) -> StoredPassage:
    key = PassageKey(document_id, ordinal)
    encoded = np.full((2, LAYOUT.latent_bytes), len(document_id) + ordinal, np.uint8)
    digest = document_id.encode().ljust(32)
    return StoredPassage(
        Passage(key, ordinal, ordinal + 1, "x", {}), 8, digest, True, encoded, LAYOUT
    )


def add(url: str, *documents: str, gone: str = "") -> None:
    with writing(url, "add", resumable=True) as writer:
        if gone:
            assert writer.delete_document(gone) == 2
        for document in documents:
            for ordinal in range(2):
                writer.add(row(document, ordinal))
        writer.commit()


def a_short_run(url: str) -> dict[str, Any]:
    """Create, add, read, delete, compact and vacuum; note a state; what there is in the end."""
    LatentStore.create(url, LAYOUT)
    add(url, "a", "b")
    add(url, "c", gone="a")
    read = LatentStore.open(url).read([PassageKey("c", 1), PassageKey("b", 0)])
    assert [int(found.encoded[0, 0]) for found in read] == [2, 1]
    compact(url)
    vacuum(url)
    index = open_folder(url) / "index"
    write_state(index, State(2, "m", Bm25Settings("english"), None))
    write_state(index, State(3, "n", Bm25Settings("english"), None))
    state = read_state(index)
    store = LatentStore.open(url)
    files = [re.sub("[0-9a-f]{32}", "*", name) for name in Blinking.store]
    return {
        "documents": sorted(str(found.passage.key) for found in store.passages()),
        "version": store.version,
        "operations": store.manifest.operation,
        "state": state,
        "files": sorted(files),
    }


@pytest.mark.parametrize("after", [False, True], ids=["unheard", "carried-out"])
@pytest.mark.parametrize("kind", FAULTS)
def test_whichever_call_fails_the_end_is_the_same(
    url: str, kind: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = a_short_run(url)
    calls = len(weather.calls)
    assert (expected["version"], len(expected["documents"])) == (3, 4)
    assert weather.waits == []
    for at in range(1, calls + 1):
        be(frozenset({at}), kind, after)
        monkeypatch.setenv("LCLM_RAG_CACHE", str(tmp_path / f"cache-{at}"))
        assert a_short_run(url) == expected, weather.calls[at - 1]
        assert len(weather.waits) == 1, weather.calls[at - 1]
        assert weather.waits[0] >= (7.0 if kind == "429" else 0.25)


def test_a_store_that_stays_away_is_an_error_after_six_tries(url: str) -> None:
    be(frozenset(range(1, 99)), "503")
    with pytest.raises(
        OSError, match=r"blinking://lake/kb/a cannot be read or written: SlowDown\."
    ):
        open_folder(url).read("a")
    assert len(weather.calls) == 6
    assert all(
        2**i / 4 <= wait <= 2**i / 2 for i, wait in enumerate(weather.waits)
    )  # Growing, and spread.


def test_a_state_that_cannot_be_read_is_not_taken_for_none(url: str) -> None:
    index = open_folder(url) / "index"
    write_state(index, State(2, "m", Bm25Settings("english"), None))
    weather.at = frozenset(range(len(weather.calls) + 1, 999))
    with pytest.raises(PassageIndexError, match="Nothing was changed; try again"):
        read_state(index)


def test_of_many_stretches_only_those_that_failed_are_fetched_again(url: str) -> None:
    folder = ObjectFolder.of_url(url)
    for i in range(9):
        folder.replace(str(i), b"0123456789")
    weather.calls.clear()
    weather.at = frozenset({2, 5, 11})
    assert folder.read_ranges([(str(i), i, i + 1) for i in range(9)]) == [
        b"%d" % i for i in range(9)
    ]
    fetched = [call for call in weather.calls if call.startswith("cat_file")]
    assert (len(fetched), len(weather.waits)) == (12, 2)


def test_another_writers_version_is_a_conflict_even_if_our_own_answer_was_lost(url: str) -> None:
    LatentStore.create(url, LAYOUT)
    with writing(url, "add") as slow:
        slow.add(row("slow", 0))
        add(url, "fast")
        weather.at = frozenset(range(len(weather.calls) + 1, len(weather.calls) + 99, 2))
        with pytest.raises(StoreError, match="committed by another writer meanwhile"):
            slow.commit()


# --- which failures pass --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (answer(429, "TooManyRequests", **{"Retry-After": "12"}), 12.0),
        (
            answer(503, "ServiceUnavailable", **{"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}),
            0.0,
        ),
        (answer(400, "RequestTimeout"), 0.0),
        (answer(200, "InternalError"), 0.0),
        (answer(409, "ConditionalRequestConflict"), 0.0),
        (HttpError({"code": 429, "message": "slow down"}), 0.0),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), 0.0),
        (TimeoutError(), 0.0),
        (ConnectionResetError(), 0.0),
        (answer(403, "AccessDenied"), None),
        (answer(404, "NoSuchKey"), None),
        (answer(412, "PreconditionFailed"), None),
        (answer(501, "NotImplemented"), None),
        (HttpError({"code": 403, "message": "no"}), None),
        (ValueError("bad"), None),
    ],
    ids=str,
)
def test_what_passes_by_itself_is_tried_again(error: Exception, pause: float | None) -> None:
    assert pause_after(error) == pause


# --- corpora --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAULTS)
def test_a_corpus_is_read_on_where_the_connection_broke(
    url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lclm_rag.storage import paths

    monkeypatch.setattr(paths, "_FETCH_BYTES", 1000)
    monkeypatch.setattr(paths.ObjectPath.open, "__defaults__", ("rb", 1000))
    lines = "".join(json.dumps({"id": f"{i}", "text": f"text {i}"}) + "\n" for i in range(99))

    def corpus() -> list[tuple[str, str]]:
        folder = open_folder("blinking://lake/corpus")
        folder.replace("a.jsonl", lines.encode())
        folder.replace(
            "b.jsonl.gz", gzip.compress(lines.replace('"id": "', '"id": "b').encode(), 0)
        )
        folder.replace("c.csv", ("id,text\n" + "".join(f"c{i},text\n" for i in range(99))).encode())
        table = pa.table({"id": [f"d{i}" for i in range(99)], "text": ["text"] * 99})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        folder.replace("d.parquet", sink.getvalue().to_pybytes())
        folder.replace("e.txt", b"A text.")
        return [(d.id, d.text) for d in read_corpus("blinking://lake/corpus/*")]

    expected = corpus()
    assert len(expected) == 4 * 99 + 1
    for at in range(1, len(weather.calls) + 1):
        be(frozenset({at}), kind)
        assert corpus() == expected, weather.calls[at - 1]


def test_an_object_that_is_shorter_than_it_was_is_an_error_at_once(url: str) -> None:
    path = open_folder("blinking://lake/corpus")
    path.replace("a.txt", b"0123456789")
    from lclm_rag.storage import locate

    found = locate("blinking://lake/corpus/a.txt")
    with pytest.raises(OSError, match="10 of 12 bytes came at 0"):
        found.read_range(0, 12)  # type: ignore[union-attr]
    assert weather.waits == []
