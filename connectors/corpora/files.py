"""Lists the files of a folder, a glob or a single path, and determines the kind of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from typing import Literal

from lclm_rag.connectors.corpora.items import NotRead
from lclm_rag.connectors.corpora.knowledge_bases import is_knowledge_base
from lclm_rag.connectors.corpora.messages import printable, unreadable
from lclm_rag.errors import CorpusError
from lclm_rag.storage import COMPRESSIONS, Location

__all__ = [
    "SUFFIXES",
    "CorpusFile",
    "Files",
    "Kind",
    "corpus_files",
    "has_wildcard",
    "kind_of",
    "split_glob",
]

Kind = Literal["text", "document", "jsonl", "csv", "parquet", "arrow"]

SUFFIXES: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".html": "document",
    ".htm": "document",
    ".pdf": "document",
    ".docx": "document",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_TEXTS = frozenset[Kind]({"text", "document"})
_TABLES = frozenset[Kind]({"parquet", "arrow"})


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus.

    Attributes:
        root: The folder that names are relative to.
        name: The file's path below `root`, with "/"; ids are made from it.
        kind: How the file is read.
    """

    root: Location
    name: str
    kind: Kind

    @property
    def path(self) -> Location:
        """The file's full path."""
        return self.root / self.name


@dataclass(frozen=True)
class Files:
    """The files that one path of the user's stands for.

    Attributes:
        root: The folder that names are relative to.
        pattern: The parts of a glob below `root`; None for everything below `root`.
        single: The one file in `root`, of any kind; None for a folder or a glob.
    """

    root: Location
    pattern: tuple[str, ...] | None = None
    single: str | None = None

    def __str__(self) -> str:
        """As the user wrote it."""
        below = (self.single,) if self.single else self.pattern or ()
        return printable(self.root / "/".join(below) if below else self.root)


def kind_of(name: str) -> Kind | None:
    """The kind of a file by the end of its name; None if it cannot be read.

    Only JSONL and CSV may be compressed.
    """
    path = Path(name.lower())
    if path.suffix in COMPRESSIONS:
        inner = SUFFIXES.get(Path(path.stem).suffix)
        return inner if inner in ("jsonl", "csv") else None
    return SUFFIXES.get(path.suffix)


def has_wildcard(part: str) -> bool:
    """Whether a part of a path has one of the wildcards *, ? and [."""
    return any(sign in part for sign in "*?[")


def split_glob(path: Location) -> Files:
    """Split a glob before its first wildcard; ids are relative to the first part."""
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if has_wildcard(part))
    if isinstance(path, Path):
        return Files(Path(*parts[:fixed]), parts[fixed:])
    root = path
    for _ in parts[fixed:]:
        root = root.parent
    return Files(root, parts[fixed:])


def corpus_files(files: Files) -> Iterator[CorpusFile | CorpusError | NotRead]:
    """List the files of a path, in a fixed order.

    A folder that holds Parquet and Arrow files but no texts gives its tables, any other folder its texts; a
    glob gives the matching files. Only the names in the folders on the path to the present one are in memory.
    Links to files are read; links to folders are not followed, because they can lead in circles. Nothing is
    read from a knowledge base, which could otherwise be filled with itself.

    Args:
        files: What one path of the user's stands for.

    Yields:
        Files; `NotRead` for a file or folder that is left out by rule, and `CorpusError` for one that cannot
        be read.
    """
    if files.single is not None:
        kind = kind_of(files.single)
        if kind is not None:
            yield CorpusFile(files.root, files.single, kind)
        return
    wanted = frozenset[Kind](SUFFIXES.values())
    if files.pattern is None:
        wanted = _TABLES if _is_data_set(files) else _TEXTS
    for item in _walk(files):
        if isinstance(item, str):
            kind = kind_of(item)
            if kind in wanted:
                yield CorpusFile(files.root, item, kind)
            else:
                reason = _why_not(files.root, item, wanted)
                yield NotRead(f"{printable(files.root / item)}: not read, {reason}.")
        else:
            yield item


def _is_data_set(folder: Files) -> bool:
    """Whether the folder holds Parquet or Arrow files and no texts."""
    tables = False
    for item in _walk(folder):
        kind = kind_of(item) if isinstance(item, str) else None
        if kind in _TEXTS:
            return False
        tables = tables or kind in _TABLES
    return tables


def _walk(files: Files) -> Iterator[str | CorpusError | NotRead]:
    """The paths of all files below the root, of any kind, in order."""
    pending: list[tuple[str, Location]] = [("", files.root)]
    while pending:
        relative, path = pending.pop()
        try:
            is_folder = path.is_dir()
            if relative and not _is_meant(files.pattern, relative, is_folder):
                continue
            if relative and (reason := _why_passed_over(path, is_folder, files.pattern is None)):
                yield NotRead(f"{printable(path)}: not read, {reason}.")
            elif is_folder:
                entries: list[Location] = list(path.iterdir())
                if is_knowledge_base(entries):
                    message = f"{printable(path)}: not read, it is a knowledge base."
                    yield NotRead(message, is_knowledge_base=True)
                    continue
                above = f"{relative}/" if relative else ""
                named = ((above + entry.name, entry) for entry in entries)
                pending.extend(sorted(named, key=itemgetter(0), reverse=True))
            else:
                yield relative
        except OSError as error:
            yield unreadable(path, error)


def _is_meant(pattern: tuple[str, ...] | None, relative: str, is_folder: bool) -> bool:
    """Whether the glob matches this file, or may match a file in this folder."""
    if pattern is None:
        return True
    parts = tuple(relative.split("/"))
    return _may_hold(pattern, parts) if is_folder else _matches(pattern, parts)


def _matches(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        inside = not parts[0].startswith(".") and _matches(pattern, parts[1:])
        return inside or _matches(pattern[1:], parts)
    return _name_matches(pattern[0], parts[0]) and _matches(pattern[1:], parts[1:])


def _may_hold(pattern: tuple[str, ...], folder: tuple[str, ...]) -> bool:
    if not pattern or not folder:
        return bool(pattern)
    if pattern[0] == "**":
        inside = not folder[0].startswith(".") and _may_hold(pattern, folder[1:])
        return inside or _may_hold(pattern[1:], folder)
    return _name_matches(pattern[0], folder[0]) and _may_hold(pattern[1:], folder[1:])


def _name_matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name as in a shell: hidden names only if it begins with a dot."""
    return fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))


def _why_passed_over(path: Location, is_folder: bool, skip_hidden: bool) -> str | None:
    """Why an entry is skipped; None if it is not."""
    if skip_hidden and path.name.startswith("."):
        return "it is hidden"
    if is_folder:
        return "it is a link to a folder" if path.is_symlink() else None
    # Reading a pipe could block for ever. A broken link is not skipped: it is reported as a missing text.
    if isinstance(path, Path) and path.exists() and not path.is_file():
        return "it is not a plain file"
    return None


def _why_not(root: Location, name: str, wanted: frozenset[Kind]) -> str:
    if kind_of(name) is None:
        return "it is of no kind that can be read"
    if wanted == _TABLES:
        return "only Parquet and Arrow files are read from a folder of these: name this file"
    glob = printable(root / f"**/*{Path(name).suffix}")
    return f"only texts are read from a folder: name this file, or all such as '{glob}'"
