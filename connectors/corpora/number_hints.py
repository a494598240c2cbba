"""Finds columns of CSV files, where all values are text, that a user may want to be numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from lclm_rag.connectors.corpora.delimited import first_rows
from lclm_rag.connectors.corpora.files import CorpusFile, Files, corpus_files, kind_of
from lclm_rag.connectors.corpora.messages import name_list, printable
from lclm_rag.connectors.corpora.reading import columns_of
from lclm_rag.connectors.corpora.records import Columns, number_in
from lclm_rag.connectors.corpora.sources import Source, find_sources
from lclm_rag.storage import Location

__all__ = ["number_like_columns"]

_ROWS = 1000
_CHARACTERS = 1 << 24
"""The most characters to read of a file, for files with long rows."""
_CSV_FILES = 20
_FILES = 1000
"""How many files of any kind to search for CSV files."""


def number_like_columns(
    paths: str | Path | Sequence[str | Path],
    *,
    text_column: str = "text",
    id_column: str = "id",
    metadata_columns: Sequence[str] | None = None,
    number_columns: Sequence[str] | None = None,
) -> list[str]:
    """Hints about columns of CSV files that are kept as text but hold only numbers.

    The hints are based on the first rows of the first files. Files that cannot be read are left to
    `read_corpus`, and standard input is not read.

    Args:
        paths: As for `read_corpus`.
        text_column: As for `read_corpus`.
        id_column: As for `read_corpus`.
        metadata_columns: As for `read_corpus`.
        number_columns: As for `read_corpus`.

    Returns:
        A sentence for each set of such columns.

    Raises:
        CorpusError: When `read_corpus` raises it at once.
        ValueError: When an argument is invalid.
        ImportError: When an extra is missing.
    """
    columns = columns_of(text_column, id_column, metadata_columns, number_columns)
    files_by_columns: dict[tuple[str, ...], list[Location]] = {}
    files = (file for source in find_sources(paths) for file in _csv_files(source))
    for file in islice(files, _CSV_FILES):
        if names := _number_like(file.path, columns):
            files_by_columns.setdefault(names, []).append(file.path)
    return [_sentence(names, places) for names, places in files_by_columns.items()]


def _csv_files(source: Source) -> Iterator[CorpusFile]:
    if not isinstance(source, Files) or not _may_have_csv(source):
        return
    for file in islice(corpus_files(source), _FILES):
        # A pipe is left out, because it can be read only once.
        if isinstance(file, CorpusFile) and file.kind == "csv" and _is_plain_file(file.path):
            yield file


def _may_have_csv(files: Files) -> bool:
    """Whether the path may have CSV files, by its name; a folder by itself gives none.

    Only the name counts, because listing an object store may take long.
    """
    last = files.pattern[-1] if files.pattern else files.single
    return last is not None and kind_of(last) in (None, "csv")


def _is_plain_file(path: Location) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _number_like(path: Location, columns: Columns) -> tuple[str, ...]:
    """The columns, in the file's order, that have values and whose values are all numbers."""
    are_numbers: dict[str, bool | None] = {}
    characters = 0
    try:
        for row in first_rows(path, _ROWS):
            for name, value in row.items():
                known = are_numbers.setdefault(name, None)
                if value.strip() and known is not False and _is_kept_as_text(name, columns):
                    are_numbers[name] = number_in(value) is not None
            characters += sum(map(len, row.values()))
            if characters > _CHARACTERS:
                break
    except (OSError, ValueError):
        return ()
    return tuple(name for name, known in are_numbers.items() if known)


def _is_kept_as_text(name: str, columns: Columns) -> bool:
    """Whether the column is kept as text, and its name can be given on the command line, between commas."""
    if not name or "," in name or name != name.strip():
        return False
    if name in (columns.text, columns.id, *columns.numbers):
        return False
    return columns.metadata is None or name in columns.metadata


def _sentence(names: tuple[str, ...], places: list[Location]) -> str:
    more = len(places) - 1
    others = f" and {more} more {'files' if more > 1 else 'file'}" if more else ""
    option = f"--numbers {shlex.quote(','.join(names))}"
    return (
        f"{printable(places[0])}{others}: the values of {name_list(names)} are numbers, kept as text; "
        f"{option} lets filters compare them."
    )
