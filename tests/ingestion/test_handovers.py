"""Tables of two readings of a part never pass for one, whatever differs between the readings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lclm_rag.errors import CompressionError, KnowledgeBaseError
from lclm_rag.ingestion.passages import PassageWork
from lclm_rag.ingestion.ray.faults import FURTHER_TRIES, worker_ends_at_faults
from lclm_rag.ingestion.ray.handovers import Handovers, Numbering, runs
from lclm_rag.ingestion.ray.work_rows import Source, WorkRow, from_table, to_table
from lclm_rag.types import Passage, PassageKey


def passage(number: int, ordinal: int = 0, *, last: bool = True) -> WorkRow:
    of = Passage(PassageKey(f"d{number}", ordinal), 10 * ordinal, 10 * ordinal + 9, "Some text", {})
    work = PassageWork(of, b"h" * 32, last, ("f.arrow", 3) if number == 1 else None, [1, 2])
    return WorkRow("passage", Source(0, number), f"d{number}", b"h" * 32, False, "", work)


READING = [
    passage(0),
    passage(1, last=False),
    passage(1, 1),
    WorkRow("unchanged", Source(0, 2), "d2", b"u" * 32, True),
    WorkRow("problem", Source(0, 3), "", b"", False, "line 4 is broken"),
    passage(4),
    WorkRow("end", Source(0, 5), "", b"", False),
]


def numbered(rows: Sequence[WorkRow]) -> list[WorkRow]:
    numbering = Numbering()
    return [numbering.next(row) for row in rows]


def take(*tables: list[WorkRow]) -> None:
    handovers = Handovers()
    for table in tables:
        for run in runs(from_table(to_table(table))):
            handovers.take(run)
    handovers.check(1)


def test_tables_of_one_reading_are_whole_in_any_order_and_however_they_are_cut() -> None:
    rows = numbered(READING)
    chance = random.Random(0)
    for _ in range(50):
        cuts = sorted(chance.sample(range(1, len(rows)), chance.randrange(len(rows))))
        tables = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
        take(*chance.sample(tables, len(tables)))


OTHERS = {
    "a document is gone": [*READING[:3], *READING[4:]],
    "a document more": [*READING[:5], passage(9), *READING[5:]],
    "another content": [
        *READING[:3],
        replace(READING[3], document_hash=b"x" * 32),
        *READING[4:],
    ],
    "cannot be read": [WorkRow("problem", Source(0, 0), "", b"", False, "no"), *READING[1:]],
    "a document is cut": [*READING[:2], *READING[3:]],
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_tables_of_two_readings_end_the_run_wherever_they_meet(other: list[WorkRow]) -> None:
    one, two = numbered(READING), numbered(other)
    # Up to where they differ, the readings are the same.
    differ = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    for at in range(differ + 1, len(two)):
        with pytest.raises(KnowledgeBaseError, match=r"^part-0 of the corpus was read again"):
            take(one[:at], two[at:])


@pytest.mark.parametrize("missing", range(len(READING)))
def test_a_row_that_is_missing_or_twice_there_ends_the_run(missing: int) -> None:
    rows = [[row] for row in numbered(READING)]
    with pytest.raises(KnowledgeBaseError):
        take(*rows[:missing], *rows[missing + 1 :])
    with pytest.raises(KnowledgeBaseError):
        take(*rows, rows[missing])


def test_the_last_try_raises_the_fault_by_its_name() -> None:
    with (
        pytest.raises(OSError, match="reduce your request rate"),
        worker_ends_at_faults(FURTHER_TRIES + 1),
    ):
        raise OSError("Please reduce your request rate")
    with (
        pytest.raises(CompressionError, match=r"^The GPU on .* failed 5 times: CUDA error"),
        worker_ends_at_faults(FURTHER_TRIES + 1),
    ):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
