"""Check that the encoders had all rows that the readers made, each once, and from one reading.

If a reader dies, Ray keeps the tables that it has handed over, and skips as many in the next try. If that try
makes other rows (a file has changed meanwhile, or could not be read in one try), documents would be torn or
lost. So each row carries its number in the part, and a digest of all rows before it. With these the driver
puts the rows of a part together, and it commits only if all parts are whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.ingestion.ray.work_rows import WorkRow

__all__ = ["Handovers", "Numbering", "Run", "runs"]


@dataclass(frozen=True)
class Run:
    """Successive rows of a part.

    Attributes:
        part: The number of the part.
        first: The number of the first row.
        end: The number after that of the last row.
        before: The digest of all rows before, in hex.
        after: The digest of all rows up to the last, in hex.
        whole: Whether the last row is the part's last.
    """

    part: int
    first: int
    end: int
    before: str
    after: str
    whole: bool


class Numbering:
    """Numbers the rows of one part, and gives them their digests.

    Attributes:
        rows: The number of the next row.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._digest = b""

    def next(self, row: WorkRow) -> WorkRow:
        """The row with its number and the digest of the rows before."""
        numbered = replace(row, row=self.rows, before=self._digest)
        self.rows += 1
        self._digest = _digest(numbered)
        return numbered


def runs(rows: Sequence[WorkRow]) -> list[Run]:
    """The rows of a shard as runs, usually one."""
    found: list[Run] = []
    for row in rows:
        part, before, after = row.source.part, row.before.hex(), _digest(row).hex()
        run = Run(part, row.row, row.row + 1, before, after, row.kind == "end")
        if found and _follows(found[-1], run) and found[-1].after == before:
            run = replace(run, first=found[-1].first, before=found[-1].before)
            found.pop()
        found.append(run)
    return found


class Handovers:
    """The driver's view of the rows that encoders had. Memory grows only with the gaps between them."""

    def __init__(self) -> None:
        self._from: dict[tuple[int, int], Run] = {}
        self._to: dict[tuple[int, int], Run] = {}

    def take(self, run: Run) -> None:
        """Put a run in its place.

        Args:
            run: The run.

        Raises:
            KnowledgeBaseError: When it is from another reading than the rows beside it.
        """
        before = self._to.pop((run.part, run.first), None)
        if before is not None:
            del self._from[run.part, before.first]
            run = _joined(before, run)
        after = self._from.pop((run.part, run.end), None)
        if after is not None:
            del self._to[run.part, after.end]
            run = _joined(run, after)
        if (run.part, run.first) in self._from or (run.part, run.end) in self._to:
            raise _torn(run.part)
        self._from[run.part, run.first] = run
        self._to[run.part, run.end] = run

    def check(self, parts: int) -> None:
        """Check that all is there.

        Args:
            parts: The number of parts.

        Raises:
            KnowledgeBaseError: When rows are missing or there are too many.
        """
        for part in range(parts):
            run = self._from.pop((part, 0), None)
            if run is None or not run.whole or run.before:
                raise _torn(part)
        for part, _ in self._from:
            raise _torn(part)


def _digest(row: WorkRow) -> bytes:
    """The digest of all rows of the part up to this one."""
    passage = None
    if row.work is not None:
        of = row.work.passage
        passage = (of.key.ordinal, of.start, of.end, row.work.last)
    # Not the message, which may say how long something took, or on which machine.
    what = (row.kind, row.source.number, row.document_id, row.document_hash, passage)
    return blake2b(row.before + repr(what).encode(), digest_size=16).digest()


def _follows(one: Run, other: Run) -> bool:
    return (one.part, one.end) == (other.part, other.first)


def _joined(one: Run, other: Run) -> Run:
    if one.after != other.before:
        raise _torn(one.part)
    return replace(other, first=one.first, before=one.before)


def _torn(part: int) -> KnowledgeBaseError:
    return KnowledgeBaseError(
        f"part-{part} of the corpus was read again after a worker had died, and gave other documents "
        "than before: nothing was committed. Run the same command again, and let nothing change the corpus "
        "meanwhile."
    )
