"""JSONL → documents: one JSON object on each line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

from lclm_rag.connectors.corpora.items import Item
from lclm_rag.connectors.corpora.messages import not_utf8, printable, unreadable
from lclm_rag.connectors.corpora.records import Columns, document_from_record
from lclm_rag.errors import CorpusError
from lclm_rag.storage import Location, open_unpacked
from lclm_rag.types import Document

__all__ = ["count_lines", "read_jsonl", "read_lines"]


def read_jsonl(path: Location, name: str, columns: Columns) -> Iterator[Item]:
    """A document for each line that is not blank; without an id its id is "<name>:<line>"."""
    number = 0
    try:
        with open_unpacked(path) as lines:
            for number, item in read_lines(lines, name, printable(path), columns):
                yield number, item
    except OSError as error:
        yield 0, unreadable(path, error, f" after line {number}" if number else "")


def read_lines(lines: BinaryIO, name: str | None, where: str, columns: Columns) -> Iterator[Item]:
    """A document for each line that is not blank; one line at a time is in memory.

    Lines end at "\\n" only: other line separators may stand inside a JSON string.
    name: None where records must have ids of their own. Raises OSError.
    """
    number = 0
    while line := lines.readline():
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.isspace() and line:
            default_id = None if name is None else f"{name}:{number}"
            item = _document(line, columns, default_id, f"{where}, line {number}")
            del line  # It may be long, and the document is worked on before the next is read.
            yield number, item


def count_lines(path: Location) -> int:
    """Lines that are not blank; raises OSError."""
    with path.open("rb") as lines:
        return sum(not line.isspace() for line in lines)


def _document(
    line: bytes, columns: Columns, default_id: str | None, where: str
) -> Document | CorpusError:
    try:
        return document_from_record(_record(line, where), columns, default_id, where)
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
