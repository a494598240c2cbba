"""Reads all paths of a corpus as one stream of documents."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from lclm_rag.connectors.corpora import delimited, jsonl
from lclm_rag.connectors.corpora.files import CorpusFile, corpus_files
from lclm_rag.connectors.corpora.hugging_face import HubDataset, SavedDataset, read_splits
from lclm_rag.connectors.corpora.items import Item
from lclm_rag.connectors.corpora.limits import DEFAULT_LIMITS, ReadingLimits
from lclm_rag.connectors.corpora.messages import name_list, printable
from lclm_rag.connectors.corpora.records import Columns, read_records
from lclm_rag.connectors.corpora.sources import Source, Stdin, find_sources
from lclm_rag.connectors.corpora.texts import read_text
from lclm_rag.errors import CorpusError
from lclm_rag.ingestion.unique_ids import UniqueIds
from lclm_rag.types import Document

__all__ = ["columns_of", "documents_from_records", "read_corpus", "read_file"]

_logger = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]
Report = Callable[[str], None]


@dataclass(frozen=True)
class _Origin:
    """Where items come from: a file or data set with numbered `unit`s, or a folder of texts (None)."""

    where: str
    unit: str | None

    def place(self, document_id: str, number: int) -> str:
        if self.unit is None:
            return printable(self.where + document_id)
        return f"{self.where}, {self.unit} {number}"


Part = tuple[_Origin, Iterator[Item]]


def read_corpus(
    paths: str | Path | Sequence[str | Path],
    *,
    text_column: str = "text",
    id_column: str = "id",
    metadata_columns: Sequence[str] | None = None,
    number_columns: Sequence[str] | None = None,
    limits: ReadingLimits = DEFAULT_LIMITS,
    on_error: OnError = "fail",
    on_skip: Report | None = None,
    on_ignore: Report | None = None,
) -> Iterator[Document]:
    """Stream the documents of folders, globs, files, data sets, object stores and standard input.

    One document, line or small batch of rows at a time is in memory, for a corpus of any size. Order and ids
    are the same in every run over the same files.

    What `paths` may name:

    - A folder: the texts below it, one document each. Text and Markdown (.txt, .md, .markdown, .rst) are
      taken unchanged; HTML, PDF and DOCX (.html, .htm, .pdf, .docx) become Markdown, which needs the extra
      `documents`. The id is the path below the folder, with "/"; metadata is {"source": that path}, and the
      `title` of HTML. A folder with Parquet or Arrow files and no texts is a data set, of which all rows are
      read; in a Hive-partitioned one, the folders ("lang=en") are metadata. Hidden files, links to folders,
      knowledge bases and other files are not read; `on_ignore` is called for each.
    - A glob, "notes/**/*.md", "rows/*.jsonl.gz": the files that match, of all kinds. Ids are relative to the
      part before the first wildcard.
    - JSONL (.jsonl, .ndjson) and CSV (.csv, .tsv; the first row names the columns), also compressed by gzip
      or zstd (.jsonl.gz, .csv.zst); Parquet (.parquet) and Arrow (.arrow, .feather, .ipc). Their records
      become documents as described below.
    - A folder written by `datasets.Dataset.save_to_disk`, or a data set on the hub as "hf://OWNER/NAME",
      "hf://OWNER/NAME:SPLIT", "hf://OWNER/NAME/CONFIG:SPLIT", which needs the extra `datasets`. Without a
      split, all of them are read.
    - "-": JSONL on standard input, whose records must have ids.
    - Any of these files, folders and globs in an object store: s3://, gs://, which needs the extra
      `object-stores`. Keys and endpoint are taken from the store's environment variables. A URL with "?" or
      "#" is refused, so the only wildcards there are * and [].

    A record becomes a document as follows. Its text is in `text_column`. Its id is in `id_column`, a text or
    a whole number; if "id" is missing or null, it is "<file name>:<line or row, from 1>", but a column other
    than "id" must exist. Its metadata is every other scalar or list of scalars, or only the
    `metadata_columns`, which may also be objects and lists of anything. Lists with decimal numbers are taken
    for vectors, and are kept only if they are named. An object in the field `metadata` counts as further
    fields; if a name is in both, the record's own field counts. Null and NaN are left out. Times become ISO
    8601 texts (to the microsecond), decimals floats, UUIDs texts. Columns of a table that hold something else
    (binary values, durations) are not read; `on_ignore` is called for each table with such ones. Values of
    CSV stay text, and empty ones count as missing. The texts of `number_columns` become numbers as JSON would
    read them, so that filters can compare them: "2020", "-3.5", "1e3". An empty one counts as missing, and
    any other, such as "n/a", "1,000" or the code "007", makes the record a bad one.

    Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark, which is removed. HTML, PDF and DOCX are
    converted in a process of their own, so that a broken or hostile file costs no more than the `limits`.

    Args:
        paths: One path or several, as above.
        text_column: The field or column with the text.
        id_column: The field or column with the id.
        metadata_columns: The fields or columns to keep as metadata; None for the default above.
        number_columns: The fields or columns of the metadata whose texts become numbers.
        limits: What one file may cost; one that goes beyond a limit is a bad file.
        on_error: What happens at a bad file or record: "fail" raises CorpusError, "skip" reports it to
            `on_skip` and continues.
        on_skip: Called with one line, "path: reason", for each bad file or record that is skipped; by default
            it is logged as a warning.
        on_ignore: Called with such a line for each file or folder that is not read by rule; by default it is
            logged as a warning.

    Returns:
        The documents, read while they are iterated over.

    Raises:
        CorpusError: At once, when `paths` names nothing, something that does not exist, a knowledge base or a
            kind of file that is not supported. While iterating, for bad files and records, and for ids that
            occur twice. At the end, when there was no document at all.
        ValueError: When an argument is invalid.
        ImportError: At once, when an extra is missing.
    """
    columns = columns_of(text_column, id_column, metadata_columns, number_columns)
    report = _error_report(on_error, on_skip)
    sources = find_sources(paths)
    parts = (part for source in sources for part in _parts(source, columns, limits))
    return _documents(parts, name_list(map(str, sources)), report, on_ignore or _warn)


def documents_from_records(
    records: Iterable[Mapping[str, object]],
    *,
    text_column: str = "text",
    id_column: str = "id",
    metadata_columns: Sequence[str] | None = None,
    number_columns: Sequence[str] | None = None,
    name: str | None = None,
    on_error: OnError = "fail",
    on_skip: Report | None = None,
) -> Iterator[Document]:
    """Stream the documents of records in memory: a `datasets.Dataset`, rows of a database, dicts.

    Args:
        records: Mappings from field names to values; they become documents as `read_corpus` describes.
        text_column: As for `read_corpus`.
        id_column: As for `read_corpus`.
        metadata_columns: As for `read_corpus`.
        number_columns: As for `read_corpus`.
        name: The name of the records; one without an id gets "<name>:<number, from 1>". None: every record
            must have an id, because its number would mean another record in the next call.
        on_error: As for `read_corpus`.
        on_skip: As for `read_corpus`.

    Returns:
        The documents, made while they are iterated over.

    Raises:
        CorpusError: While iterating, for bad records and for ids that occur twice; at the end, when there was
            no document at all.
        ValueError: When an argument is invalid.
    """
    columns = columns_of(text_column, id_column, metadata_columns, number_columns)
    part = (_Origin(name or "records", "record"), read_records(records, name, columns))
    return _documents(iter([part]), name or "the records", _error_report(on_error, on_skip), _warn)


def columns_of(
    text: str, id: str, metadata: Sequence[str] | None, numbers: Sequence[str] | None
) -> Columns:
    """Check the names of columns and put them together.

    Args:
        text: The text column.
        id: The id column.
        metadata: The metadata columns; None for all that metadata keeps by default.
        numbers: The number columns; None for none.

    Raises:
        ValueError: When the names contradict each other, or a list of names is a single text.
    """
    for option, names in (("metadata_columns", metadata), ("number_columns", numbers)):
        if isinstance(names, str):
            raise ValueError(f"{option} is a list of names, not the text {names!r}.")
    for name in numbers or ():
        if name in (text, id):
            holds = "text" if name == text else "id"
            raise ValueError(
                f"{name!r} is the {holds} column and cannot be a number column (--numbers); leave it out."
            )
        if metadata is not None and name not in metadata:
            raise ValueError(
                f"{name!r} is a number column (--numbers) but not kept as metadata; name it among the "
                "metadata columns (--metadata-columns), too."
            )
    return Columns(text, id, None if metadata is None else tuple(metadata), tuple(numbers or ()))


def _error_report(on_error: OnError, on_skip: Report | None) -> Report | None:
    """The function that takes the message of an error; None if errors are raised."""
    if on_error not in ("fail", "skip"):
        raise ValueError(f'on_error is "fail" or "skip", not {on_error!r}.')
    return (on_skip or _warn) if on_error == "skip" else None


def _parts(source: Source, columns: Columns, limits: ReadingLimits) -> Iterator[Part]:
    if isinstance(source, Stdin):
        lines = jsonl.read_lines(sys.stdin.buffer, None, "stdin", columns, limits)
        yield _Origin("stdin", "line"), lines
    elif isinstance(source, SavedDataset | HubDataset):
        for where, items in read_splits(source, columns):
            yield _Origin(where, "row"), items
    else:
        for item in corpus_files(source):
            if isinstance(item, CorpusFile):
                yield read_file(item, columns, limits)
            else:
                yield _Origin(printable(source.root), None), iter([(0, item)])


def read_file(file: CorpusFile, columns: Columns, limits: ReadingLimits) -> Part:
    """Read a file: where its items come from, and the items."""
    match file.kind:
        case "jsonl":
            lines = jsonl.read_jsonl(file.path, file.name, columns, limits)
            return _Origin(printable(file.path), "line"), lines
        case "csv":
            rows = delimited.read_csv(file.path, file.name, columns, limits)
            return _Origin(printable(file.path), "line"), rows
        case "parquet" | "arrow":
            # pyarrow is imported only here: most commands and many corpora do not need it.
            from lclm_rag.connectors.corpora import arrow

            read = arrow.read_parquet if file.kind == "parquet" else arrow.read_arrow
            return _Origin(printable(file.path), "row"), read(file, columns)
        case "text" | "document":
            root = "" if file.root == Path() else f"{file.root}/"
            return _Origin(root, None), iter([(0, read_text(file, limits))])
        case _:
            assert_never(file.kind)


def _documents(
    parts: Iterator[Part], named: str, skip: Report | None, ignore: Report
) -> Iterator[Document]:
    seen = UniqueIds()
    origins: list[_Origin] = []
    documents = left_out = 0
    for origin, items in parts:
        # All texts of a folder have the same origin, so the list does not grow with their number.
        if not origins or origins[-1] != origin:
            origins.append(origin)
        for number, item in items:
            if isinstance(item, Document):
                first = seen.first(item.id, len(origins) - 1, number)
                if first is None:
                    documents += 1
                    yield item
                    continue
                item = CorpusError(
                    f"{origin.place(item.id, number)}: the id {item.id!r} was already used in "
                    f"{origins[first[0]].place(item.id, first[1])}; give each document an id of its own."
                )
            left_out += 1
            if not isinstance(item, CorpusError):
                ignore(item.message)
            elif skip is None:
                raise item
            else:
                skip(str(item))
    if not documents:
        raise CorpusError(
            f"No document was found in {named} ({left_out} files or records were left out); name a "
            "corpus that has text."
        )


def _warn(message: str) -> None:
    _logger.warning("%s", message)
