"""A corpus in parts that workers on other machines read, each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lclm_rag.connectors.corpora.files import CorpusFile, Files, corpus_files
from lclm_rag.connectors.corpora.items import NotRead
from lclm_rag.connectors.corpora.reading import columns_of, read_file
from lclm_rag.connectors.corpora.records import Columns
from lclm_rag.connectors.corpora.sources import find_sources
from lclm_rag.types import Document, DocumentParts

__all__ = ["CorpusPart", "corpus_parts"]

_FILES_AT_ONCE = 256
"""In a part, where a file is one document."""


@dataclass(frozen=True)
class CorpusPart:
    """Some files of a corpus, and what was found in their place."""

    files: tuple[CorpusFile | Exception | str, ...]
    columns: Columns

    def read(self) -> Iterator[Document | Exception | str]:
        """As `lclm_rag.types.ReadablePart` says."""
        for file in self.files:
            if not isinstance(file, CorpusFile):
                yield file
                continue
            _, items = read_file(file, self.columns)
            for _, item in items:
                yield item.message if isinstance(item, NotRead) else item


def corpus_parts(
    paths: str | Path | Sequence[str | Path],
    *,
    text_column: str = "text",
    id_column: str = "id",
    metadata_columns: Sequence[str] | None = None,
    number_columns: Sequence[str] | None = None,
) -> DocumentParts | None:
    """The parts of what `read_corpus` would read: a part is a file of records, or some hundred texts.

    Paths must lie where all workers find them under the same name. None where something is named that only
    this process can read (standard input), or that is no set of files (data sets of Hugging Face): then
    `read_corpus` is the way. Raises as `read_corpus` does at once.
    """
    columns = columns_of(text_column, id_column, metadata_columns, number_columns)
    parts: list[CorpusPart] = []
    texts: list[CorpusFile | Exception | str] = []
    for source in find_sources(paths):
        if not isinstance(source, Files):
            return None
        for item in corpus_files(_absolute(source)):
            if isinstance(item, CorpusFile) and item.kind not in ("text", "document"):
                parts.append(CorpusPart((item,), columns))
                continue
            texts.append(item.message if isinstance(item, NotRead) else item)
            if len(texts) >= _FILES_AT_ONCE:
                parts.append(CorpusPart(tuple(texts), columns))
                texts = []
    if texts:
        parts.append(CorpusPart(tuple(texts), columns))
    return DocumentParts(tuple(parts))


def _absolute(files: Files) -> Files:
    """Workers have other working directories."""
    return replace(files, root=files.root.absolute()) if isinstance(files.root, Path) else files
