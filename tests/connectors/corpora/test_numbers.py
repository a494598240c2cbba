"""Texts that become numbers, so that filters can compare them; and which columns are told to be such."""

from __future__ import annotations

import gzip
import os
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pytest

from lclm_rag.connectors.corpora import (
    corpus_parts,
    documents_from_records,
    number_like_columns,
    read_corpus,
)
from lclm_rag.connectors.corpora.records import number_in
from lclm_rag.errors import CorpusError
from lclm_rag.types import Document
from support.corpus_files import (
    error_of,
    read_one,
    read_skipping,
    write_files,
    write_jsonl,
    write_parquet,
)

YEAR: dict[str, Any] = {"number_columns": ["year"]}

# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("2020", 2020), (" -3.5\t", -3.5), ("0", 0), ("-0.25E-2", -0.0025), ("1e3", 1000.0)),
        *(
            (text, None)
            for text in ("", " ", "n/a", "1,000", "007", "-01", "+5", ".5", "5.", "1 0")
        ),
        *(
            (text, None)
            for text in ("nan", "NaN", "inf", "Infinity", "1e999", "0x10", "1_000", "٣")
        ),
        *((text, None) for text in ("9" * 400, "9" * 5000, "true", '"1"')),
    ],
)
def test_a_text_is_a_number_where_json_would_read_it_as_one(
    text: str, number: float | None
) -> None:
    found = number_in(text)
    assert (found, type(found)) == (number, type(number))


def test_a_number_column_of_csv_has_numbers_and_an_empty_value_is_missing(tmp_path: Path) -> None:
    content = "id,text,year,code\na,A,2020,007\nb,B, 1e3 ,1\nc,C,,2\nd,D,  ,3\n"
    path = write_files(tmp_path, {"c.csv": content}) / "c.csv"
    expected = [
        Document("a", "A", {"year": 2020, "code": "007"}),
        Document("b", "B", {"year": 1000.0, "code": "1"}),
        Document("c", "C", {"code": "2"}),
        Document("d", "D", {"code": "3"}),
    ]
    assert list(read_corpus(path, **YEAR)) == expected
    parts = corpus_parts(path, **YEAR)
    assert parts is not None
    assert [item for part in parts.parts for item in part.read()] == expected
    only = read_corpus(path, **YEAR, metadata_columns=["year"])
    assert [d.metadata for d in only] == [{"year": 2020}, {"year": 1000.0}, {}, {}]


@pytest.mark.parametrize("value", ["n/a", '"1,000"', "007", "nan", "inf"])
def test_another_value_is_an_error_that_names_file_line_column_and_value(
    tmp_path: Path, value: str
) -> None:
    path = write_files(tmp_path, {"c.csv": f"text,year\nA,1\nB,{value}\nC,3\n"}) / "c.csv"
    expected = (
        f"{path}, line 3: field 'year' is to be a number and is {value.strip(chr(34))!r}; write it as in "
        "2020 or -3.5, leave it empty, or take the field out of --numbers."
    )
    assert error_of(path, **YEAR) == expected
    documents, skipped = read_skipping(path, **YEAR)
    assert ([d.metadata["year"] for d in documents], skipped) == ([1, 3], [expected])


def test_a_long_value_is_cut_in_the_error(tmp_path: Path) -> None:
    path = write_files(tmp_path, {"c.csv": f'text,year\nA,"x\n{"y" * 99}"\n'}) / "c.csv"
    assert f"is 'x\\n{'y' * 38}'…; write" in error_of(path, **YEAR)


@pytest.mark.parametrize("value", [True, ["2020"], {"of": 2020}, "twenty"])
def test_json_lines_have_numbers_in_the_same_way(tmp_path: Path, value: object) -> None:
    records = [{"text": "A", "year": "2020"}, {"text": "B", "year": 2.5}, {"text": "C"}]
    records += [{"text": "D", "metadata": {"year": "7"}}, {"text": "E", "year": value}]
    path = write_jsonl(tmp_path / "c.jsonl", records)
    documents, skipped = read_skipping(path, **YEAR)
    assert [d.metadata for d in documents] == [{"year": 2020}, {"year": 2.5}, {}, {"year": 7}]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{path}, line 5: field 'year' is to be a number and is ")
    assert list(documents_from_records(records[:4], name="c.jsonl", **YEAR)) == documents


def test_tables_have_numbers_in_the_same_way(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "text": ["A"],
        "year": pa.array([" 2020"]).dictionary_encode(),
        "n": [5],
        "price": [Decimal("1.5")],
        "metadata": [{"size": "3"}],
    }
    names = ["year", "n", "price", "size", "part"]
    (tmp_path / "part=0.5").mkdir()
    write_parquet(tmp_path / "part=0.5/t.parquet", columns)
    read = read_one(tmp_path, number_columns=names)
    assert read.metadata == {"size": 3, "part": 0.5, "year": 2020, "n": 5, "price": 1.5}
    feather.write_feather(pa.table(columns), tmp_path / "t.arrow")
    assert read_one(tmp_path / "t.arrow", number_columns=names[:4]).metadata["year"] == 2020


def test_a_number_column_that_is_not_there_is_an_error_for_tables(tmp_path: Path) -> None:
    write_files(tmp_path, {"t.csv": "text,n\nA,1\n"})
    write_parquet(tmp_path / "t.parquet", {"text": ["A"], "n": ["1"]})
    feather.write_feather(pa.table({"text": ["A"], "n": ["1"]}), tmp_path / "t.arrow")
    for name in ("t.csv", "t.parquet", "t.arrow"):
        message = error_of(tmp_path / name, **YEAR)
        assert message.startswith(f"{tmp_path / name}: no column 'year', ")
        assert "--numbers" in message


@pytest.mark.parametrize("values", [[[1]], [True], [{"a": 1}], [b"1"]])
def test_a_column_of_a_table_that_holds_something_else_is_an_error(
    tmp_path: Path, values: list[object]
) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"text": ["A"], "year": values})
    expected = f"{path}: column 'year' is to hold numbers (--numbers) but is "
    assert error_of(path, **YEAR).startswith(expected)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"number_columns": "year"}, "number_columns is a list of names, not the text 'year'"),
        ({"number_columns": ["text"]}, "'text' is the text column and cannot be a number column"),
        ({"number_columns": ["no"], "id_column": "no"}, "'no' is the id column and cannot be"),
        ({**YEAR, "metadata_columns": ["lang"]}, "'year' is a number column"),
    ],
)
def test_number_columns_that_cannot_be_are_refused_at_once(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    write_files(tmp_path, {"a.csv": "text\nA\n"})
    calls = (read_corpus, corpus_parts, number_like_columns)
    for call in calls:
        with pytest.raises(ValueError, match=problem) as caught:
            call(tmp_path / "a.csv", **options)
        assert not isinstance(caught.value, CorpusError)
    with pytest.raises(ValueError, match=problem):
        documents_from_records([], **options)


# --- what is told ---------------------------------------------------------------------------------

TABLE = "id,text,year,code,price,none,mixed\n1,5,2020,007,3.5,,1\n2,6,,008,-1, ,x\n"


def test_csv_columns_that_hold_numbers_alone_are_told_in_a_sentence(tmp_path: Path) -> None:
    path = write_files(tmp_path, {"t.csv": TABLE}) / "t.csv"
    assert number_like_columns(path) == [
        f"{path}: the values of 'year' and 'price' are numbers, kept as text; "
        "--numbers year,price lets filters compare them."
    ]
    (line,) = number_like_columns(path, number_columns=["price"])
    assert "the values of 'year' are numbers, kept as text; --numbers year lets" in line
    assert number_like_columns(path, number_columns=["price", "year"]) == []
    assert number_like_columns(path, metadata_columns=["code", "none"]) == []
    assert "'id', 'year' and 'price'" in number_like_columns(path, id_column="code")[0]


def test_columns_that_the_command_line_cannot_name_are_not_told(tmp_path: Path) -> None:
    write_files(tmp_path, {"t.csv": ',text,"a,b", c,year\n0,A,1,2,2020\n'})
    assert "the values of 'year' are numbers" in number_like_columns(tmp_path / "t.csv")[0]


def test_files_with_the_same_columns_share_the_sentence(tmp_path: Path) -> None:
    packed = gzip.compress(TABLE.encode())
    write_files(tmp_path, {"a.csv": TABLE, "b.tsv": TABLE.replace(",", "\t"), "c.csv.gz": packed})
    write_files(tmp_path, {"d.csv": "text,list price\nA,1\n", "e.csv": "text,lang\nA,en\n"})
    told = number_like_columns(f"{tmp_path}/*")
    assert [line.split(": ")[0] for line in told] == [
        f"{tmp_path}/a.csv and 2 more files",
        f"{tmp_path}/d.csv",
    ]
    assert "--numbers 'list price' lets" in told[1]


def test_only_the_first_rows_of_the_first_files_are_looked_at(tmp_path: Path) -> None:
    rows = "".join(f"A,{i},{i}\n" for i in range(1000))
    write_files(tmp_path, {"00.csv": f"text,n,m\n{rows}A,x,1\n"})
    write_files(tmp_path, {f"{i:02}.csv": f"text,c{i}\nA,1\n" for i in range(1, 30)})
    told = number_like_columns(f"{tmp_path}/*.csv")
    assert len(told) == 20
    assert "'n' and 'm'" in told[0]


def test_what_is_no_csv_or_cannot_be_read_is_not_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "A", "year": "2020"}])
    write_files(tmp_path, {"cut.csv.gz": gzip.compress(TABLE.encode())[:-9], "n.md": "n"})
    write_files(
        tmp_path, {"bad.csv": 'text,year\nA,1\n"A"x,2\n', "empty.csv": "", "dir/t.csv": TABLE}
    )
    assert number_like_columns([tmp_path, f"{tmp_path}/*", f"{tmp_path}/**/*.jsonl", "-"]) == []
    with pytest.raises(CorpusError, match="no such file or folder"):
        number_like_columns(tmp_path / "nowhere.csv")


def test_a_pipe_is_left_to_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(TABLE,))
    assert number_like_columns(path) == []
    writer.start()
    assert [d.id for d in read_corpus(path)] == ["1", "2"]
    writer.join()
