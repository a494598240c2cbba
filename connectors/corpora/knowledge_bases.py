"""Recognizes knowledge bases and fragments, which are no corpus: no store may be filled from a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from lclm_rag.config import SETTINGS
from lclm_rag.connectors.corpora.messages import printable
from lclm_rag.errors import CorpusError
from lclm_rag.storage import Location

__all__ = ["is_fragment", "is_knowledge_base", "refuse_knowledge_base"]

# Folders of a knowledge base; folders with other names beside them are the user's own.
_PARTS = ("store", "index")
# Some of the keys in the schema metadata of every fragment (`lclm_rag.store.fragment.Layout`).
_FRAGMENT_KEYS = frozenset({b"format_version", b"codec", b"space", b"fingerprint"})


def is_knowledge_base(entries: Iterable[Location]) -> bool:
    """Whether a folder with these entries is a knowledge base.

    Raises:
        OSError: When an entry cannot be read.
    """
    return any(entry.name == SETTINGS and entry.is_file() for entry in entries)


def refuse_knowledge_base(path: Location, named: Location) -> None:
    """Check that a path is not a knowledge base, and not its settings, store or index.

    Args:
        path: The path.
        named: What the user wrote; `path` may be only its part before the first wildcard.

    Raises:
        CorpusError: When it is one of them.
    """
    knowledge_base = _knowledge_base(path)
    if knowledge_base is not None:
        subject = "it" if knowledge_base == named else printable(knowledge_base)
        raise CorpusError(
            f"{printable(named)}: {subject} is a knowledge base, not a corpus; name the documents it was "
            "made from."
        )


def is_fragment(metadata: Mapping[bytes, bytes] | None) -> bool:
    """Whether a schema with this metadata is that of a fragment, even if the file was copied elsewhere."""
    return _FRAGMENT_KEYS.issubset(metadata or ())


def _knowledge_base(path: Location) -> Location | None:
    if _has_settings(path):
        return path
    for place in _spellings(path):
        if place.name == SETTINGS and _has_settings(place.parent):
            return place.parent
        inside = place
        for _ in place.parts[1:]:
            if inside.name in _PARTS and _has_settings(inside.parent):
                return inside.parent
            inside = inside.parent
    return None


def _spellings(path: Location) -> list[Location]:
    """The path that links lead to, and the path as written, because a store may be a link to another disk."""
    if not isinstance(path, Path):
        return [path]
    written = [] if ".." in path.parts else [path.absolute()]
    return [path.resolve(), *written]


def _has_settings(folder: Location) -> bool:
    try:
        return (folder / SETTINGS).is_file()
    except OSError:  # In an object store, the user may be allowed to read only the one file.
        return False
