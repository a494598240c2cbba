"""Checks for names that are read from files: none may lead out of the folder it is used in."""

from __future__ import annotations

__all__ = ["is_path_below", "is_plain_name"]


def is_plain_name(name: object) -> bool:
    """Whether it is the bare name of a file or folder, and not a path."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {*"/\\\0"}


def is_path_below(path: object) -> bool:
    """Whether it is a relative path, such as "a/b/c", that stays below the folder it starts from."""
    return isinstance(path, str) and all(map(is_plain_name, path.split("/")))
