"""Where files lie: in a folder of this machine, or in an object store; knowledge bases and corpora."""

from __future__ import annotations

from pathlib import Path

from lclm_rag.storage.local import (
    TEMPORARY,
    FileFacts,
    LocalFolder,
    MappedFile,
    disk_full_as,
    is_disk_full,
)
from lclm_rag.storage.objects import ObjectFolder
from lclm_rag.storage.paths import COMPRESSIONS, Location, ObjectPath, locate, open_unpacked
from lclm_rag.storage.urls import path_or_url

__all__ = [
    "COMPRESSIONS",
    "TEMPORARY",
    "FileFacts",
    "Folder",
    "LocalFolder",
    "Location",
    "MappedFile",
    "ObjectFolder",
    "ObjectPath",
    "disk_full_as",
    "is_disk_full",
    "locate",
    "open_folder",
    "open_unpacked",
]

Folder = LocalFolder | ObjectFolder


def open_folder(location: str | Path | Folder) -> Folder:
    """The folder that a path or a URL names (s3://, gs://, file:// and what else fsspec knows); it need not
    be there yet.

    Raises ImportError where the object store's library is not installed, ValueError for an unknown scheme,
    and where a URL holds secrets or options.
    """
    if isinstance(location, LocalFolder | ObjectFolder):
        return location
    place = path_or_url(location)
    return LocalFolder(place) if isinstance(place, Path) else ObjectFolder.of_url(place)
