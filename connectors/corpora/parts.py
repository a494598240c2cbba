"""A corpus in parts, which workers on other machines read independently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lclm_rag.connectors.corpora.files import CorpusFile, Files, corpus_files
from lclm_rag.connectors.corpora.items import NotRead
from lclm_rag.connectors.corpora.limits import DEFAULT_LIMITS, ReadingLimits
from lclm_rag.connectors.corpora.reading import columns_of, read_file
from lclm_rag.connectors.corpora.records import Columns
from lclm_rag.connectors.corpora.sources import find_sources
from lclm_rag.types import Document, DocumentParts

__all__ = ["CorpusPart", "corpus_parts"]

_FILES_AT_ONCE = 256
"""Files in a part, for files that are one document each."""


@dataclass(frozen=True)
class CorpusPart:
    """Some files of a corpus.

    Attributes:
        files: The files, and in their places errors and messages about files that are left out.
        columns: Which field of a record holds what.
        limits: What a file may cost.
    """

    files: tuple[CorpusFile | Exception | str, ...]
    columns: Columns
    limits: ReadingLimits

    def read(self) -> Iterator[Document | Exception | str]:
        """Read the part, as `lclm_rag.types.ReadablePart` describes."""
        for file in self.files:
            if not isinstance(file, CorpusFile):
                yield file
                continue
            _, items = read_file(file, self.columns, self.limits)
            for _, item in items:
                yield item.message if isinstance(item, NotRead) else item


def corpus_parts(
    paths: str | Path | Sequence[str | Path],
    *,
    text_column: str = "text",
    id_column: str = "id",
    metadata_columns: Sequence[str] | None = None,
    number_columns: Sequence[str] | None = None,
    limits: ReadingLimits = DEFAULT_LIMITS,
) -> DocumentParts | None:
    """Split a corpus into parts: each is a file of records, or a few hundred texts.

    The paths must be valid on all workers.

    Args:
        paths: As for `read_corpus`.
        text_column: As for `read_corpus`.
        id_column: As for `read_corpus`.
        metadata_columns: As for `read_corpus`.
        number_columns: As for `read_corpus`.
        limits: As for `read_corpus`.

    Returns:
        The parts. None if a path can be read only by this process (standard input) or is no set of files
        (data sets of Hugging Face): then use `read_corpus`.

    Raises:
        CorpusError: When `read_corpus` raises it at once.
        ValueError: When an argument is invalid.
        ImportError: When an extra is missing.
    """
    columns = columns_of(text_column, id_column, metadata_columns, number_columns)
    parts: list[CorpusPart] = []
    texts: list[CorpusFile | Exception | str] = []
    for source in find_sources(paths):
        if not isinstance(source, Files):
            return None
        for item in corpus_files(_absolute(source)):
            if isinstance(item, CorpusFile) and item.kind not in ("text", "document"):
                parts.append(CorpusPart((item,), columns, limits))
                continue
            texts.append(item.message if isinstance(item, NotRead) else item)
            if len(texts) >= _FILES_AT_ONCE:
                parts.append(CorpusPart(tuple(texts), columns, limits))
                texts = []
    if texts:
        parts.append(CorpusPart(tuple(texts), columns, limits))
    return DocumentParts(tuple(parts))


def _absolute(files: Files) -> Files:
    """The same files with an absolute root, because workers have other working directories."""
    return replace(files, root=files.root.absolute()) if isinstance(files.root, Path) else files
