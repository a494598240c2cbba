"""Which files a path stands for: globs, documents that are converted, packed files, URLs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclm_rag.connectors.corpora import count_documents, read_corpus
from lclm_rag.connectors.corpora.files import kind_of
from lclm_rag.errors import CorpusError
from support.corpus_files import (
    HTML,
    error_of,
    packed,
    read_one,
    read_skipping,
    write_files,
    write_jsonl,
)

# --- globs ----------------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    files = (
        "top.md",
        "a/one.md",
        "a/one.txt",
        "a/b/two.md",
        ".hidden/no.md",
        "a/.no.md",
        "x/p.png",
    )
    return write_files(tmp_path / "notes", {name: f"Text of {name}." for name in files})


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("notes/**/*.md", ["a/b/two.md", "a/one.md", "top.md"]),
        ("notes/*.md", ["top.md"]),
        ("notes/a/*", ["one.md", "one.txt"]),
        ("notes/*/*.txt", ["a/one.txt"]),
        ("notes/**/b/*", ["a/b/two.md"]),
        ("notes/a/**", ["b/two.md", "one.md", "one.txt"]),
        ("n?tes/[a-b]/one.*", ["notes/a/one.md", "notes/a/one.txt"]),
        ("notes/.hidden/*.md", ["no.md"]),
        ("notes/.*/*.md", [".hidden/no.md"]),
    ],
)
def test_a_glob_gives_the_files_that_match_by_the_path_below_its_fixed_part(
    notes: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, ids: list[str]
) -> None:
    monkeypatch.chdir(notes.parent)
    for glob in (pattern, str(notes.parent / pattern), Path(pattern)):
        assert [d.id for d in read_corpus(glob)] == ids
    assert count_documents(pattern) == len(ids)


@given(
    names=st.lists(st.sampled_from(["a", "b", "ab", ".c"]), min_size=1, max_size=4),
    pattern=st.lists(st.sampled_from(["**", "*", "a*", "?", "b", ".*"]), min_size=1, max_size=4),
)
def test_a_folder_is_looked_into_wherever_a_file_below_it_matches(
    names: list[str], pattern: list[str]
) -> None:
    from lclm_rag.connectors.corpora.files import _is_meant

    if _is_meant(tuple(pattern), "/".join(names), is_folder=False):
        for depth in range(1, len(names)):
            assert _is_meant(tuple(pattern), "/".join(names[:depth]), is_folder=True)


def test_a_path_that_is_there_is_no_glob(tmp_path: Path) -> None:
    write_files(tmp_path, {"notes[1].md": "one", "notes1.md": "other"})
    assert read_one(tmp_path / "notes[1].md").text == "one"


def test_a_glob_of_records_gives_each_an_id_of_its_own_and_names_the_file(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "rows.jsonl", [{"text": folder}])
    ids = [d.id for d in read_corpus(tmp_path / "*/rows.jsonl")]
    assert ids == ["x/rows.jsonl:1", "y/rows.jsonl:1"]
    (tmp_path / "y/rows.jsonl").write_text("{")
    assert error_of(tmp_path / "*/rows.jsonl").startswith(f"{tmp_path}/y/rows.jsonl, line 1: ")


def test_what_a_glob_matches_and_cannot_be_read_is_told(notes: Path) -> None:
    documents, messages = read_skipping(f"{notes}/*/*")
    assert [d.id for d in documents] == ["a/one.md", "a/one.txt"]
    assert messages == [f"{notes}/x/p.png: not read, it is of no kind that can be read."]


# --- HTML, PDF, DOCX ------------------------------------------------------------------------------


def docx(path: Path) -> None:
    from docx import Document as Docx

    document = Docx()
    document.add_heading("The northern line", 1)
    document.add_paragraph("It opens in May.")
    document.save(str(path))


def pdf(path: Path, text: str | None) -> None:
    from fpdf import FPDF

    document = FPDF()
    document.add_page()
    document.set_font("helvetica")
    document.rect(10, 10, 20, 20)
    if text:
        document.cell(text=text)
    document.output(str(path))


def test_html_pdf_and_docx_become_markdown(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.html": HTML, "b.HTM": HTML, "e.md": "text"})
    docx(tmp_path / "c.docx")
    pdf(tmp_path / "d.pdf", "The southern line opens in June.")
    found = {d.id: d for d in read_corpus(tmp_path)}
    assert list(found) == ["a.html", "b.HTM", "c.docx", "d.pdf", "e.md"]
    assert found["a.html"].text == found["b.HTM"].text == "## Café\n\nIt opens."
    assert found["a.html"].metadata == {"source": "a.html", "title": "A page"}
    assert found["c.docx"].text.startswith("# The northern line\n")
    assert "It opens in May." in found["c.docx"].text
    assert found["d.pdf"].text.strip() == "The southern line opens in June."
    assert found["d.pdf"].metadata == {"source": "d.pdf"}
    assert count_documents(tmp_path) == 5


@pytest.mark.parametrize(
    "page",
    [
        HTML.encode(),
        b"\xef\xbb\xbf" + HTML.encode(),
        HTML.encode("utf-16"),
        HTML.replace("<head>", '<head><meta charset="iso-8859-1">').encode("latin-1"),
    ],
)
def test_html_is_read_in_the_encoding_that_it_names(tmp_path: Path, page: bytes) -> None:
    write_files(tmp_path, {"a.html": page})
    assert read_one(tmp_path / "a.html").text == "## Café\n\nIt opens."


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("bad.pdf", b"no such thing", "cannot be read as PDF ("),
        ("bad.docx", b"no such thing", "cannot be read as DOCX (File is not a zip file); mend"),
        ("bad.html", HTML.encode("latin-1"), "not UTF-8 (byte 0xe9 at offset"),
        ("bad.htm", b"<html><body></body></html>", "there is no text in it"),
        ("bad.pdf", b"", "the file is empty"),
    ],
)
def test_a_document_that_cannot_be_converted_is_an_error_that_names_it(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    write_files(tmp_path, {name: content, "good.txt": "good"})
    assert error_of(tmp_path).startswith(f"{tmp_path}/{name}: {problem}")
    documents, skipped = read_skipping(tmp_path)
    assert [d.id for d in documents] == ["good.txt"]
    assert len(skipped) == 1


def test_a_scan_without_text_is_an_error(tmp_path: Path) -> None:
    pdf(tmp_path / "scan.pdf", None)
    assert "scan.pdf: there is no text in it (a scan, perhaps)" in error_of(tmp_path)


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from importlib import util
find_spec = util.find_spec
util.find_spec = lambda name, *more: None if name == sys.argv[1] else find_spec(name, *more)
from lclm_rag.connectors.corpora import read_corpus
try:
    read_corpus(sys.argv[2])
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "named", "extra"),
    [
        ("markitdown", "{folder}/b/page.html", "documents"),
        ("markitdown", "{folder}", "documents"),
        ("markitdown", "{folder}/**/*.h*", "documents"),
        ("datasets", "hf://someone/notes", "datasets"),
    ],
)
def test_a_missing_extra_is_named_before_anything_is_read(
    tmp_path: Path, module: str, named: str, extra: str
) -> None:
    """Where the library is not installed: stood in for by a process that cannot import it."""
    write_files(tmp_path, {"a.md": "text", "b/page.html": HTML})
    command = [sys.executable, "-c", WITHOUT, module, named.format(folder=tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"pip install 'lclm-rag[{extra}]'" in done.stdout
    assert done.stdout.count("\n") == 1


# --- packed files ---------------------------------------------------------------------------------

LINES = b"".join(b'{"text": "line %d"}\n' % i for i in range(20_000))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_lines_are_read_to_the_end_of_the_last_member(tmp_path: Path, suffix: str) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    both = packed(LINES[:half], suffix) + packed(LINES[half:], suffix)
    path = write_files(tmp_path, {f"c.jsonl{suffix}": both}) / f"c.jsonl{suffix}"
    documents = list(read_corpus(path))
    assert [d.text for d in documents] == [f"line {i}" for i in range(20_000)]
    assert documents[-1].id == f"c.jsonl{suffix}:20000"
    assert count_documents(path) is None


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_was_cut_off_or_damaged_is_an_error(tmp_path: Path, suffix: str) -> None:
    whole = packed(LINES, suffix)
    damaged = {"cut": whole[:-5], "half": whole[: len(whole) // 2], "none": b"not packed at all"}
    for name, content in damaged.items():
        path = write_files(tmp_path, {f"{name}.jsonl{suffix}": content}) / f"{name}.jsonl{suffix}"
        assert error_of(path).startswith(f"{path}: cannot be read")


def test_packed_csv(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        name = f"c.csv{suffix}"
        write_files(tmp_path, {name: packed("id,text\na,é\n".encode(), suffix)})
        assert (read_one(tmp_path / name).id, read_one(tmp_path / name).text) == ("a", "é")


def test_only_lines_may_be_packed() -> None:
    assert kind_of("a.JSONL.GZ") == "jsonl"
    assert kind_of("a.tsv.zst") == "csv"
    assert kind_of("a.parquet.gz") is kind_of("a.md.gz") is kind_of("a.gz") is None


# --- URLs --------------------------------------------------------------------------------------------


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    write_files(tmp_path, {"notes/a b.md": "text"})
    assert read_one(f"file://{tmp_path}/notes").id == "a b.md"
    assert read_one(f"file://{tmp_path}/notes/a b.md").text == "text"


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b/c/d", "hf://datasets/a", "hf:///b"])
def test_what_is_no_name_of_a_data_set_is_refused(uri: str) -> None:
    with pytest.raises(CorpusError, match="not the name of a data set; write hf://OWNER/NAME"):
        read_corpus(uri)
