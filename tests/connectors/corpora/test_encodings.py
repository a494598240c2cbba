"""Text is UTF-8, or says by a byte order mark that it is UTF-16 or UTF-32; nothing else is taken for text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from lclm_rag.connectors.corpora import count_documents, number_like_columns, read_corpus
from support.corpus_files import HTML, error_of, read_one, read_skipping, write_files

TEXT = "Die Mole hält. 雪 😀\n"
RECORDS = '{"id": "a", "text": "Die Mole hält. 雪 😀"}\n{"id": "b", "text": "second"}\n'
ROWS = 'id,text,year\r\na,"Die Mole\nhält. 雪 😀",1931\r\nb,second,1932\r\n'
MARKED = ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
UNMARKED = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


def marked(text: str, encoding: str) -> bytes:
    own_mark = encoding in ("utf-8-sig", "utf-16", "utf-32")
    return (text if own_mark else f"\ufeff{text}").encode(encoding)


@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_says_how_a_file_is_read(tmp_path: Path, encoding: str) -> None:
    texts = {"a.txt": TEXT, "a.md": TEXT, "a.html": HTML, "a.jsonl": RECORDS, "a.csv": ROWS}
    files = {name: marked(text, encoding) for name, text in texts.items()}
    files |= {f"p.{name}.gz": gzip.compress(files[name]) for name in ("a.jsonl", "a.csv")}
    write_files(tmp_path, files)
    assert read_one(tmp_path / "a.txt").text == read_one(tmp_path / "a.md").text == TEXT
    assert read_one(tmp_path / "a.html").text.startswith("## Café")
    for name in ("a.jsonl", "p.a.jsonl.gz"):
        assert [d.text for d in read_corpus(tmp_path / name)] == [TEXT.strip(), "second"]
    for name in ("a.csv", "p.a.csv.gz"):
        assert [d.text for d in read_corpus(tmp_path / name)] == ["Die Mole\nhält. 雪 😀", "second"]
        assert "the values of 'year' are numbers" in number_like_columns(tmp_path / name)[0]
    assert count_documents(tmp_path / "a.jsonl") == count_documents(tmp_path / "a.csv") == 2


@pytest.mark.parametrize("encoding", UNMARKED)
def test_without_a_mark_it_is_refused(tmp_path: Path, encoding: str) -> None:
    texts = {"a.txt": TEXT, "a.rst": TEXT, "a.htm": HTML, "a.jsonl": RECORDS, "a.csv": ROWS}
    plain = {name: "".join(c for c in text if c.isascii()) for name, text in texts.items()}
    write_files(tmp_path, {name: text.encode(encoding) for name, text in plain.items()})
    for name in plain:
        assert error_of(tmp_path / name) == (
            f"{tmp_path / name}: NUL characters, as in a binary file, or in UTF-16 and UTF-32 without a byte "
            "order mark; convert it to UTF-8 or leave it out."
        )
        assert number_like_columns(tmp_path / name) == []
        assert count_documents(tmp_path / name) in (1, None)


def test_a_binary_file_is_no_text_whatever_its_name(tmp_path: Path) -> None:
    binary = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + b"text and more text " * 40
    names = ["b.txt", "b.md", "b.html", "b.jsonl", "b.csv"]
    write_files(tmp_path, {"good.txt": "good", **dict.fromkeys(names, binary)})
    documents, skipped = read_skipping(*(tmp_path / name for name in ["good.txt", *names]))
    assert [d.id for d in documents] == ["good.txt"]
    assert [line.split(": ")[0].split(",")[0] for line in skipped] == [
        str(tmp_path / name) for name in names
    ]


def test_a_line_or_row_with_a_nul_is_bad_and_those_around_it_are_not(tmp_path: Path) -> None:
    lines = [b'{"text": "first of all"}', b"\0" * 20, b'{"text": "a\\u0000b, as it says"}']
    rows = [b"text", b"first of all", b"se\0cond", b"third"]
    lines_path = write_files(tmp_path, {"c.jsonl": b"\n".join(lines)}) / "c.jsonl"
    rows_path = write_files(tmp_path, {"c.csv": b"\n".join(rows)}) / "c.csv"
    documents, skipped = read_skipping(lines_path, rows_path)
    texts = ["first of all", "a\0b, as it says", "first of all", "third"]
    assert [d.text for d in documents] == texts
    assert skipped[0].startswith(f"{lines_path}, line 2: NUL characters")
    assert skipped[1].startswith(f"{rows_path}, line 3: NUL characters")
    assert len(skipped) == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_what_is_not_in_the_encoding_of_its_mark(tmp_path: Path, name: str) -> None:
    whole = marked(RECORDS if name == "a.jsonl" else ROWS, "utf-16-le")
    path = write_files(tmp_path, {name: whole[:-1]}) / name
    assert "cannot be read" in error_of(path)
    assert "it is not UTF-16: truncated data" in error_of(path)
    surrogate = "\ufeff".encode("utf-16-le") + (
        '{"text": "half \ud83d."}\n' if name == "a.jsonl" else "text\nhalf \ud83d.\n"
    ).encode("utf-16-le", "surrogatepass")
    path.write_bytes(surrogate)
    assert "not UTF-8" in error_of(path)


@pytest.mark.parametrize(("name", "data"), [("a.txt", b"\xff\xfea"), ("a.html", b"\xff\xfea")])
def test_texts_that_are_not_in_the_encoding_of_their_mark(
    tmp_path: Path, name: str, data: bytes
) -> None:
    path = write_files(tmp_path, {name: data}) / name
    assert error_of(path) == f"{path}: not UTF-16; convert the file to UTF-8."


@pytest.mark.parametrize("charset", ["utf-16", "punycode", "base64", "rot13", "no-such", "utf-7"])
def test_a_page_that_declares_an_encoding_that_it_cannot_have(tmp_path: Path, charset: str) -> None:
    page = HTML.replace("<head>", f'<head><meta charset="{charset}">').encode("latin-1")
    path = write_files(tmp_path, {"a.html": page}) / "a.html"
    assert error_of(path).startswith(f"{path}: not UTF-8 (byte 0xe9 at offset")
