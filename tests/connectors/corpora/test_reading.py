"""Corpora on disk → documents: what a user gets for each kind of file, and for each thing wrong."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_rag.connectors.corpora import count_documents, read_corpus
from lclm_rag.errors import CorpusError
from lclm_rag.types import Document, MetadataValue
from support.corpus_files import (
    error_of,
    read_one,
    read_skipping,
    write_files,
    write_jsonl,
    write_parquet,
)


def ignore(message: str) -> None:
    """An on_skip for tests that look at something else."""


# --- Folders and text files -----------------------------------------------------------------------


def test_a_folder_gives_one_document_for_each_text_file_below_it(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {"b.txt": "bee", "a/deep/er.md": "deep", "a/x.MARKDOWN": "# x", "a/z.rst": "zed"},
    )
    assert list(read_corpus([tmp_path])) == [
        Document("a/deep/er.md", "deep", {"source": "a/deep/er.md"}),
        Document("a/x.MARKDOWN", "# x", {"source": "a/x.MARKDOWN"}),
        Document("a/z.rst", "zed", {"source": "a/z.rst"}),
        Document("b.txt", "bee", {"source": "b.txt"}),
    ]


def test_ids_do_not_depend_on_where_the_folder_is_seen_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"docs/sub/a.txt": "a"})
    monkeypatch.chdir(tmp_path / "docs")
    seen_from: list[str | Path] = [tmp_path / "docs", Path(), Path("../docs"), "sub/.."]
    assert [d.id for path in seen_from for d in read_corpus([path])] == ["sub/a.txt"] * 4


def test_a_single_path_may_be_given_by_itself(tmp_path: Path) -> None:
    path = write_files(tmp_path, {"a.txt": "a"}) / "a.txt"
    assert [d.id for d in read_corpus(str(path))] == [d.id for d in read_corpus(path)] == ["a.txt"]


def test_a_text_file_is_a_document_named_after_the_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"deep/a.md": "text"})
    assert read_one(tmp_path / "deep/a.md") == Document("a.md", "text", {"source": "a.md"})


def test_text_is_kept_as_it_is_but_for_the_byte_order_mark(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.txt": b"\xef\xbb\xbf\r\n caf\xc3\xa9 \r\n"})
    assert read_one(tmp_path).text == "\r\n café \r\n"


def test_what_a_folder_holds_beside_text_is_told_and_never_skipped_in_silence(
    tmp_path: Path,
) -> None:
    write_files(
        tmp_path,
        {
            "a.txt": "a",
            "README": "no suffix",
            "photo.png": b"\x89PNG",
            "rows.jsonl": "{}",
            ".hidden.txt": "h",
            ".git/one.txt": "1",
            ".git/two.txt": "2",
        },
    )
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.txt")
    told: list[str] = []
    assert read_one(tmp_path, on_ignore=told.append).id == "a.txt"
    assert [message.removeprefix(f"{tmp_path}/") for message in told] == [
        ".git: not read, it is hidden.",
        ".hidden.txt: not read, it is hidden.",
        "README: not read, it is of no kind that can be read.",
        "loop: not read, it is a link to a folder.",
        "photo.png: not read, it is of no kind that can be read.",
        "pipe.txt: not read, it is not a plain file.",
        "rows.jsonl: not read, only texts are read from a folder: name this file, or all such as "
        f"'{tmp_path}/**/*.jsonl'.",
    ]


def test_without_on_skip_what_is_not_read_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(tmp_path, {"a.txt": "a", "photo.png": b"\x89PNG"})
    assert read_one(tmp_path).id == "a.txt"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "photo.png: not read" in caplog.text


def test_a_link_to_a_text_file_is_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"elsewhere/a.txt": "a", "docs/.keep": ""})
    (tmp_path / "docs/link.txt").symlink_to(tmp_path / "elsewhere/a.txt")
    assert read_one(tmp_path / "docs").id == "link.txt"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"caf\xe9 au lait", "not UTF-8 (byte 0xe9 at offset 3, from 0); convert"),
        (b"\xef\xbb\xbf\xff", "not UTF-8 (byte 0xff at offset 3, from 0); convert"),
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf \n\t", "the file is empty"),
    ],
)
def test_a_bad_text_file_is_an_error_that_names_it(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    write_files(tmp_path, {"good.txt": "good", "bad.txt": content})
    assert error_of(tmp_path).startswith(f"{tmp_path}/bad.txt: {problem}")
    documents, skipped = read_skipping(tmp_path)
    assert [d.id for d in documents] == ["good.txt"]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{tmp_path}/bad.txt: {problem}")


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert "gone.txt: cannot be read (No such file" in error_of(tmp_path)


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By hand, because the tests may run as a user whom no permission stops.
    write_files(tmp_path, {"a.txt": "a", "shut/b.txt": "b"})
    iterdir = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "shut":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert error_of(tmp_path).startswith(f"{tmp_path}/shut: cannot be read (Permission denied)")
    assert [d.id for d in read_skipping(tmp_path)[0]] == ["a.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_file_name_that_is_not_utf8_is_an_error_that_can_be_printed(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    message = error_of(tmp_path)
    assert "caf\\udce9.txt: the file's name is not UTF-8; rename the file." in message
    message.encode()


# --- JSONL ----------------------------------------------------------------------------------------


def test_jsonl_gives_a_document_for_each_line(tmp_path: Path) -> None:
    records = [
        {"id": "one", "text": "First.", "lang": "en", "year": 1999, "score": 0.5, "draft": False},
        {"id": 2, "text": "Second.", "lang": None, "tags": ["a", 1, True, None], "none": []},
        {"id": 3, "text": "No.", "nested": {"a": 1}, "vector": [1, 0.5], "deep": [["a"]]},
        {"text": "Third."},
        {"id": None, "text": "Fourth."},
    ]
    path = write_jsonl(tmp_path / "c.jsonl", records)
    assert list(read_corpus([path])) == [
        Document("one", "First.", {"lang": "en", "year": 1999, "score": 0.5, "draft": False}),
        Document("2", "Second.", {"tags": ["a", 1, True, None], "none": []}),
        Document("3", "No."),
        Document("c.jsonl:4", "Third."),
        Document("c.jsonl:5", "Fourth."),
    ]


def test_blank_lines_are_no_records_but_count_as_lines(tmp_path: Path) -> None:
    write_files(tmp_path, {"c.ndjson": b'\xef\xbb\xbf\n{"text": "a"}\r\n \n{"text": "b"}'})
    assert [d.id for d in read_corpus([tmp_path / "c.ndjson"])] == ["c.ndjson:2", "c.ndjson:4"]


def test_a_byte_order_mark_before_the_first_record_is_removed(tmp_path: Path) -> None:
    write_files(tmp_path, {"c.jsonl": b'\xef\xbb\xbf{"text": "a"}'})
    assert read_one(tmp_path / "c.jsonl").text == "a"


def test_line_separators_inside_a_json_text_do_not_end_the_line(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\u2029d\re"
    assert read_one(write_jsonl(tmp_path / "c.jsonl", [{"text": text}])).text == text


def test_other_fields_can_hold_text_and_id(tmp_path: Path) -> None:
    record = {"id": "not this", "doc": "x1", "body": "The text.", "text": "short"}
    path = write_jsonl(tmp_path / "c.jsonl", [record])
    assert read_one(path, text_column="body", id_column="doc") == Document(
        "x1", "The text.", {"id": "not this", "text": "short"}
    )


def test_only_the_metadata_columns_that_were_asked_for_are_kept(tmp_path: Path) -> None:
    record: dict[str, object]
    record = {"id": "a", "text": "t", "lang": "en", "year": 1, "metadata": {"site": "s", "x": [1]}}
    path = write_jsonl(tmp_path / "c.jsonl", [record])
    document = read_one(path, metadata_columns=["site", "lang", "not there", "id"])
    assert document.metadata == {"site": "s", "lang": "en", "id": "a"}
    assert read_one(path, metadata_columns=[]).metadata == {}


def test_an_object_called_metadata_counts_as_further_fields(tmp_path: Path) -> None:
    record: dict[str, object] = {
        "id": "a",
        "text": "t",
        "lang": "en",
        "site": None,
        "metadata": {"id": "inner", "lang": "de", "site": "s", "none": None, "list": ["x"]},
    }
    path = write_jsonl(tmp_path / "c.jsonl", [record])
    assert read_one(path).metadata == {"id": "inner", "lang": "en", "site": "s", "list": ["x"]}


def test_a_metadata_field_that_is_no_object_is_metadata_like_any_other(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"text": "t", "metadata": "from the web"}])
    assert read_one(path).metadata == {"metadata": "from the web"}


def test_nan_in_metadata_means_missing(tmp_path: Path) -> None:
    write_files(tmp_path, {"c.jsonl": '{"text": "t", "score": NaN}'})
    assert read_one(tmp_path / "c.jsonl").metadata == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "caf\xe9"}', "not UTF-8 (byte 0xe9 at offset 13, from 0) of the line; convert"),
        (b'{"text": "a"', "not valid JSON (Expecting ',' delimiter at column 13); write one"),
        (b'{"text": "a"} {}', "not valid JSON (Extra data at column 15); write one"),
        (b"[1, 2]", "the line is JSON but not an object; write one"),
        (b"[" * 100_000, "JSON that cannot be read (maximum recursion depth"),
        (b'{"n": ' + b"9" * 5000 + b"}", "JSON that cannot be read (Exceeds the limit"),
        (b'{"body": "b", "title": "t"}', "no field 'text', only 'body' and 'title'; say which"),
        (b"{}", "no field 'text', only nothing; say which"),
        (b'{"text": " \\n"}', "field 'text' is empty; leave the record out"),
        (b'{"text": null}', "field 'text' is null, not text; mend"),
        (b'{"text": 5}', "field 'text' is a whole number, not text; mend"),
        (b'{"text": ["a"]}', "field 'text' is a list, not text; mend"),
        (b'{"text": {"a": 1}}', "field 'text' is an object, not text; mend"),
        (b'{"text": "a\\ud800"}', "field 'text' has half a surrogate pair"),
        (b'{"text": "a", "x": "\\udfff"}', "field 'x' has half a surrogate pair"),
        (b'{"text": "a", "id": 1.5}', "the id in field 'id' is a decimal number; make it"),
        (b'{"text": "a", "id": true}', "the id in field 'id' is a boolean; make it"),
        (b'{"text": "a", "id": ""}', "the id in field 'id' is empty; give"),
        (b'{"text": "a", "id": "\\ud800"}', "field 'id' has half a surrogate pair"),
        (b'{"text": "a", "x": -1e999}', "field 'x' is infinite, which metadata cannot hold; use"),
    ],
)
def test_a_bad_line_is_an_error_that_names_the_line_and_what_to_do(
    tmp_path: Path, line: bytes, problem: str
) -> None:
    write_files(tmp_path, {"c.jsonl": b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n'})
    path = tmp_path / "c.jsonl"
    assert error_of(path).startswith(f"{path}, line 2: {problem}")
    documents, skipped = read_skipping(path)
    assert [d.id for d in documents] == ["c.jsonl:1", "c.jsonl:3"]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{path}, line 2: {problem}")


def test_errors_do_not_show_the_text_of_documents(tmp_path: Path) -> None:
    write_files(tmp_path, {"c.jsonl": '{"text": "secret", "id": ["secret"]}\n{"text": "secret'})
    skipped: list[str] = []
    with pytest.raises(CorpusError, match="No document was found"):
        list(read_corpus([tmp_path / "c.jsonl"], on_error="skip", on_skip=skipped.append))
    assert len(skipped) == 2
    assert not any("secret" in message for message in skipped)


def test_long_lists_of_fields_are_cut(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{f"f{i}": i for i in range(100)}])
    assert "only 'f0', 'f1', " in error_of(path)
    assert "'f11' and 88 more; say which" in error_of(path)


def test_a_field_asked_for_as_metadata_may_hold_anything_that_json_can(tmp_path: Path) -> None:
    record = {"text": "t", "vector": [1, 0.5], "author": {"name": "A", "born": None}, "x": 1}
    path = write_jsonl(tmp_path / "c.jsonl", [record | {"metadata": {"deep": [["a"]]}}])
    kept = {"vector": [1, 0.5], "author": {"name": "A", "born": None}, "deep": [["a"]]}
    assert read_one(path, metadata_columns=["vector", "author", "deep"]).metadata == kept
    assert read_one(path, metadata_columns=["metadata"]).metadata == {"metadata": {"deep": [["a"]]}}


def test_an_id_column_chosen_by_name_must_be_there(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"text": "t", "doc_id": "x"}])
    expected = f"{path}, line 1: no id in field 'docid', the fields are 'text' and 'doc_id'; give"
    assert error_of(path, id_column="docid").startswith(expected)


# --- Parquet --------------------------------------------------------------------------------------


def test_parquet_gives_a_document_for_each_row(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "c.parquet",
        {
            "id": ["one", None],
            "text": ["First.", "Second."],
            "lang": pa.array(["en", None]).dictionary_encode(),
            "year": pa.array([1999, None], pa.int16()),
            "score": [0.5, float("nan")],
            "draft": [False, None],
            "embedding": [[1.0], [2.0]],
            "tags": [["a", "b"], None],
            "raw": [b"x", b"y"],
            "none": pa.nulls(2),
            "metadata": [{"site": "s", "lang": "de", "at": {"x": 1}}, {"site": None, "lang": "de"}],
        },
    )
    metadata: dict[str, MetadataValue]
    metadata = {"lang": "en", "year": 1999, "score": 0.5, "draft": False, "site": "s"}
    metadata["tags"] = ["a", "b"]
    assert list(read_corpus([path])) == [
        Document("one", "First.", metadata),
        Document("c.parquet:2", "Second.", {"lang": "de"}),
    ]


def test_parquet_dates_become_iso_texts_and_decimals_numbers(tmp_path: Path) -> None:
    midnight = datetime.datetime(2024, 5, 1)
    path = write_parquet(
        tmp_path / "c.parquet",
        {
            "text": ["t"],
            "day": [datetime.date(2024, 5, 1)],
            "local": [midnight],
            "nano": pa.array([1_700_000_000_000_000_001], pa.timestamp("ns")),
            "zone": pa.array([midnight], pa.timestamp("ms", "+02:00")),
            "time": pa.array([3_600_000_000_001], pa.time64("ns")),
            "price": [Decimal("1.25")],
            "took": pa.array([5], pa.duration("ns")),
        },
    )
    assert read_one(path).metadata == {
        "day": "2024-05-01",
        "local": "2024-05-01T00:00:00",
        "nano": "2023-11-14T22:13:20",
        "zone": "2024-05-01T02:00:00+02:00",
        "time": "01:00:00",
        "price": 1.25,
    }


def test_parquet_columns_asked_for_by_name(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "c.parquet",
        {"doc": [7], "text": ["t"], "a": [1], "b": [2], "metadata": [{"a": 3, "site": "s"}]},
    )
    document = read_one(path, id_column="doc", metadata_columns=["a", "site"])
    assert document == Document("7", "t", {"a": 1, "site": "s"})


@pytest.mark.parametrize(
    ("columns", "options", "problem"),
    [
        ({"body": ["b"]}, {}, ": no column 'text', only 'body'; say which"),
        ({"text": [1]}, {}, ": column 'text' is int64, not text; cast"),
        ({"text": [b"t"]}, {}, ": column 'text' is binary, not text; cast"),
        ({"text": ["t"], "id": [1.5]}, {}, ": column 'id' is double, which cannot be an id; cast"),
        ({"text": ["t"]}, {"id_column": "doc"}, ": no column 'doc', only 'text'; say which"),
        ({"text": ["t"]}, {"metadata_columns": ["lagn"]}, ": no column 'lagn', which was asked"),
        (
            {"text": ["t"], "v": [[b"x"]]},
            {"metadata_columns": ["v"]},
            ": column 'v' was asked for as metadata but is list<",
        ),
        ({"text": pa.array([None], pa.string())}, {}, ", row 1: field 'text' is null, not text"),
        ({"text": [" "]}, {}, ", row 1: field 'text' is empty"),
        ({"text": ["t"], "id": [""]}, {}, ", row 1: the id in field 'id' is empty"),
        ({"text": ["t"], "x": [float("inf")]}, {}, ", row 1: field 'x' is infinite"),
    ],
)
def test_a_bad_parquet_file_or_row_is_an_error_that_names_it(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    path = write_parquet(tmp_path / "c.parquet", columns)
    assert error_of(path, **options).startswith(f"{path}{problem}")


def test_parquet_text_that_is_not_utf8_costs_its_own_row_only(tmp_path: Path) -> None:
    broken = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    path = write_parquet(tmp_path / "c.parquet", {"text": broken})
    expected = f"{path}, row 2: column 'text' has a text that is not UTF-8 (byte 0xe9 at offset 3"
    assert error_of(path).startswith(expected)
    documents, skipped = read_skipping(path)
    assert [d.id for d in documents] == ["c.parquet:1", "c.parquet:3"]
    assert len(skipped) == 1


def test_a_date_that_python_cannot_hold_costs_its_own_row_only(tmp_path: Path) -> None:
    when = pa.array([0, 2**62], pa.timestamp("us"))
    path = write_parquet(tmp_path / "c.parquet", {"text": ["a", "b"], "when": when})
    assert error_of(path).startswith(f"{path}, row 2: column 'when' has a value that cannot be")
    assert [d.id for d in read_skipping(path)[0]] == ["c.parquet:1"]


def test_a_file_that_is_not_parquet_is_an_error_and_can_be_skipped(tmp_path: Path) -> None:
    write_files(tmp_path, {"bad.parquet": b"not this" * 10, "empty.parquet": b"", "a.txt": "a"})
    bad = tmp_path / "bad.parquet"
    assert error_of(bad).startswith(f"{bad}: not readable as Parquet (Parquet magic bytes not")
    documents, skipped = read_skipping(bad, tmp_path / "empty.parquet", tmp_path / "a.txt")
    assert [d.id for d in documents] == ["a.txt"]
    assert len(skipped) == 2


def test_rows_before_a_damaged_part_of_a_parquet_file_are_still_given(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(1000)]
    options = {"row_group_size": 500, "use_dictionary": False, "compression": "none"}
    path = write_parquet(tmp_path / "c.parquet", {"text": texts}, **options)
    group = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[group.data_page_offset : group.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    documents, skipped = read_skipping(path)
    assert [d.text for d in documents[:256]] == texts[:256]
    assert len(skipped) == 1
    assert f"{path}: not readable as Parquet after row {len(documents)} (" in skipped[0]


# --- All kinds ------------------------------------------------------------------------------------


def test_kinds_of_files_can_be_mixed_and_come_in_the_order_given(tmp_path: Path) -> None:
    write_files(tmp_path, {"docs/z.txt": "z", "docs/a.md": "a"})
    rows = write_parquet(tmp_path / "rows.parquet", {"text": ["p"]})
    lines = write_jsonl(tmp_path / "lines.jsonl", [{"text": "j"}])
    documents = list(read_corpus([rows, tmp_path / "docs", lines]))
    assert [d.id for d in documents] == ["rows.parquet:1", "a.md", "z.txt", "lines.jsonl:1"]


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere", "nowhere: no such file or folder; check the path."),
        ("nowhere.jsonl", "nowhere.jsonl: no such file or folder; check the path."),
        ("a.png", "a.png: not a kind of file that can be read; give"),
        ("a.txt.gz", "a.txt.gz: not a kind of file that can be read; give"),
        ("*.rtf", "*.rtf: no file that can be read has such a name; check"),
        ("**/*.png", "**/*.png: no file that can be read has such a name; check"),
    ],
)
def test_a_wrong_path_is_refused_at_once_even_where_errors_are_skipped(
    tmp_path: Path, name: str, problem: str, on_error: Any
) -> None:
    write_files(tmp_path, {"a.png": "x", "a.txt.gz": "x", "good.txt": "g"})
    for call in (lambda p: read_corpus(p, on_error=on_error), count_documents):
        with pytest.raises(CorpusError) as caught:
            call([tmp_path / "good.txt", tmp_path / name])
        assert str(caught.value).startswith(f"{tmp_path}/{problem}")


def test_wrong_arguments_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="No corpus is named"):
        read_corpus([])
    with pytest.raises(ValueError, match='on_error is "fail" or "skip"'):
        read_corpus([tmp_path], on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metadata_columns is a list of names"):
        read_corpus([tmp_path], metadata_columns="lang")


def empty_folder(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def empty_jsonl(path: Path) -> Path:
    return write_jsonl(path / "empty.jsonl", [])


def empty_parquet(path: Path) -> Path:
    return write_parquet(path / "empty.parquet", {"text": pa.array([], pa.string())})


@pytest.mark.parametrize("make", [empty_folder, empty_jsonl, empty_parquet])
def test_a_corpus_without_a_document_is_an_error(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    expected = f"No document was found in '{path}' (0 files or records were left out); name"
    assert error_of(path).startswith(expected)
    assert count_documents([path]) == 0


def test_a_corpus_of_which_nothing_could_be_read_is_an_error(tmp_path: Path) -> None:
    write_files(tmp_path, {"photo.png": b"x", "bad.txt": b"\xff"})
    assert "(2 files or records were left out)" in error_of(
        tmp_path, on_error="skip", on_skip=ignore, on_ignore=ignore
    )


def same_id_twice(folder: Path) -> dict[str, tuple[list[Path], str]]:
    """Paths whose documents share an id, and how the error begins."""
    write_files(folder, {"one/a.txt": "1", "two/a.txt": "2"})
    lines = write_jsonl(folder / "l.jsonl", [{"text": "x"}, {"id": "a.txt", "text": "y"}])
    again = write_jsonl(folder / "again.jsonl", [{"id": 5, "text": "x"}, {"id": "5", "text": "y"}])
    rows = write_parquet(folder / "r.parquet", {"id": ["a.txt"], "text": ["z"]})
    used = "the id 'a.txt' was already used in"
    one, two = folder / "one/a.txt", folder / "two/a.txt"
    return {
        "folders": ([folder / "one", folder / "two"], f"{two}: {used} {one};"),
        "files": ([one, two], f"{two}: {used} {one};"),
        "file, its folder": ([one, folder / "one"], f"{one}: {used} {one};"),
        "lines": ([again], f"{again}, line 2: the id '5' was already used in {again}, line 1;"),
        "row, line": ([rows, lines], f"{lines}, line 2: {used} {rows}, row 1;"),
        "line, folder": ([lines, folder / "two"], f"{two}: {used} {lines}, line 2;"),
    }


@pytest.mark.parametrize(
    "case", ["folders", "files", "file, its folder", "lines", "row, line", "line, folder"]
)
def test_an_id_used_twice_is_an_error_that_names_both_places(tmp_path: Path, case: str) -> None:
    paths, problem = same_id_twice(tmp_path)[case]
    assert error_of(*paths).startswith(problem)
    documents, skipped = read_skipping(*paths)
    assert len({d.id for d in documents}) == len(documents) >= 1
    assert len(skipped) == 1
    assert skipped[0].startswith(problem)


def test_two_runs_give_the_same_documents_in_the_same_order(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{i % 7}/{i * 37 % 100}.txt": str(i) for i in range(100)})
    lines = write_jsonl(tmp_path / "l.jsonl", [{"text": str(i)} for i in range(50)])
    first, second = (list(read_corpus([tmp_path, lines], on_ignore=ignore)) for _ in range(2))
    assert first == second
    assert len(first) == 150


# --- Streaming ------------------------------------------------------------------------------------


def test_documents_come_before_a_later_line_is_looked_at(tmp_path: Path) -> None:
    write_files(tmp_path, {"c.jsonl": '{"text": "a"}\n{"text": "b"}\nbroken\n'})
    documents = read_corpus([tmp_path / "c.jsonl"])
    assert [next(documents).text, next(documents).text] == ["a", "b"]
    with pytest.raises(CorpusError, match="line 3"):
        next(documents)


def test_the_first_line_of_a_pipe_is_a_document_while_the_pipe_is_still_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    # Opened for reading too, so that opening does not wait for the other end.
    pipe = os.open(path, os.O_RDWR)
    try:
        os.write(pipe, b'{"text": "first"}\n')
        assert count_documents([path]) is None
        documents = read_corpus([path])
        assert next(documents).text == "first"
        os.write(pipe, b'{"text": "second"}\n')
        assert next(documents).text == "second"
    finally:
        os.close(pipe)


def test_memory_does_not_grow_with_the_text_that_was_read(tmp_path: Path) -> None:
    texts = ["x" * 20_000] * 1000
    path = write_jsonl(tmp_path / "c.jsonl", ({"text": text} for text in texts))
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_corpus([path]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1000
    assert peak < 2_000_000  # of 20 MB


def test_a_parquet_file_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", {"text": ["x" * 20_000] * 1000})
    tracemalloc.start()
    try:
        assert next(iter(read_corpus([path]))).id == "c.parquet:1"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000  # of 20 MB


def test_pyarrow_is_imported_only_for_parquet(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.txt": "a"})
    code = (
        "import sys; from lclm_rag.connectors.corpora import read_corpus; "
        "list(read_corpus(sys.argv[1])); sys.exit('pyarrow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


# --- Counting -------------------------------------------------------------------------------------


def test_the_count_is_the_number_of_documents_that_come(tmp_path: Path) -> None:
    write_files(tmp_path, {"d/a.txt": "a", "d/b/c.md": "c", "d/p.png": b"x", "e.txt": "e"})
    write_files(tmp_path, {"l.jsonl": '{"text": "1"}\n\n{"text": "2"}'})
    write_parquet(tmp_path / "r.parquet", {"text": ["p"] * 5, "id": list(range(5))})
    paths = [tmp_path / name for name in ("d", "e.txt", "l.jsonl", "r.parquet")]
    assert count_documents(paths) == 10
    assert len(list(read_corpus(paths, on_ignore=ignore))) == 10


def test_there_is_no_count_where_it_would_take_long_or_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"bad.parquet": b"not this" * 10, "l.jsonl": '{"text": "a"}\n'})
    assert count_documents([tmp_path / "bad.parquet"]) is None
    assert count_documents([tmp_path / "l.jsonl"]) == 1
    monkeypatch.setattr("lclm_rag.connectors.corpora.counting._BYTES_TO_COUNT", 10)
    assert count_documents([tmp_path / "l.jsonl"]) is None


# --- What is written comes back -------------------------------------------------------------------

texts = st.text(min_size=1, max_size=60).filter(lambda text: bool(text.strip()))
floats = st.floats(allow_nan=False, allow_infinity=False)
int64s = st.integers(-(2**63), 2**63 - 1)
names = st.text(min_size=1, max_size=8).filter(lambda name: name not in ("id", "text", "metadata"))


def lists_of_documents(metadata: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Document]]:
    ids = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
    documents = st.builds(Document, id=ids, text=texts, metadata=metadata)
    return st.lists(documents, min_size=1, max_size=6, unique_by=lambda document: document.id)


@settings(deadline=None, max_examples=50)
@given(
    documents=lists_of_documents(
        st.dictionaries(names, st.text() | int64s | floats | st.booleans(), max_size=4)
    ),
    nested=st.booleans(),
    ensure_ascii=st.booleans(),
)
def test_documents_written_as_jsonl_come_back_the_same(
    documents: list[Document], nested: bool, ensure_ascii: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_jsonl(
            Path(folder) / "c.jsonl",
            (
                {"id": d.id, "text": d.text} | ({"metadata": m} if nested else m)
                for d in documents
                for m in [dict(d.metadata)]
            ),
            ensure_ascii=ensure_ascii,
        )
        read = list(read_corpus([path]))
        assert count_documents([path]) == len(documents)
    assert read == documents
    assert [d.content_hash() for d in read] == [d.content_hash() for d in documents]


COLUMNS = {"lang": pa.string(), "year": pa.int64(), "score": pa.float64(), "draft": pa.bool_()}


@settings(deadline=None, max_examples=50)
@given(
    documents=lists_of_documents(
        st.fixed_dictionaries(
            {},
            optional={
                "lang": st.text(),
                "year": int64s,
                "score": floats,
                "draft": st.booleans(),
            },
        )
    ),
    nested=st.booleans(),
)
def test_documents_written_as_parquet_come_back_the_same(
    documents: list[Document], nested: bool
) -> None:
    table = {
        "id": pa.array([d.id for d in documents]),
        "text": pa.array([d.text for d in documents]),
    }
    columns = {
        name: pa.array([d.metadata.get(name) for d in documents], kind)
        for name, kind in COLUMNS.items()
    }
    if nested:
        columns = {"metadata": pa.StructArray.from_arrays(list(columns.values()), list(columns))}
    with tempfile.TemporaryDirectory() as folder:
        path = write_parquet(Path(folder) / "c.parquet", table | columns)
        read = list(read_corpus([path]))
        assert count_documents([path]) == len(documents)
    assert read == documents
    assert [d.content_hash() for d in read] == [d.content_hash() for d in documents]
