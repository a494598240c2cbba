"""Rows of CSV, Arrow, data-set folders, Hugging Face data sets, standard input and memory → documents."""

from __future__ import annotations

import csv
import datetime
import io
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.feather as feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_rag.connectors.corpora import count_documents, documents_from_records, read_corpus
from lclm_rag.errors import CorpusError
from lclm_rag.types import Document
from support.corpus_files import error_of, read_one, read_skipping, write_files, write_parquet

# --- CSV ------------------------------------------------------------------------------------------


def test_csv_gives_a_document_for_each_row_whose_values_are_texts(tmp_path: Path) -> None:
    content = '\ufeffid,text,lang,year\none,"First, ""and""\r\nsecond line",en,1999\n\n2,Third,,\n'
    write_files(tmp_path, {"c.csv": content})
    assert list(read_corpus(tmp_path / "c.csv")) == [
        Document("one", 'First, "and"\r\nsecond line', {"lang": "en", "year": "1999"}),
        Document("2", "Third"),
    ]
    assert count_documents(tmp_path / "c.csv") == 2


def test_a_row_without_an_id_column_is_known_by_the_line_where_it_begins(tmp_path: Path) -> None:
    write_files(tmp_path, {"c.csv": 'text\n"a\nb"\nc\n'})
    assert [d.id for d in read_corpus(tmp_path / "c.csv")] == ["c.csv:2", "c.csv:4"]


def test_tsv_and_columns_by_name(tmp_path: Path) -> None:
    write_files(tmp_path, {"c.tsv": "url\tbody\tlang\tx\nu1\tA, b\ten\t1\n"})
    options = {"text_column": "body", "id_column": "url", "metadata_columns": ["lang"]}
    assert read_one(tmp_path / "c.tsv", **options) == Document("u1", "A, b", {"lang": "en"})


@pytest.mark.parametrize(
    ("rows", "options", "line", "problem"),
    [
        ("a,b,c\n", {}, ", line 2", "3 values where the header has 2; mend the row, or quote"),
        ("a\n", {}, ", line 2", "1 values where the header has 2"),
        ('"a"b,c\n', {}, ", line 2", "not valid CSV (',' expected after '\"'); a quote"),
        ('good,"never closed\nand on\n', {}, ", line 2", "not valid CSV (unexpected end of data)"),
        ("a,\n", {}, ", line 2", "field 'text' is empty; leave"),
        (",b\n", {}, ", line 2", "the id in field 'id' is empty; give"),
        (b"a,caf\xe9\n", {}, ", line 2", "not UTF-8; convert the file"),
        ("a,b\n", {"text_column": "body"}, "", "no column 'body', only 'id' and 'text'; the first"),
        ("a,b\n", {"id_column": "doc"}, "", "no column 'doc', only 'id' and 'text'; the first"),
        ("a,b\n", {"metadata_columns": ["x"]}, "", "no column 'x', only 'id' and 'text'"),
    ],
)
def test_bad_csv_is_an_error_that_names_the_line(
    tmp_path: Path, rows: str | bytes, options: dict[str, Any], line: str, problem: str
) -> None:
    data = rows if isinstance(rows, bytes) else rows.encode()
    path = write_files(tmp_path, {"c.csv": b"id,text\n" + data}) / "c.csv"
    assert error_of(path, **options).startswith(f"{path}{line}: {problem}")


def test_rows_after_a_bad_one_are_still_given(tmp_path: Path) -> None:
    data = b'id,text\na,A\n"b"x,B\nc,caf\xe9\nd,D,D\ne,E\n'
    documents, skipped = read_skipping(write_files(tmp_path, {"c.csv": data}) / "c.csv")
    assert [d.id for d in documents] == ["a", "e"]
    assert [message.split(": ")[0][-6:] for message in skipped] == ["line 3", "line 4", "line 5"]


@pytest.mark.parametrize(
    ("header", "problem"),
    [("", "no column 'text', only nothing"), ("text,x,x", "two columns are called 'x'")],
)
def test_csv_needs_a_header_that_says_which_is_which(
    tmp_path: Path, header: str, problem: str
) -> None:
    path = write_files(tmp_path, {"c.csv": f"{header}\n"}) / "c.csv"
    assert error_of(path).startswith(f"{path}: {problem}")


def test_a_value_of_csv_may_be_long(tmp_path: Path) -> None:
    text = "x" * 300_000
    assert read_one(write_files(tmp_path, {"c.csv": f"text\n{text}\n"}) / "c.csv").text == text


letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
values = st.text(letters, min_size=1, max_size=20).filter(lambda text: bool(text.strip()))


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(values, values, values), min_size=1, unique_by=lambda row: row[0]))
def test_documents_written_as_csv_come_back_the_same(rows: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.csv"
        with path.open("w", encoding="utf-8", newline="") as f:
            csv.writer(f).writerows([("id", "text", "more"), *rows])
        assert list(read_corpus(path)) == [
            Document(name, text, {"more": more}) for name, text, more in rows
        ]
        assert count_documents(path) == len(rows)


# --- Arrow files and data-set folders -------------------------------------------------------------

TABLE = pa.table({"id": ["a", "b"], "text": ["A", "B"], "n": [1, None], "tags": [["x"], []]})


def write_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


def write_ipc(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.arrow", write_stream),
        ("t.ipc", write_ipc),
        ("t.feather", lambda path: feather.write_feather(TABLE, path, compression="zstd")),
    ],
)
def test_arrow_files_of_both_formats(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    assert list(read_corpus(tmp_path / name)) == [
        Document("a", "A", {"n": 1, "tags": ["x"]}),
        Document("b", "B", {"tags": []}),
    ]
    assert count_documents(tmp_path / name) == 2
    assert next(read_corpus(tmp_path / name, metadata_columns=["n"])).metadata == {"n": 1}
    assert "no column 'body', only 'id'" in error_of(tmp_path / name, text_column="body")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    assert error_of(tmp_path / name).startswith(f"{tmp_path / name}: not readable as Arrow (")


def test_a_folder_of_parquet_is_a_data_set_and_its_partitions_are_metadata(tmp_path: Path) -> None:
    rows = {"text": ["a", "b", "c"], "lang": ["en", "de", "en"], "year": [2024, 2024, 2023]}
    part = pds.partitioning(pa.schema([("lang", pa.string()), ("year", pa.int64())]), flavor="hive")
    pds.write_dataset(pa.table(rows), tmp_path / "d", format="parquet", partitioning=part)
    write_files(tmp_path / "d", {"_SUCCESS": "", "lang=x%20y/year=007/.crc": ""})
    write_parquet(tmp_path / "d/lang=x%20y/year=007/z.parquet", {"text": ["z"]})
    found = {d.text: d for d in read_corpus(tmp_path / "d", on_ignore=lambda message: None)}
    assert {text: d.metadata for text, d in found.items()} == {
        "a": {"lang": "en", "year": 2024},
        "b": {"lang": "de", "year": 2024},
        "c": {"lang": "en", "year": 2023},
        "z": {"lang": "x y", "year": "007"},
    }
    assert found["c"].id == "lang=en/year=2023/part-0.parquet:1"
    assert count_documents(tmp_path / "d") == 4
    only = read_corpus(tmp_path / "d", metadata_columns=["year"], on_ignore=lambda message: None)
    assert {d.metadata["year"] for d in only} == {2024, 2023, "007"}


def test_tables_beside_texts_are_told_and_read_only_where_they_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"README.md": "About.", "x/rows.csv": "text\na\n"})
    write_parquet(tmp_path / "x/t.parquet", {"text": ["p"]})
    documents, told = read_skipping(tmp_path)
    assert [d.id for d in documents] == ["README.md"]
    assert [message.split(": not read, only texts")[0] for message in told] == [
        f"{tmp_path}/x/rows.csv",
        f"{tmp_path}/x/t.parquet",
    ]
    assert [d.text for d in read_corpus(f"{tmp_path}/x/*")] == ["a", "p"]


def test_nested_columns_are_kept_where_they_are_named(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 1, 12)
    columns = {
        "text": ["t"],
        "at": [{"day": when, "price": Decimal("1.5")}],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "days": [[when.date()]],
        "vector": [[0.5, float("nan")]],
    }
    path = write_parquet(tmp_path / "c.parquet", columns)
    assert read_one(path).metadata == {"days": ["2024-05-01"]}
    assert read_one(path, metadata_columns=["at", "map", "vector"]).metadata == {
        "at": {"day": "2024-05-01T12:00:00", "price": 1.5},
        "map": {"k": 1},
        "vector": [0.5, None],
    }


# --- Hugging Face data sets -----------------------------------------------------------------------


def test_a_saved_data_set_is_read_by_its_folder(tmp_path: Path) -> None:
    import datasets

    rows = {"text": ["a", "b"], "n": [1, 2], "vector": [[0.5], [1.0]]}
    data = datasets.Dataset.from_dict(rows)
    data.select([1, 0]).save_to_disk(tmp_path / "one")
    assert list(read_corpus(tmp_path / "one")) == [
        Document("one:1", "b", {"n": 2}),
        Document("one:2", "a", {"n": 1}),
    ]
    assert count_documents(tmp_path / "one") == 2
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "all")
    assert [d.id for d in read_corpus(tmp_path / "all")] == [
        "all:train:1",
        "all:train:2",
        "all:test:1",
    ]
    assert count_documents(tmp_path / "all") == 3
    assert error_of(tmp_path / "one", text_column="body").startswith(
        f"{tmp_path}/one: no column 'body', only 'text', 'n' and 'vector'; say which"
    )


def test_a_saved_data_set_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    write_files(tmp_path, {"d/state.json": "{}"})
    assert error_of(tmp_path / "d").startswith(f"{tmp_path}/d: cannot be loaded (")


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` finds under someone/notes: a folder here, because the hub cannot be reached."""
    lines = '{"text": "a", "n": 1, "at": {"x": 1}}\n{"text": " ", "n": 2}\n'
    write_files(tmp_path, {"someone/notes/train.jsonl": lines, "someone/notes/test.jsonl": lines})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("named")
def test_a_data_set_is_streamed_by_its_name() -> None:
    documents, skipped = read_skipping("hf://someone/notes")
    assert documents == [
        Document("someone/notes:train:1", "a", {"n": 1}),
        Document("someone/notes:test:1", "a", {"n": 1}),
    ]
    assert [message.split(": field")[0] for message in skipped] == [
        "hf://someone/notes:train, row 2",
        "hf://someone/notes:test, row 2",
    ]
    documents, _ = read_skipping("hf://someone/notes:test", metadata_columns=["at"])
    assert documents == [Document("someone/notes:test:1", "a", {"at": {"x": 1}})]
    assert count_documents("hf://someone/notes") is None


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("uri", ["hf://someone/notes:dev", "hf://someone/notes/large:test"])
def test_a_split_or_configuration_that_is_not_there_is_an_error(uri: str) -> None:
    assert error_of(uri).startswith(f"{uri}: cannot be loaded (")


# --- standard input and records -------------------------------------------------------------------


def feed(monkeypatch: pytest.MonkeyPatch, lines: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))


def test_standard_input_is_jsonl_whose_records_have_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b'{"id": 1, "text": "a"}\n\n{"id": "b", "text": "c", "x": 1}\n')
    assert list(read_corpus("-")) == [Document("1", "a"), Document("b", "c", {"x": 1})]
    assert count_documents("-") is None
    feed(monkeypatch, b'{"id": 1, "text": "a"}\n{"text": "b"}\n')
    assert error_of("-").startswith(
        "stdin, line 2: no id in field 'id', the fields are 'text'; give"
    )
    with pytest.raises(CorpusError, match="standard input can be read only once"):
        read_corpus(["-", "-"])


def test_records_in_memory_become_documents(tmp_path: Path) -> None:
    import datasets

    rows = [
        {"url": "u1", "body": "A", "day": datetime.date(2024, 5, 1), "tags": ["x"]},
        {"url": "u2", "body": "B", "day": None, "tags": []},
    ]
    expected = [
        Document("u1", "A", {"day": "2024-05-01", "tags": ["x"]}),
        Document("u2", "B", {"tags": []}),
    ]
    for records in (rows, iter(rows), datasets.Dataset.from_list(rows)):
        found = documents_from_records(records, text_column="body", id_column="url")
        assert list(found) == expected
    named = documents_from_records([{"text": "a"}, {"text": "b"}], name="news")
    assert [d.id for d in named] == ["news:1", "news:2"]


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([{"text": "a"}], "record 1: no id in field 'id', the fields are 'text'; give"),
        ([{"id": "a"}], "record 1: no field 'text', only 'id'; say which"),
        ([{"id": 1, "text": "a"}, "b"], "record 2: a text; give mappings"),
        (
            [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}],
            "records, record 2: the id '1' was already used in records, record 1;",
        ),
        ([], "No document was found in the records"),
    ],
)
def test_a_bad_record_is_named(records: list[Any], problem: str) -> None:
    with pytest.raises(CorpusError) as caught:
        list(documents_from_records(records))
    assert str(caught.value).startswith(problem)
    told: list[str] = []
    kept = documents_from_records(
        [{"id": "fine", "text": "a"}, *records], on_error="skip", on_skip=told.append
    )
    assert next(kept).id == "fine"
    assert len([*kept]) + len(told) == len(records)
