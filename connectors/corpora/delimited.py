"""Reads CSV and TSV: one document for each row below the header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TextIO

from lclm_rag.connectors.corpora.items import Item
from lclm_rag.connectors.corpora.messages import is_unicode, name_list, printable, unreadable
from lclm_rag.connectors.corpora.records import Columns, document_from_record
from lclm_rag.errors import CorpusError
from lclm_rag.storage import Location, open_unpacked
from lclm_rag.types import Document

__all__ = ["count_rows", "first_rows", "read_csv"]

if TYPE_CHECKING:
    from _csv import Reader

_LONGEST_VALUE = 1 << 27
"""Characters. Without a limit, a quote that is never closed would read the rest of the file as one value."""


def read_csv(path: Location, name: str, columns: Columns) -> Iterator[Item]:
    """Read a CSV or TSV file: one document for each row, with one row at a time in memory.

    The first row names the columns. Values are texts, except in number columns; an empty value counts as
    missing.

    Args:
        path: The file, which is decompressed if its name ends in the suffix of a compression.
        name: The beginning of ids made from line numbers: without an id, a row's id is "<name>:<line>".
        columns: Which column holds what.

    Yields:
        The line at which each row begins, from 1, and a document or an error. Errors of the whole file have
        the number 0.
    """
    line = 0
    try:
        with _open(path) as text:
            rows = _rows(text, path)
            header = _header(rows, columns, printable(path))
            while True:
                line = rows.line_num + 1
                try:
                    row = next(rows)
                    if row:
                        where = f"{printable(path)}, line {line}"
                        yield line, _document(row, header, columns, f"{name}:{line}", where)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield line, _not_csv(path, line, error)
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
        try:
            return max(0, sum(bool(row) for row in _rows(text, path)) - 1)
        except csv.Error as error:
            raise ValueError(str(error)) from error


def first_rows(path: Location, count: int) -> Iterator[dict[str, str]]:
    """The first `count` rows below the header as dicts by column; rows of another width are skipped.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When the file is not valid CSV.
    """
    with _open(path) as text:
        rows = _rows(text, path)
        try:
            header = next(rows, [])
            for row in islice(rows, count):
                if len(row) == len(header):
                    yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from error


def _open(path: Location) -> TextIO:
    # Bytes that are not UTF-8 are decoded to lone surrogates here, and reported row by row later.
    return io.TextIOWrapper(
        open_unpacked(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def _rows(text: TextIO, path: Location) -> Reader:
    csv.field_size_limit(max(_LONGEST_VALUE, csv.field_size_limit()))
    is_tsv = ".tsv" in path.name.lower()
    return csv.reader(text, delimiter="\t" if is_tsv else ",", strict=True)


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


def _not_csv(path: Location, line: int, error: csv.Error) -> CorpusError:
    return CorpusError(
        f"{printable(path)}, line {line}: not valid CSV ({error}); a quote within a value is written twice, "
        "and one that opens a value must close it."
    )
