"""Whatever is named, one stream of documents."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lclm_rag.connectors.corpora import delimited, jsonl
from lclm_rag.connectors.corpora.files import CorpusFile, corpus_files
from lclm_rag.connectors.corpora.hugging_face import HubDataset, SavedDataset, read_splits
from lclm_rag.connectors.corpora.items import Item
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
    """Where items come from: a file or data set whose `unit`s are numbered, or a folder of texts (None)."""

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
    on_error: OnError = "fail",
    on_skip: Report | None = None,
    on_ignore: Report | None = None,
) -> Iterator[Document]:
    """Stream the documents of folders, globs, files, data sets, object stores and standard input.

    One document, line or small batch of rows at a time is in memory, whatever the size of the corpus.
    Order and ids are the same in every run over the same files.

    What `paths` may name:

    - A folder: the texts below it, one document each. Text and Markdown (.txt, .md, .markdown, .rst)
      stand as they are; HTML, PDF and DOCX (.html, .htm, .pdf, .docx) become Markdown, with the extra
      `documents`. The id is the path below the folder, with "/"; metadata is {"source": that path},
      and the `title` of HTML. A folder of Parquet and Arrow files alone is a data set: all its rows;
      the folders of a Hive-partitioned one ("lang=en") are metadata. Hidden files, links to folders,
      knowledge bases and other files are not read, and `on_ignore` is told of each.
    - A glob, "notes/**/*.md", "rows/*.jsonl.gz": the files that match, of all kinds. Ids are relative
      to the part before the first wildcard.
    - JSONL (.jsonl, .ndjson) and CSV (.csv, .tsv; the first row names the columns), also packed by
      gzip or zstd (.jsonl.gz, .csv.zst); Parquet (.parquet) and Arrow (.arrow, .feather, .ipc). The
      text is in `text_column`. The id is in `id_column`, a text or a whole number; where "id" is
      missing or null it is "<file name>:<line or row, from 1>", but a column other than "id" that is
      named here must be there. Metadata is every other scalar or list of scalars, or
      `metadata_columns` only, which may also be objects and lists of anything; lists with decimal
      numbers are taken for vectors, and are kept only where they are named. An object in the field
      `metadata` counts as further fields; where a name is in both, the record's own field counts.
      Null and NaN are left out. Times become ISO 8601 texts (to the microsecond), decimals floats;
      what comes from CSV stays text, and empty values are missing. The texts of `number_columns`
      become numbers, as JSON would read them, so that filters can compare them: "2020", "-3.5",
      "1e3"; an empty one is missing, and any other, "n/a", "1,000" or the code "007", is a bad record.
    - A folder written by `datasets.Dataset.save_to_disk`, or a data set on the hub as
      "hf://OWNER/NAME", "hf://OWNER/NAME:SPLIT", "hf://OWNER/NAME/CONFIG:SPLIT", with the extra
      `datasets`. Without a split, all of them.
    - "-": JSONL on standard input, whose records must have ids.
    - Any of these files, folders and globs in an object store: s3://, gs://, with the extra
      `object-stores`. Keys and endpoint are given as the store's environment variables; a URL with
      "?" or "#" is refused, so that the wildcards there are * and [] alone.

    Text is UTF-8; a byte order mark is removed.

    on_error: what becomes of a bad file or record. "fail" raises CorpusError; "skip" tells
        `on_skip` and goes on.
    on_skip, on_ignore: take one line, "path: reason", for a bad file or record that was skipped,
        and for what is no corpus file in the first place; without them, these are logged as
        warnings.

    Raises CorpusError at once where `paths` names nothing, something that is not there, a knowledge
    base or a kind of file that is not supported; while iterating, for bad files and records and for ids
    that come twice; at the end, where there was no document at all. Raises ValueError for a wrong
    argument, and ImportError, at once, where an extra is missing.
    """
    columns = columns_of(text_column, id_column, metadata_columns, number_columns)
    report = _error_report(on_error, on_skip)
    sources = find_sources(paths)
    parts = (part for source in sources for part in _parts(source, columns))
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

    Columns, on_error and on_skip as for `read_corpus`. name: of the records; one without an id gets
    "<name>:<number, from 1>". None: each must have an id, because a number says nothing of what the
    next call will bring.
    """
    columns = columns_of(text_column, id_column, metadata_columns, number_columns)
    part = (_Origin(name or "records", "record"), read_records(records, name, columns))
    return _documents(iter([part]), name or "the records", _error_report(on_error, on_skip), _warn)


def columns_of(
    text: str, id: str, metadata: Sequence[str] | None, numbers: Sequence[str] | None
) -> Columns:
    """Raises ValueError where the names do not go together."""
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
    """Who takes the message of an error; None where it is raised."""
    if on_error not in ("fail", "skip"):
        raise ValueError(f'on_error is "fail" or "skip", not {on_error!r}.')
    return (on_skip or _warn) if on_error == "skip" else None


def _parts(source: Source, columns: Columns) -> Iterator[Part]:
    if isinstance(source, Stdin):
        lines = jsonl.read_lines(sys.stdin.buffer, None, "stdin", columns)
        yield _Origin("stdin", "line"), lines
    elif isinstance(source, SavedDataset | HubDataset):
        for where, items in read_splits(source, columns):
            yield _Origin(where, "row"), items
    else:
        for item in corpus_files(source):
            if isinstance(item, CorpusFile):
                yield read_file(item, columns)
            else:
                yield _Origin(printable(source.root), None), iter([(0, item)])


def read_file(file: CorpusFile, columns: Columns) -> Part:
    """Where its items come from, and these."""
    match file.kind:
        case "jsonl":
            lines = jsonl.read_jsonl(file.path, file.name, columns)
            return _Origin(printable(file.path), "line"), lines
        case "csv":
            rows = delimited.read_csv(file.path, file.name, columns)
            return _Origin(printable(file.path), "line"), rows
        case "parquet" | "arrow":
            # pyarrow comes in only here: most commands and many corpora do without it.
            from lclm_rag.connectors.corpora import arrow

            read = arrow.read_parquet if file.kind == "parquet" else arrow.read_arrow
            return _Origin(printable(file.path), "row"), read(file, columns)
        case "text" | "document":
            root = "" if file.root == Path() else f"{file.root}/"
            return _Origin(root, None), iter([(0, read_text(file))])


def _documents(
    parts: Iterator[Part], named: str, skip: Report | None, ignore: Report
) -> Iterator[Document]:
    seen = UniqueIds()
    origins: list[_Origin] = []
    documents = left_out = 0
    for origin, items in parts:
        # The texts of a folder have one origin, so that the list does not grow with them.
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
