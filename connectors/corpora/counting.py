"""Counts the documents of a corpus, for a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from lclm_rag.connectors.corpora import delimited, hugging_face, jsonl
from lclm_rag.connectors.corpora.files import CorpusFile, Files, corpus_files
from lclm_rag.connectors.corpora.items import NotRead
from lclm_rag.connectors.corpora.sources import Source, find_sources
from lclm_rag.storage import COMPRESSIONS

__all__ = ["count_documents"]

# Counting lines reads the whole file, which takes a few seconds up to this size.
_BYTES_TO_COUNT = 1 << 30


def count_documents(paths: str | Path | Sequence[str | Path]) -> int | None:
    """The number of documents that `read_corpus` finds if all files and records are good.

    It counts the files in folders, the lines of JSONL, and the rows of CSV, Parquet and Arrow.

    Args:
        paths: As for `read_corpus`.

    Returns:
        The number. None if counting takes long (more than 1 GiB of lines in a file, compressed files, object
        stores, the hub), if the input can be read only once (a pipe, standard input), or if counting fails.

    Raises:
        CorpusError: When `read_corpus` raises it at once.
        ImportError: When an extra is missing.
    """
    sources = find_sources(paths)
    try:
        counts = [_count(source) for source in sources]
    except (OSError, ValueError):
        return None
    return None if None in counts else sum(count for count in counts if count is not None)


def _count(source: Source) -> int | None:
    if isinstance(source, hugging_face.SavedDataset):
        return hugging_face.count_rows(source)
    if not isinstance(source, Files) or not isinstance(source.root, Path):
        return None
    total = 0
    for item in corpus_files(source):
        if isinstance(item, CorpusFile):
            count = _count_file(item, source.root / item.name)
            if count is None:
                return None
            total += count
        elif not isinstance(item, NotRead):
            return None
    return total


def _count_file(file: CorpusFile, path: Path) -> int | None:
    match file.kind:
        case "text" | "document":
            return 1
        case _ if not path.is_file() or path.suffix.lower() in COMPRESSIONS:
            return None
        case "parquet" | "arrow":
            from lclm_rag.connectors.corpora import arrow

            return arrow.count_rows(file)
        case _ if path.stat().st_size > _BYTES_TO_COUNT:
            return None
        case "jsonl":
            return jsonl.count_lines(path)
        case "csv":
            return delimited.count_rows(path)
        case _:
            assert_never(file.kind)
