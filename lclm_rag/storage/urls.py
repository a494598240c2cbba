"""How a user writes a location: a path on this machine, or a URL."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["path_or_url"]


def path_or_url(location: str | Path) -> Path | str:
    """Tell a path on this machine from a URL.

    Args:
        location: A path or a URL.

    Returns:
        A `Path` for a file or folder on this machine (also for file://), otherwise the URL unchanged.

    Raises:
        ValueError: If a URL holds secrets or options, or it is neither a path nor a URL.
    """
    text = str(location)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)", text)
    if scheme is None:
        return Path(location)
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
    return _local_path(text) if scheme[1].lower() in ("file", "local") else text


def _local_path(url: str) -> Path:
    host, path = urlsplit(url)[1:3]
    if host not in ("", "localhost"):
        raise ValueError(f"{url} is on another machine, {host}; write file:///{host}{path}?")
    return Path(unquote(path))
