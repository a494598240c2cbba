"""JSONL → documents: one JSON object on each line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from lclm_rag.connectors.corpora.records import (
    CorpusError,
    Fields,
    Item,
    document_from_record,
    not_utf8,
    shown,
    unreadable,
)
from lclm_rag.documents import Document

__all__ = ["count_lines", "read_jsonl"]


def read_jsonl(path: Path, fields: Fields) -> Iterator[Item]:
    """A document for each line that is not blank; one line at a time is in memory.

    Lines end at "\\n" only: other line separators may stand inside a JSON string.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, _document(line, fields, path, number)
    except OSError as error:
        yield 0, unreadable(path, error)


def count_lines(path: Path) -> int:
    """Lines that are not blank; raises OSError."""
    with path.open("rb") as lines:
        return sum(not line.isspace() for line in lines)


def _document(line: bytes, fields: Fields, path: Path, number: int) -> Document | CorpusError:
    where = f"{shown(path)}, line {number}"
    try:
        record = _record(line, where)
        return document_from_record(record, fields, f"{path.name}:{number}", where)
    except CorpusError as error:
        return error


def _record(line: bytes, where: str) -> dict[str, object]:
    try:
        record = json.loads(line.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        problem = not_utf8(error)
        raise CorpusError(f"{where}: {problem} of the line; convert the file to UTF-8.") from error
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); "
            "write one JSON object on each line."
        ) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise CorpusError(
            f"{where}: JSON that cannot be read ({error}); mend the line or leave it out."
        ) from error
    if not isinstance(record, dict):
        raise CorpusError(
            f"{where}: the line is JSON but not an object; write one JSON object on each line."
        )
    return record
