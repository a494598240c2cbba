"""Where a knowledge base lies: a folder of this machine, or one in an object store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lclm_rag.storage.local import TEMPORARY, FileFacts, LocalFolder, MappedFile, is_disk_full
from lclm_rag.storage.objects import ObjectFolder

__all__ = [
    "TEMPORARY",
    "FileFacts",
    "Folder",
    "LocalFolder",
    "MappedFile",
    "ObjectFolder",
    "is_disk_full",
    "open_folder",
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
    text = str(location)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)", text)
    if scheme is None:
        return LocalFolder(Path(location))
    if not scheme[2]:
        raise ValueError(
            f"{text} is neither a path nor a URL: write {scheme[1]}://, as text, or ./{text} for a folder "
            "of that name."
        )
    bare = re.sub(r"//[^/@]*:[^/]*@", "//", re.split(r"[?#]", text)[0])
    if bare != text:
        raise ValueError(
            f"The URL of {bare} must not hold keys or options, because it is shown: give them as the "
            "environment variables of the store, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL."
        )
    if scheme[1].lower() == "file":
        return LocalFolder(_path_of(text))
    return ObjectFolder.of_url(text)


def _path_of(url: str) -> Path:
    host, path = urlsplit(url)[1:3]
    if host not in ("", "localhost"):
        raise ValueError(f"{url} is on another machine, {host}; write file:///{host}{path}?")
    return Path(unquote(path))
