"""Reads CSV and TSV: one document for each row below the header."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TextIO

from lclm_rag.connectors.corpora.encodings import has_nul, utf8_stream
from lclm_rag.connectors.corpora.items import Item
from lclm_rag.connectors.corpora.limits import DEFAULT_LIMITS, ReadingLimits, size
from lclm_rag.connectors.corpora.messages import is_unicode, name_list, printable, unreadable
from lclm_rag.connectors.corpora.records import Columns, document_from_record
from lclm_rag.errors import CorpusError
from lclm_rag.storage import Location, open_unpacked
from lclm_rag.types import Document

__all__ = ["count_rows", "first_rows", "read_csv"]

if TYPE_CHECKING:
    from _csv import Reader


def read_csv(path: Location, name: str, columns: Columns, limits: ReadingLimits) -> Iterator[Item]:
    """Read a CSV or TSV file: one document for each row, with one row at a time in memory.

    The first row names the columns. Values are texts, except in number columns; an empty value counts as
    missing.

    Args:
        path: The file, which is decompressed if its name ends in the suffix of a compression.
        name: The beginning of ids made from line numbers: without an id, a row's id is "<name>:<line>".
        columns: Which column holds what.
        limits: How long a row may be.

    Yields:
        The line at which each row begins, from 1, and a document or an error. Errors of the whole file have
        the number 0.
    """
    line = 0
    try:
        with _open(path) as text:
            lines = _Lines(text, limits)
            rows = _rows(lines, path)
            header = _header(rows, columns, printable(path))
            while True:
                line = rows.line_num + 1
                lines.begin_row()
                try:
                    row = next(rows)
                    if row:
                        where = f"{printable(path)}, line {line}"
                        yield line, _document(row, header, columns, f"{name}:{line}", where)
                except StopIteration:
                    return
                except _TooLongError:
                    yield line, _too_long(path, line, limits)
                    return
                except csv.Error as error:
                    yield line, _not_csv(path, line, error)
    except _TooLongError:
        yield 1, _too_long(path, 1, limits)
    except CorpusError as error:
        yield 0, error
    except OSError as error:
        yield 0, unreadable(path, error, f" after line {line - 1}" if line else "")


def count_rows(path: Location) -> int:
    """The number of rows below the header.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When the file is not valid CSV.
    """
    with _open(path) as text:
        lines = _Lines(text, DEFAULT_LIMITS)
        count = -1
        try:
            for row in _rows(lines, path):
                count += bool(row)
                lines.begin_row()
            return max(0, count)
        except (csv.Error, _TooLongError) as error:
            raise ValueError(str(error)) from error


def first_rows(path: Location, count: int) -> Iterator[dict[str, str]]:
    """The first `count` rows below the header as dicts by column; rows of another width are skipped.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When the file is not valid CSV.
    """
    with _open(path) as text:
        lines = _Lines(text, DEFAULT_LIMITS)
        rows = _rows(lines, path)
        try:
            header = next(rows, [])
            lines.begin_row()
            for row in islice(rows, count):
                lines.begin_row()
                if len(row) == len(header):
                    yield dict(zip(header, row, strict=True))
        except (csv.Error, _TooLongError) as error:
            raise ValueError(str(error)) from error


class _TooLongError(Exception):
    """A row is longer than the limit."""


class _Lines:
    """The lines of a text, of which a row may take up no more than the limit.

    A line that never ends, or a quote that is never closed, would else be read to the end of the file.
    """

    def __init__(self, text: TextIO, limits: ReadingLimits) -> None:
        self._text = text
        self._limit = limits.line
        self._left = limits.line

    def begin_row(self) -> None:
        """Count from here."""
        self._left = self._limit

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._left -= len(line)
        if self._left < 0:
            raise _TooLongError("a row is too long")
        return line


def _open(path: Location) -> TextIO:
    """The file as text; CorpusError if it is none.

    Bytes that are not UTF-8 become lone surrogates, and are reported row by row later.
    """
    packed = open_unpacked(path)
    try:
        stream = utf8_stream(packed, printable(path))
    except BaseException:
        packed.close()
        raise
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _rows(lines: _Lines, path: Location) -> Reader:
    csv.field_size_limit(sys.maxsize)  # For the whole process; here the rows are limited.
    is_tsv = ".tsv" in path.name.lower()
    return csv.reader(lines, delimiter="\t" if is_tsv else ",", strict=True)


def _header(rows: Reader, columns: Columns, where: str) -> list[str]:
    """The names in the first row; CorpusError if a needed one is missing or a name occurs twice."""
    try:
        names: list[str] = next(rows, [])
    except csv.Error as error:
        raise CorpusError(f"{where}, line 1: not valid CSV ({error}); mend the header.") from error
    needed = [columns.text, *([columns.id] if columns.id_is_required else ())]
    needed += [*(columns.metadata or ()), *columns.numbers]
    missing = [name for name in needed if name not in names]
    if missing:
        raise CorpusError(
            f"{where}: no column {missing[0]!r}, only {name_list(names)}; the first row must name the "
            "columns: say which to take (--text-column, --id-column, --metadata-columns, --numbers)."
        )
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise CorpusError(f"{where}: two columns are called {twice[0]!r}; rename one.")
    return names


def _document(
    row: Sequence[str], header: list[str], columns: Columns, default_id: str, where: str
) -> Document | CorpusError:
    if len(row) != len(header):
        return CorpusError(
            f"{where}: {len(row)} values where the header has {len(header)}; mend the row, or quote "
            "values that hold the separator."
        )
    if any("\0" in value for value in row):
        return has_nul(where)
    if not all(map(is_unicode, row)):
        return CorpusError(f"{where}: not UTF-8; convert the file to UTF-8.")
    # CSV cannot express a missing value other than by an empty one.
    record = {
        name: value
        for name, value in zip(header, row, strict=True)
        if value or name in (columns.text, columns.id)
    }
    try:
        return document_from_record(record, columns, default_id, where)
    except CorpusError as error:
        return error


def _too_long(path: Location, line: int, limits: ReadingLimits) -> CorpusError:
    return CorpusError(
        f"{printable(path)}, line {line}: the row that begins here is longer than {size(limits.line)}, and "
        "nothing after it was read; close its quotes, split the row, or allow longer ones (--longest-line)."
    )


def _not_csv(path: Location, line: int, error: csv.Error) -> CorpusError:
    return CorpusError(
        f"{printable(path)}, line {line}: not valid CSV ({error}); a quote within a value is written twice, "
        "and one that opens a value must close it."
    )
