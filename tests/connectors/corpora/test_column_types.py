"""Columns of Parquet and Arrow files: each type becomes metadata, or is said to be left out."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lclm_rag.connectors.corpora import documents_from_records
from support.corpus_files import error_of, read_one

NS = pa.timestamp("ns")
NANOSECONDS = 1_600_000_000_123_456_789
TIME = "2020-09-13T12:26:40.123456"
ID = UUID(int=7)


def by_runs(value: pa.Array) -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), value)


def uuids() -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array([ID.bytes], pa.binary(16)))


KEPT: dict[str, tuple[pa.Array, Any]] = {
    "list view": (pa.array([["a", None]], pa.list_view(pa.string())), ["a", None]),
    "large list view": (pa.array([["a"]], pa.large_list_view(pa.string())), ["a"]),
    "runs": (by_runs(pa.array(["a"])), "a"),
    "runs of times": (by_runs(pa.array([NANOSECONDS], NS)), TIME),
    "dictionary": (pa.array(["a"]).dictionary_encode(), "a"),
    "dictionary of times": (pa.array([NANOSECONDS], NS).dictionary_encode(), TIME),
    "uuid": (uuids(), str(ID)),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}'])), '{"a": 1}'),
    "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())), True),
    "times": (pa.array([NANOSECONDS], NS), TIME),
    "list of times": (pa.array([[NANOSECONDS]], pa.list_(NS)), [TIME]),
    "times of day": (pa.array([[123_456_789]], pa.list_(pa.time64("ns"))), ["00:00:00.123456"]),
    "decimal": (pa.array([Decimal("1.5")], pa.decimal256(50, 2)), 1.5),
    "large number": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
}
NAMED: dict[str, tuple[pa.Array, Any]] = {
    "map": (pa.array([[("k", NANOSECONDS)]], pa.map_(pa.string(), NS)), {"k": TIME}),
    "struct": (pa.array([{"a": NANOSECONDS}], pa.struct([("a", NS)])), {"a": TIME}),
    "vector": (pa.array([[1.5, 2.0]], pa.list_(pa.float32(), 2)), [1.5, 2.0]),
}
UNUSABLE = {
    "binary": pa.array([b"a"]),
    "map by numbers": pa.array([[(1, "a")]], pa.map_(pa.int64(), pa.string())),
    "duration": pa.array([timedelta(days=1)]),
    "list of durations": pa.array([[5]], pa.list_(pa.duration("ns"))),
    "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
    "union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array(["a"])]),
    "list of binary": pa.array([[b"a"]]),
    "struct with binary": pa.array([{"bytes": b"a"}]),
}


def arrow_file(folder: Path, names: list[str], columns: list[pa.Array]) -> Path:
    path, table = folder / "t.arrow", pa.table(columns, names=names)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", [*KEPT, *NAMED])
def test_a_column_becomes_metadata_whatever_its_layout(tmp_path: Path, kind: str) -> None:
    column, value = (KEPT | NAMED)[kind]
    path = arrow_file(tmp_path, ["text", "m"], [pa.array(["The text."]), column])
    assert read_one(path, metadata_columns=["m"]).metadata == {"m": value}
    assert read_one(path).metadata == ({"m": value} if kind in KEPT else {})
    try:
        pq.write_table(
            pa.table([["The text."], column], names=["text", "m"]), tmp_path / "t.parquet"
        )
    except pa.ArrowException:  # Parquet does not know each of Arrow's types.
        return
    assert read_one(tmp_path / "t.parquet", metadata_columns=["m"]).metadata == {"m": value}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_column_that_metadata_cannot_hold_is_said_to_be_left_out(
    tmp_path: Path, kind: str
) -> None:
    column = UNUSABLE[kind]
    path = arrow_file(tmp_path, ["text", "m"], [pa.array(["The text."]), column])
    ignored: list[str] = []
    assert read_one(path, on_ignore=ignored.append).metadata == {}
    assert ignored == [
        f"{path}: 'm' ({column.type}): the column is not read, metadata cannot hold such values."
    ]
    assert f"column 'm' was asked for as metadata but is {column.type}" in error_of(
        path, metadata_columns=["m"]
    )
    assert read_one(path, metadata_columns=[], on_ignore=pytest.fail).text == "The text."


@pytest.mark.parametrize("twice", ["text", "id", "more"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_two_columns_of_one_name_are_an_error(tmp_path: Path, twice: str, suffix: str) -> None:
    names = ["text", "id", "more", twice]
    columns = [pa.array([name]) for name in names]
    path = arrow_file(tmp_path, names, columns)
    if suffix == ".parquet":
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table(columns, names=names), path)
    assert error_of(path) == f"{path}: two columns are called {twice!r}; rename one."


def test_text_and_ids_may_be_laid_down_in_any_way(tmp_path: Path) -> None:
    path = arrow_file(tmp_path, ["text", "id"], [by_runs(pa.array(["The text."])), uuids()])
    document = read_one(path)
    assert (document.id, document.text) == (str(ID), "The text.")


def test_a_map_called_metadata_counts_as_fields(tmp_path: Path) -> None:
    fields = pa.array([[("lang", "en"), ("year", "2020")]], pa.map_(pa.string(), pa.string()))
    path = arrow_file(tmp_path, ["text", "metadata"], [pa.array(["The text."]), fields])
    assert read_one(path).metadata == {"lang": "en", "year": "2020"}
    named = read_one(path, metadata_columns=["year", "no such"], number_columns=["year"])
    assert named.metadata == {"year": 2020}


def test_what_is_read_does_not_depend_on_pandas(tmp_path: Path) -> None:
    times = pa.array([[NANOSECONDS]], pa.list_(pa.timestamp("ns", "Europe/Berlin")))
    path = arrow_file(tmp_path, ["text", "m"], [pa.array(["The text."]), times])
    code = (
        "import json, sys\n"
        "class NoPandas:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name.partition('.')[0] == 'pandas': raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoPandas())\n"
        "from lclm_rag.connectors.corpora import read_corpus\n"
        "print(json.dumps([d.metadata for d in read_corpus(sys.argv[1])]))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert json.loads(done.stdout) == [{"m": ["2020-09-13T14:26:40.123456+02:00"]}]
    assert json.loads(done.stdout) == [read_one(path).metadata]


def test_records_in_memory_have_the_same_types() -> None:
    record = {
        "id": ID,
        "text": "x",
        "of": ID,
        "at": datetime(2020, 1, 1, tzinfo=UTC),
    }
    (document,) = documents_from_records([record])
    assert document.id == str(ID)
    assert document.metadata == {"of": str(ID), "at": "2020-01-01T00:00:00+00:00"}
