"""Finds out what the paths of a corpus stand for: files, data sets, standard input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from lclm_rag.connectors.corpora.files import (
    SUFFIXES,
    CorpusFile,
    Files,
    corpus_files,
    has_wildcard,
    kind_of,
    split_glob,
)
from lclm_rag.connectors.corpora.hugging_face import (
    HubDataset,
    SavedDataset,
    is_saved_dataset,
    parse_hub_uri,
    require_datasets,
)
from lclm_rag.connectors.corpora.items import NotRead
from lclm_rag.connectors.corpora.knowledge_bases import refuse_knowledge_base
from lclm_rag.connectors.corpora.messages import printable, unreadable
from lclm_rag.connectors.corpora.texts import require_converter
from lclm_rag.errors import CorpusError
from lclm_rag.storage import Location, locate

__all__ = ["Source", "Stdin", "find_sources"]


@dataclass(frozen=True)
class Stdin:
    """JSONL on standard input."""

    def __str__(self) -> str:
        return "stdin"


Source = Files | SavedDataset | HubDataset | Stdin


def find_sources(paths: str | Path | Sequence[str | Path]) -> list[Source]:
    """Find out what each path stands for, without reading documents.

    Args:
        paths: One path or several, as for `read_corpus`.

    Raises:
        CorpusError: When no path is given, or one does not exist or cannot be read.
        ImportError: When an extra is missing.
    """
    named = [paths] if isinstance(paths, str | Path) else list(paths)
    if not named:
        raise CorpusError("No corpus is named; give at least one folder or file.")
    sources = [_source(str(path)) for path in named]
    if sum(isinstance(source, Stdin) for source in sources) > 1:
        raise CorpusError("-: standard input can be read only once; name it once.")
    for source in sources:
        if isinstance(source, SavedDataset | HubDataset):
            require_datasets(str(source))
        elif isinstance(source, Files) and util.find_spec("markitdown") is None:
            # Checked before anything is read, so that no work is lost on the files before.
            for file in corpus_files(source):
                if isinstance(file, CorpusFile):
                    require_converter(file)
    return sources


def _source(text: str) -> Source:
    if text == "-":
        return Stdin()
    if text.startswith("hf://"):
        return parse_hub_uri(text)
    try:
        path = locate(text)
    except ValueError as error:
        raise CorpusError(str(error)) from error
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return _single(path)
        if any(map(has_wildcard, path.parts)):
            return _glob(path)
    except OSError as error:
        raise unreadable(path, error) from error
    raise CorpusError(f"{printable(path)}: no such file or folder; check the path.")


def _folder(path: Location) -> Source:
    refuse_knowledge_base(path, path)
    if not is_saved_dataset(path):
        return Files(path)
    if not isinstance(path, Path):
        raise CorpusError(
            f"{printable(path)}: a data set written by save_to_disk is read from a local folder only; copy "
            f"it, or name its files: '{printable(path)}/*.arrow'."
        )
    return SavedDataset(path)


def _single(path: Location) -> Source:
    refuse_knowledge_base(path, path)
    if kind_of(path.name) is None:
        raise CorpusError(
            f"{printable(path)}: not a kind of file that can be read; give a folder or a file whose name "
            f"ends in {', '.join(SUFFIXES)}; .jsonl, .ndjson, .csv and .tsv also with .gz or .zst."
        )
    return Files(path.parent, single=path.name)


def _glob(path: Location) -> Source:
    files = split_glob(path)
    refuse_knowledge_base(files.root, path)
    outside = ""
    for item in corpus_files(files):
        if isinstance(item, CorpusFile):
            return files
        if isinstance(item, NotRead) and item.is_knowledge_base:
            outside = " outside of knowledge bases"
    raise CorpusError(
        f"{printable(path)}: no file that can be read has such a name{outside}; check the path."
    )
