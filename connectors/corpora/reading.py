"""read_corpus and count_documents: whatever files are named, one stream of documents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from lclm_rag.connectors.corpora.folder import (
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    read_folder,
    read_text_file,
    text_files,
)
from lclm_rag.connectors.corpora.jsonl import count_lines, read_jsonl
from lclm_rag.connectors.corpora.records import (
    CorpusError,
    Fields,
    Item,
    name_list,
    shown,
    unreadable,
)
from lclm_rag.documents import Document

__all__ = ["count_documents", "read_corpus"]

_logger = logging.getLogger(__name__)

# Counting lines reads the file: a second or so up to here.
_JSONL_BYTES_TO_COUNT = 1 << 30


def read_corpus(
    paths: str | Path | Sequence[str | Path],
    *,
    text_field: str = "text",
    id_field: str = "id",
    metadata_fields: Sequence[str] | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    on_skip: Callable[[str], None] | None = None,
    on_ignore: Callable[[str], None] | None = None,
) -> Iterator[Document]:
    """Stream the documents of folders, text and Markdown files, JSONL and Parquet files.

    One document, JSONL line or small Parquet batch at a time is in memory, and about 100 bytes for
    each id seen. Order and ids are the same in every run over the same files.

    - Folders are read with all below them: .txt, .md, .markdown and .rst. The id is the path
      relative to the folder, with "/"; metadata is {"source": that path}. Hidden files, links to
      folders and all other files are not read, and `on_ignore` is told of each. A text file may also
      be named by itself; its id is its name.
    - JSONL (.jsonl, .ndjson) and Parquet (.parquet): the text is in `text_field`. The id is in
      `id_field`, a text or a whole number; where "id" is missing or null it is "<file name>:<line
      or row, from 1>", but a field other than "id" that is named here must be there. Metadata is
      every other scalar field, or `metadata_fields` only. An object in the field `metadata` counts
      as further fields; where a name is in both, the record's own field counts. Null and NaN are
      left out, and so is what is not scalar, unless `metadata_fields` asks for it: that is an
      error, as is a Parquet file without a column that `metadata_fields` names.
    - Text is UTF-8; a byte order mark is removed.

    on_error: what becomes of a bad file or record. "fail" raises CorpusError; "skip" tells
        `on_skip` and goes on.
    on_skip, on_ignore: take one line, "path: reason", for a bad file or record that was skipped,
        and for what is no corpus file in the first place; without them, these are logged as
        warnings.

    Raises CorpusError at once where `paths` names nothing, something that is not there or a kind
    of file that is not supported; while iterating, for bad files and records and for ids that come
    twice; at the end, where there was no document at all. Raises ValueError for a wrong argument.
    """
    if on_error not in ("fail", "skip"):
        raise ValueError(f'on_error is "fail" or "skip", not {on_error!r}.')
    if isinstance(metadata_fields, str):
        raise ValueError(f"metadata_fields is a list of names, not the text {metadata_fields!r}.")
    fields = Fields(
        text=text_field,
        id=id_field,
        metadata=None if metadata_fields is None else tuple(metadata_fields),
    )
    tell = on_skip or _warn if on_error == "skip" else None
    return _documents(_sources(paths), fields, tell, on_ignore or _warn)


def count_documents(paths: str | Path | Sequence[str | Path]) -> int | None:
    """How many documents `read_corpus` would find if all were well: for a progress bar.

    Counts files in folders, lines of JSONL and the rows in Parquet footers. None where that takes
    long (more than 1 GiB of JSONL), cannot be done twice (a pipe) or fails.

    Raises CorpusError where `paths` names nothing, something that is not there or a kind of file
    that is not supported.
    """
    sources = _sources(paths)
    if not all(path.is_dir() or path.is_file() for path in sources):
        return None
    try:
        jsonl_bytes = sum(path.stat().st_size for path in sources if _is_jsonl(path))
        if jsonl_bytes > _JSONL_BYTES_TO_COUNT:
            return None
        return sum(map(_count, sources))
    except (OSError, ValueError):
        return None


def _sources(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    sources = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not sources:
        raise CorpusError("No corpus is named; give at least one folder or file.")
    supported = (*TEXT_SUFFIXES, *RECORD_SUFFIXES)
    for path in sources:
        try:
            is_there, is_folder = path.exists(), path.is_dir()
        except OSError as error:
            raise unreadable(path, error) from error
        if not is_there:
            raise CorpusError(f"{shown(path)}: no such file or folder; check the path.")
        if not is_folder and path.suffix.lower() not in supported:
            raise CorpusError(
                f"{shown(path)}: not a kind of file that can be read; "
                f"give a folder or a file whose name ends in {', '.join(supported)}."
            )
    return sources


def _documents(
    sources: list[Path],
    fields: Fields,
    skip: Callable[[str], None] | None,
    ignore: Callable[[str], None],
) -> Iterator[Document]:
    # Where each id was first seen, packed into one number; of the id itself only a hash is kept.
    seen: dict[bytes, int] = {}
    left_out = 0
    for index, path in enumerate(sources):
        for number, item in _items(path, fields):
            if isinstance(item, Document):
                key = blake2b(item.id.encode(), digest_size=12).digest()
                first = seen.setdefault(key, here := number * len(sources) + index)
                if first == here:
                    yield item
                    continue
                item = _duplicate(item.id, sources, first, here)
            left_out += 1
            if not isinstance(item, CorpusError):
                ignore(item.message)
            elif skip is None:
                raise item
            else:
                skip(str(item))
    if not seen:
        raise CorpusError(
            f"No document was found in {name_list(map(shown, sources))} ({left_out} files or "
            "records were left out); name a corpus that has text."
        )


def _items(path: Path, fields: Fields) -> Iterator[Item]:
    if path.is_dir():
        return read_folder(path)
    if _is_jsonl(path):
        return read_jsonl(path, fields)
    if _is_parquet(path):
        # pyarrow comes in only here: most commands and many corpora do without it.
        from lclm_rag.connectors.corpora.parquet import read_parquet

        return read_parquet(path, fields)
    return read_text_file(path)


def _count(path: Path) -> int:
    if path.is_dir():
        return sum(isinstance(found, str) for found in text_files(path))
    if _is_jsonl(path):
        return count_lines(path)
    if _is_parquet(path):
        from lclm_rag.connectors.corpora.parquet import count_rows

        return count_rows(path)
    return 1


def _is_jsonl(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _duplicate(document_id: str, sources: list[Path], first: int, here: int) -> CorpusError:
    then, now = (_place(document_id, sources, packed) for packed in (first, here))
    return CorpusError(
        f"{now}: the id {document_id!r} was already used in {then}; "
        "give each document an id of its own."
    )


def _place(document_id: str, sources: list[Path], packed: int) -> str:
    number, index = divmod(packed, len(sources))
    path = sources[index]
    if path.is_dir():
        return shown(path / document_id)
    if not number:
        return shown(path)
    return f"{shown(path)}, {'row' if _is_parquet(path) else 'line'} {number}"


def _warn(message: str) -> None:
    _logger.warning("%s", message)
