"""Folders and files of knowledge bases and corpora, on this machine or in an object store."""

from __future__ import annotations

from pathlib import Path

from lclm_rag.storage.local import (
    TEMPORARY,
    FileFacts,
    LocalFolder,
    MappedFile,
    disk_full_as,
    is_disk_full,
    is_read_only,
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
    "is_read_only",
    "locate",
    "open_folder",
    "open_unpacked",
]

Folder = LocalFolder | ObjectFolder


def open_folder(location: str | Path | Folder) -> Folder:
    """The folder that a path or a URL names.

    Args:
        location: A path, or a URL with s3://, gs://, file:// or another scheme that fsspec knows. The folder
            need not exist yet. A folder that is open already is returned unchanged.

    Returns:
        The folder: local for a path or a file:// URL, otherwise in an object store.

    Raises:
        ImportError: If the object store's library is not installed.
        ValueError: If the scheme is unknown, or the URL holds secrets or options.
    """
    if isinstance(location, LocalFolder | ObjectFolder):
        return location
    place = path_or_url(location)
    return LocalFolder(place) if isinstance(place, Path) else ObjectFolder.of_url(place)
