"""Reads JSONL: one document for each line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from lclm_rag.connectors.corpora.encodings import has_nul, utf8_stream
from lclm_rag.connectors.corpora.items import Item
from lclm_rag.connectors.corpora.limits import ReadingLimits, size
from lclm_rag.connectors.corpora.messages import not_utf8, printable, unreadable
from lclm_rag.connectors.corpora.records import Columns, document_from_record
from lclm_rag.errors import CorpusError
from lclm_rag.storage import Location, open_unpacked
from lclm_rag.types import Document

__all__ = ["count_lines", "read_jsonl", "read_lines"]

_PIECE = 1 << 20


def read_jsonl(
    path: Location, name: str, columns: Columns, limits: ReadingLimits
) -> Iterator[Item]:
    """Read a JSONL file: one document for each line that is not blank.

    Args:
        path: The file, which is decompressed if its name ends in the suffix of a compression.
        name: The beginning of ids made from line numbers: without an id, a record's id is "<name>:<line>".
        columns: Which field holds what.
        limits: How long a line may be.

    Yields:
        Line numbers from 1, and documents or errors. Errors of the whole file have the number 0.
    """
    number = 0
    try:
        with open_unpacked(path) as lines:
            for number, item in read_lines(lines, name, printable(path), columns, limits):
                yield number, item
    except CorpusError as error:
        yield 0, error
    except OSError as error:
        yield 0, unreadable(path, error, f" after line {number}" if number else "")


def read_lines(
    lines: BinaryIO, name: str | None, where: str, columns: Columns, limits: ReadingLimits
) -> Iterator[Item]:
    r"""Read JSONL from a stream: one document for each line that is not blank.

    One line at a time is in memory. Lines end at "\n" only, because other line separators may stand inside a
    JSON string.

    Args:
        lines: The stream: UTF-8, or UTF-16 or UTF-32 with a byte order mark.
        name: The beginning of ids made from line numbers; None if every record must have its own id.
        where: The stream, for error messages.
        columns: Which field holds what.
        limits: How long a line may be.

    Yields:
        Line numbers from 1, and documents or errors.

    Raises:
        CorpusError: When the stream is not text.
        OSError: When the stream cannot be read.
    """
    number = 0
    lines = utf8_stream(lines, where)
    while line := lines.readline(limits.line + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > limits.line and not line.isspace():
            del line
            _pass_over_line(lines)
            yield number, _too_long(f"{where}, line {number}", limits)
            continue
        if not line.isspace() and line:
            default_id = None if name is None else f"{name}:{number}"
            item = _document(line, columns, default_id, f"{where}, line {number}")
            del line  # It may be long, and must not stay in memory while the document is processed.
            yield number, item


def count_lines(path: Location) -> int:
    """The number of lines that are not blank.

    Raises:
        OSError: When the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            lines = utf8_stream(file, printable(path))
        except CorpusError as error:
            raise OSError(str(error)) from error
        count, has_text = 0, False
        for piece in iter(partial(lines.readline, _PIECE), b""):
            has_text = has_text or not piece.isspace()
            if piece.endswith(b"\n"):
                count, has_text = count + has_text, False
        return count + has_text


def _pass_over_line(lines: BinaryIO) -> None:
    """Read to the end of a line whose beginning was read."""
    while (piece := lines.readline(_PIECE)) and not piece.endswith(b"\n"):
        pass


def _too_long(where: str, limits: ReadingLimits) -> CorpusError:
    return CorpusError(
        f"{where}: longer than {size(limits.line)}; split the record, or allow longer lines (--longest-line)."
    )


def _document(
    line: bytes, columns: Columns, default_id: str | None, where: str
) -> Document | CorpusError:
    try:
        return document_from_record(_record(line, where), columns, default_id, where)
    except CorpusError as error:
        return error


def _record(line: bytes, where: str) -> dict[str, object]:
    if b"\0" in line:
        raise has_nul(where)
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
