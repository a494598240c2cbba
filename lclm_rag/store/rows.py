"""Sets of row numbers, as runs: what a set takes in memory does not depend on how many rows a run names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """A set of row numbers.

    Attributes:
        runs: Runs of successive rows, each (first, one after the last), in order and apart from each other.

    Raises:
        ValueError: If the runs are not such runs.
    """

    runs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        end = -1
        for first, stop in self.runs:
            if not end < first < stop:
                raise ValueError(f"[{first}, {stop}] is no run of rows after row {end}")
            end = stop

    @classmethod
    def of(cls, rows: Iterable[int]) -> Rows:
        """The set of some rows."""
        runs: list[list[int]] = []
        for row in sorted(set(rows)):
            if runs and runs[-1][1] == row:
                runs[-1][1] += 1
            else:
                runs.append([row, row + 1])
        return cls(tuple((first, stop) for first, stop in runs))

    def with_more(self, rows: Iterable[int]) -> Rows:
        """This set and more rows."""
        more = set(rows)
        return Rows.of(more.union(self)) if more else self

    def __len__(self) -> int:
        return sum(stop - first for first, stop in self.runs)

    def __bool__(self) -> bool:
        return bool(self.runs)

    def __iter__(self) -> Iterator[int]:
        for first, stop in self.runs:
            yield from range(first, stop)
