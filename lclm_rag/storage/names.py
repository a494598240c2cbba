"""Names that come out of files: none of them may lead out of the folder that it is for."""

from __future__ import annotations

__all__ = ["is_path_below", "is_plain_name"]


def is_plain_name(name: object) -> bool:
    """Whether it is the name of a file or folder, and not the path of one elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {*"/\\\0"}


def is_path_below(path: object) -> bool:
    """Whether it is a relative path, "a/b/c", that stays below the folder where it begins."""
    return isinstance(path, str) and all(map(is_plain_name, path.split("/")))
