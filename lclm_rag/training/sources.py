"""Sources of examples: files, folders and data sets on the hub."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from lclm_rag.errors import CorpusError
from lclm_rag.hub import fetch, is_hub_id
from lclm_rag.training.examples import Example, example_of
from lclm_rag.training.records import SUFFIXES, Lines, RecordFile, open_records, read_group

__all__ = ["GROUPS", "Source"]

GROUPS = 8
"""How many row groups or record batches are shuffled together, and so how many are in memory."""


@dataclass(frozen=True)
class Source:
    """Examples, of which any one is read directly.

    Attributes:
        name: What was opened.
        files: The files of records.
    """

    name: str
    files: tuple[RecordFile, ...]
    _group: Callable[[Path, int], Any] = field(
        default_factory=lambda: lru_cache(GROUPS)(read_group), repr=False, compare=False
    )

    @classmethod
    def open(cls, name: str | Path) -> Source:
        """Open a source.

        Args:
            name: A file (JSONL, Parquet, Arrow), a folder whose files of that kind are read in the order of
                their paths, or a data set on the hub: "OWNER/NAME", or "hf://OWNER/NAME/FOLDER" for a folder
                of it. Row groups of Parquet are read whole, so small ones are better. What records say is
                described in `lclm_rag.training.examples.example_of`.

        Returns:
            The source.

        Raises:
            CorpusError: When there is no such source, it has no records, or a file cannot be read.
        """
        path = _find(str(name))
        paths = [path]
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            paths = [
                p for p in below if not any(s.startswith(".") for s in p.relative_to(path).parts)
            ]
        source = cls(str(name), tuple(open_records(each) for each in paths))
        if not len(source):
            raise CorpusError(
                f"{name}: there is no record in it; name files of {', '.join(SUFFIXES)}."
            )
        return source

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(sum(file.sizes) for file in self.files))

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """The number of records of each group that is read at once; of JSONL, all together."""
        if all(isinstance(file, Lines) for file in self.files):
            return (len(self),)
        return tuple(size for file in self.files for size in file.sizes if size)

    def __len__(self) -> int:
        return self._ends[-1] if self.files else 0

    def __getitem__(self, index: int) -> Example:
        """Read an example.

        Raises:
            CorpusError: When the record is bad; the message names file and line or row.
            IndexError: When there is no such example.
        """
        file, place = self._locate(index)
        try:
            record = file.read(place) if isinstance(file, Lines) else file.read(place, self._group)
            return example_of(record)
        except ValueError as error:
            raise CorpusError(f"{file.place(place)}: {error}") from error

    def place(self, index: int) -> str:
        """Name a record by file and line or row.

        Args:
            index: Which, from 0.
        """
        file, place = self._locate(index)
        return file.place(place)

    def _locate(self, index: int) -> tuple[RecordFile, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples, so none at {index}.")
        number = bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    hub = name.removeprefix("hf://").split("/")
    if not name.startswith("hf://") and (
        path.exists() or path.suffix in SUFFIXES or not is_hub_id(name)
    ):
        return path
    if len(hub) < 2 or not all(hub):
        raise CorpusError(f"{name}: write hf://OWNER/NAME or hf://OWNER/NAME/FOLDER.")
    folder = "/".join(hub[2:])
    patterns = [f"{folder}/*{s}" if folder else f"*{s}" for s in SUFFIXES]
    try:
        fetched = fetch("/".join(hub[:2]), repo_type="dataset", allow_patterns=patterns)
    except OSError as error:
        raise CorpusError(
            f"{name} is neither a file or folder, nor could it be fetched from the hub: {error}."
        ) from error
    return fetched / folder
