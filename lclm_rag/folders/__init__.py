"""Where a knowledge base lies: a folder of this machine, or one in an object store."""

from __future__ import annotations

import re
from pathlib import Path

from lclm_rag.folders.local import TEMPORARY, FileFacts, LocalFolder, MappedFile
from lclm_rag.folders.objects import ObjectFolder

__all__ = [
    "TEMPORARY",
    "FileFacts",
    "Folder",
    "LocalFolder",
    "MappedFile",
    "ObjectFolder",
    "open_folder",
]

Folder = LocalFolder | ObjectFolder


def open_folder(location: str | Path | Folder) -> Folder:
    """The folder that a path or a URL names (s3://, gs://, file:// and what else fsspec knows); it need not
    be there yet.

    Raises ImportError where the object store's library is not installed, ValueError for an unknown scheme.
    """
    if isinstance(location, LocalFolder | ObjectFolder):
        return location
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", str(location))
    if scheme is None:
        return LocalFolder(Path(location))
    if scheme[1] == "file":
        return LocalFolder(Path(str(location).removeprefix("file://")))
    return ObjectFolder.of_url(str(location))
