"""What one file of a corpus may cost: lines without end, files that unpack to too much, conversions."""

from __future__ import annotations

import gzip
import io
import re
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lclm_rag.cli import cli
from lclm_rag.cli.corpus import LIMITS, corpus_limits
from lclm_rag.connectors.corpora import (
    ReadingLimits,
    arrow,
    converting,
    corpus_parts,
    count_documents,
    read_corpus,
)
from lclm_rag.connectors.corpora.limits import MIB
from lclm_rag.errors import CorpusError
from support.corpus_files import HTML, error_of, read_one, read_skipping, write_files

LARGE_PAGE = "<html><body>" + "<p>x</p>" * 150_000 + "</body></html>"
"""It takes some hundred megabytes and more than a second to convert."""


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Within the test, no more than a few megabytes are taken."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * MIB


SHORT = ReadingLimits(line=MIB)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_a_line_that_does_not_end_is_one_bad_record(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with (gzip.open if name.endswith(".gz") else open)(path, "wb") as file:
        file.write(b'{"text": "good"}\n{"text": "')
        for _ in range(64):
            file.write(bytes(MIB).replace(b"\0", b"a"))
        file.write(b'"}\n{"text": "good, too"}\n')
    documents, skipped = read_skipping(path, limits=SHORT)
    assert [d.id for d in documents] == [f"{name}:1", f"{name}:3"]
    assert skipped == [
        f"{path}, line 2: longer than 1 MiB; split the record, or allow longer lines (--longest-line)."
    ]
    assert count_documents(path) == (None if name.endswith(".gz") else 3)
    with pytest.raises(CorpusError, match="line 2: longer than 1 MiB"):
        list(read_corpus(path, limits=SHORT))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("start", ["b,", 'b,"', 'b,"\n', "b," + "," * 2000])
def test_a_row_of_csv_that_does_not_end_is_the_last_one(tmp_path: Path, start: str) -> None:
    path = tmp_path / "c.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write(f"id,text\na,good\n{start}")
        for _ in range(64):
            file.write("\n".join(["z" * 1023] * 1024) if "\n" in start else "z" * MIB)
        file.write("\nc,not read\n")
    documents, skipped = read_skipping(path, limits=SHORT)
    assert [d.id for d in documents] == ["a"]
    (sentence,) = skipped
    assert sentence.startswith(
        f"{path}, line 3: the row that begins here is longer than 1 MiB, and"
    )
    assert sentence.endswith("(--longest-line).")


@pytest.mark.usefixtures("little_memory")
def test_a_header_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    with path.open("wb") as file:
        for _ in range(32):
            file.write(b"a," * MIB)
    assert "line 1: the row that begins here is longer than 1 MiB" in error_of(path, limits=SHORT)


def test_a_file_that_is_read_whole_has_a_largest_size(tmp_path: Path) -> None:
    limits = ReadingLimits(file=1000)
    write_files(tmp_path, {"a.md": "x" * 1000, "b.md": "x" * 1001, "c.html": HTML * 20})
    documents, skipped = read_skipping(tmp_path, limits=limits)
    assert [d.id for d in documents] == ["a.md"]
    assert skipped[0] == (
        f"{tmp_path}/b.md: larger than 1,000 bytes; split it, or allow larger files (--largest-file)."
    )
    assert skipped[1].startswith(f"{tmp_path}/c.html: larger than 1,000 bytes; ")
    assert [d.id for d in read_skipping(tmp_path, limits=ReadingLimits(file=9999))[0]] == [
        *("a.md", "b.md", "c.html")
    ]


def docx(paragraphs: int) -> bytes:
    from docx import Document as Docx

    plain, large = io.BytesIO(), io.BytesIO()
    document = Docx()
    document.add_paragraph("Hello.")
    document.save(plain)
    with zipfile.ZipFile(plain) as parts, zipfile.ZipFile(large, "w", zipfile.ZIP_DEFLATED) as more:
        for name in parts.namelist():
            part = parts.read(name)
            if name == "word/document.xml":
                start, end = part.split(b"<w:p>", 1)
                part = start + b"<w:p><w:r><w:t>x</w:t></w:r></w:p>" * paragraphs + b"<w:p>" + end
            more.writestr(name, part)
    return large.getvalue()


def test_a_docx_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = write_files(tmp_path, {"a.docx": docx(2_000_000)}) / "a.docx"
    assert path.stat().st_size < MIB
    assert error_of(path) == (
        f"{path}: unpacks to more than 64 MiB of XML; split the document, or allow more (--largest-unpacked)."
    )
    small = write_files(tmp_path, {"b.docx": docx(2)}) / "b.docx"
    assert read_one(small).text == "x\n\nx\n\nHello."
    assert "more than 1,000 bytes of XML" in error_of(small, limits=ReadingLimits(unpacked=1000))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
def test_a_conversion_has_so_much_memory_and_no_more(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.html": LARGE_PAGE, "b.html": HTML})
    documents, skipped = read_skipping(tmp_path, limits=ReadingLimits(memory=48 * MIB))
    assert [d.id for d in documents] == ["b.html"]
    # A library that gets no memory need not say so: it may crash.
    too_much = "converting it takes more than 48 MiB of memory"
    assert re.fullmatch(
        f"{tmp_path}/a.html: ({too_much}|the converter crashes at it .*); "
        r"leave it out, or allow more \(--convert-memory\)\.",
        skipped[0],
    )


def test_a_conversion_has_so_much_time_and_no_more(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.html": LARGE_PAGE, "b.html": HTML})
    (part,) = corpus_parts(tmp_path, limits=ReadingLimits(seconds=0.05)).parts  # type: ignore[union-attr]
    late, _ = part.read()
    assert str(late) == (
        f"{tmp_path}/a.html: converting it takes longer than 0.05 seconds; leave it out, or allow more "
        "(--convert-seconds)."
    )
    assert read_one(tmp_path / "b.html").text.startswith("## Café")


def test_files_share_a_process_which_is_replaced_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(converting, "_idle", [])
    monkeypatch.setattr(subprocess, "Popen", popen)
    folder = write_files(tmp_path, {f"{i}.html": HTML for i in range(50)})
    assert len(list(read_corpus(folder))) == 50
    assert len(started) == 1
    started[0].kill()
    started[0].wait()
    assert len(list(read_corpus(folder))) == 50
    assert len(started) == 2
    started[1].kill()


def test_deep_pages_are_refused_and_cost_no_other(tmp_path: Path) -> None:
    deep = "<div>" * 20_000 + "deep" + "</div>" * 20_000
    write_files(tmp_path, {"a.html": f"<html><body>{deep}</body></html>", "b.html": HTML})
    documents, skipped = read_skipping(tmp_path)
    assert [d.id for d in documents] == ["b.html"]
    assert skipped[0].startswith(f"{tmp_path}/a.html: cannot be read as HTML (")


def test_nothing_in_the_corpus_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process must not start in the folder that it reads: Python would import what lies there."""
    write_files(tmp_path, {"json.py": "raise SystemExit", "markitdown.py": "x = 1", "a.html": HTML})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(converting, "_idle", [])
    assert read_one("a.html").text.startswith("## Café")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "5", 10**30])
def test_a_limit_is_a_positive_number(value: Any) -> None:
    for name in ("line", "seconds"):
        with pytest.raises(ValueError, match=f"The limit '{name}' of a corpus must be a positive"):
            ReadingLimits(**{name: value})


def test_the_command_line_sets_each_limit(tmp_path: Path) -> None:
    defaults = {name: default for name, (_, default, _, _) in LIMITS.items()}
    assert corpus_limits(defaults) == ReadingLimits()
    write_files(tmp_path, {"c.jsonl": '{"text": "' + "x" * MIB + '"}\n'})
    arguments = [str(tmp_path / "c.jsonl"), "--kb", str(tmp_path / "kb"), "--longest-line", "1"]
    done = CliRunner().invoke(cli, ["build", *arguments])
    assert isinstance(done.exception, CorpusError)
    assert "line 1: longer than 1 MiB" in str(done.exception)
    assert not (tmp_path / "kb").exists()


def test_a_value_that_parquet_holds_once_for_many_rows_is_not_decoded_for_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = "x" * MIB
    table = pa.table({"text": pa.array([large] * 400), "tags": pa.array([["a", large]] * 400)})
    pq.write_table(
        table, tmp_path / "c.parquet", dictionary_pagesize_limit=4 * MIB, compression="zstd"
    )
    assert (tmp_path / "c.parquet").stat().st_size < MIB
    monkeypatch.setattr(arrow, "_BATCH_BYTES", 16 * MIB)
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for document in read_corpus([tmp_path / "c.parquet"]):
        count += 1
        most = max(most, pa.total_allocated_bytes() - before)
        assert document.text == large
    assert count == 400
    assert most < 64 * MIB
