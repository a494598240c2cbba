"""lclm-rag.toml: what options are that neither the command line nor the environment gives."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lclm_rag.cli.formatting import say

__all__ = ["FILE", "from_file"]

FILE = "lclm-rag.toml"
_KEYS = ("kb", "decoder", "checkpoint", "top_k")


def from_file(key: str, default: Any = None) -> Callable[[], Any]:
    """The default of an option, looked up when it is needed.

    The file is the first of its name in the current folder and those above it. Its paths are relative to it.
    That it is used is said on stderr, once for each command.

    Args:
        key: The key in the file: "kb", "decoder", "checkpoint" or "top_k".
        default: The value if there is no file, or no such key in it.

    Returns:
        A function that gives the value; it raises click.UsageError if the file cannot be used.
    """

    def look_up() -> Any:
        context = click.get_current_context(silent=True)
        if context is not None and context.resilient_parsing:
            return default  # The shell completes a line.
        path = _find()
        if path is None:
            return default
        settings = _read(path)
        if key not in settings:
            return default
        if context is not None and not context.meta.setdefault(__name__, False):
            context.meta[__name__] = True
            say(f"Settings from {path}.", err=True)
        value = settings[key]
        if key == "kb" or (key == "checkpoint" and not _is_name(path.parent, value)):
            value = _location(path.parent, value)
        return value

    return look_up


def _find() -> Path | None:
    try:
        here = Path.cwd()
    except OSError:  # The folder is gone.
        return None
    files = (folder / FILE for folder in (here, *here.parents))
    return next(filter(os.path.isfile, files), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}") from error
    if unknown := [key for key in settings if key not in _KEYS]:
        raise click.UsageError(
            f"{path} has the unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}."
        )
    for key, value in settings.items():
        if key == "top_k":
            # A boolean is an int to Python.
            valid, kind = type(value) is int and value >= 1, "a whole number of at least 1"
        else:
            valid, kind = isinstance(value, str) and value != "", "a string"
        if not valid:
            raise click.UsageError(f"{path}: {key} must be {kind}, not {value!r}.")
    return settings


def _is_name(folder: Path, checkpoint: str) -> bool:
    """Whether a checkpoint is one of the package's own or that of a hub id, and no folder."""
    from lclm_rag.checkpoint import OWN

    is_path = checkpoint.startswith((".", "/", "~")) or (folder / checkpoint).is_dir()
    return checkpoint in OWN or not is_path


def _location(folder: Path, value: str) -> str:
    """A path, made relative to the file's folder; a URL stays."""
    return value if "://" in value else str(folder / Path(value).expanduser())
