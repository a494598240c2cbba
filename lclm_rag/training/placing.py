"""Checkpoint folders that are written beside their place, so that they are there as a whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lclm_rag.errors import CheckpointError

__all__ = ["new_folder"]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder, and put it in place at the end. After an exception nothing is left of it.

    Args:
        out: Its place, where there must be nothing or an empty folder.

    Yields:
        The folder to write to. What is written beside it is removed at the end.

    Raises:
        CheckpointError: When there is something at its place.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} is not an empty folder; name a new one.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as beside:
        made = Path(beside) / "checkpoint"
        made.mkdir()
        yield made
        if out.exists():
            out.rmdir()
        made.rename(out)
