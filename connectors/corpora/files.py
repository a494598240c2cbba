"""Text and Markdown files → documents, one for each file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lclm_rag.connectors.corpora.records import (
    CorpusError,
    Item,
    NotRead,
    is_unicode,
    not_utf8,
    shown,
    unreadable,
)
from lclm_rag.documents import Document

__all__ = ["RECORD_SUFFIXES", "TEXT_SUFFIXES", "read_folder", "read_text_file", "text_files"]

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".parquet")


def read_folder(folder: Path) -> Iterator[Item]:
    """A document for each text file below the folder; its id is the path from there, with "/"."""
    for found in text_files(folder):
        yield 0, _document(folder, found) if isinstance(found, str) else found


def read_text_file(path: Path) -> Iterator[Item]:
    """The one document that a text file is; its id is the file's name."""
    yield 0, _document(path.parent, path.name)


def text_files(folder: Path) -> Iterator[str | CorpusError | NotRead]:
    """The paths of all text files below the folder, in a fixed order; NotRead for all else.

    In memory are the names in the folders on the way to the present one, no more. Links to files
    are read; links to folders are not followed, because they can lead in circles.
    """
    pending = [""]
    while pending:
        relative = pending.pop()
        path = folder / relative
        try:
            if relative and (reason := _why_not(path)):
                yield NotRead(f"{shown(path)}: not read, {reason}.")
            elif path.is_dir():
                names = sorted((entry.name for entry in path.iterdir()), reverse=True)
                pending.extend(f"{relative}/{name}" if relative else name for name in names)
            else:
                yield relative
        except OSError as error:
            yield unreadable(path, error)


def _why_not(path: Path) -> str | None:
    """Why a folder's entry is not read; None where it is."""
    if path.name.startswith("."):
        return "it is hidden"
    if path.is_dir():
        return "it is a link to a folder" if path.is_symlink() else None
    suffix = path.suffix.lower()
    if suffix in RECORD_SUFFIXES:
        return "only text is read from a folder: give this file by its own path"
    if suffix not in TEXT_SUFFIXES:
        return f"its name does not end in {', '.join(TEXT_SUFFIXES[:-1])} or {TEXT_SUFFIXES[-1]}"
    # A pipe would block for ever. A broken link is not left out: it stands for a text that is lost.
    if path.exists() and not path.is_file():
        return "it is not a plain file"
    return None


def _document(folder: Path, relative: str) -> Document | CorpusError:
    path = folder / relative
    try:
        data = path.read_bytes()
        text = data.decode().removeprefix("\ufeff")
    except OSError as error:
        return unreadable(path, error)
    except UnicodeDecodeError as error:
        return CorpusError(f"{shown(path)}: {not_utf8(error)}; convert the file to UTF-8.")
    if not text.strip():
        return CorpusError(f"{shown(path)}: the file is empty; remove it or give it text.")
    if not is_unicode(relative):
        return CorpusError(f"{shown(path)}: the file's name is not UTF-8; rename the file.")
    return Document(id=relative, text=text, metadata={"source": relative})
