"""What gives out first: each limit as the size at which it is reached, worked out from a plan.

Limits that grow with the corpus are given in passages, limits that grow with the questions in questions a
second; all else as planned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lclm_rag.estimate.machines import (
    SERVER_CORES,
    IndexPlan,
    StoreFiles,
)
from lclm_rag.estimate.serving import Prompt, Questions
from lclm_rag.indexing.advice import EMBEDDED_UP_TO

__all__ = ["Limit", "find_limits", "knowledge_bases", "next_limit", "split_by"]

_OPENING_SECONDS = 60.0
"""A choice: what a process may take to open a store before one would look for another way."""

_COLD_REQUESTS = 6
"""Requests for a passage of a fragment of which nothing is in the cache: its size, both ends, offsets, text
and latents, in blocks of 256 KiB. Counted over an fsspec file system, with fragments of 1,024 passages."""

_PREFIX_REQUESTS = 5_500
"""GET and HEAD a second that S3 serves at least for a prefix; it grows with time where more are asked, and
all fragments of a store share one.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
"""

_NETWORK_BYTES = 25e9 / 8
"""A choice: 25 Gbit/s, what cloud machines of middling size have."""

_FEW_NODES = 100
"""A choice: Qdrant servers beyond which one collection on one cluster wants to be thought over."""


@dataclass(frozen=True)
class Limit:
    """what: the part, and what it runs out of. reached_at: in `unit`. planned: what the plan has. remedy:
    what carries further; None: nothing but a smaller knowledge base."""

    what: str
    unit: Literal["passages", "questions/s"]
    reached_at: float
    planned: float
    remedy: str | None

    @property
    def share(self) -> float:
        """Of the limit that the plan takes; from 1 on it is passed."""
        return self.planned / self.reached_at


def find_limits(
    files: StoreFiles,
    indexes: Sequence[IndexPlan],
    prompt: Prompt,
    questions: Questions,
    *,
    machine_bytes: float,
    replicas: int,
    deadline_hours: float,
) -> list[Limit]:
    """Every limit, those nearest (or passed furthest) first. A server runs out of memory or of cores.

    Each resource grows in proportion to the passages, or to the questions a second: so a limit is reached at
    planned · available / taken. machine_bytes: memory of each machine.
    """
    passages, deadline = indexes[0].points, deadline_hours * 3600
    smallest = indexes[-1]
    copy, busy = smallest.ram_bytes / machine_bytes, smallest.cores / SERVER_CORES

    def in_passages(what: str, taken: float, available: float, remedy: str | None = None) -> Limit:
        return Limit(what, "passages", passages * available / taken, passages, remedy)

    def in_questions(what: str, taken: float, available: float, remedy: str) -> Limit:
        return Limit(what, "questions/s", available / taken, questions.per_second, remedy)

    limits = [
        in_passages(
            "embedded index",
            passages,
            EMBEDDED_UP_TO,
            "a Qdrant server",
        ),
        in_passages(
            f"one Qdrant server, {smallest.form}",
            max(copy, busy),
            1,
            "a Qdrant cluster",
        ),
        in_passages(
            f"{_FEW_NODES} Qdrant servers, {smallest.form}",
            max(replicas * copy, busy),
            _FEW_NODES,
        ),
        in_passages(
            f"one process indexes, {deadline_hours:g} h",
            smallest.fill_seconds,
            deadline,
            "Ray workers",
        ),
        in_passages(
            f"one writer, {deadline_hours:g} h",
            files.write_seconds,
            deadline,
            "Ray workers",
        ),
        in_passages(
            f"opening the store, {_OPENING_SECONDS:g} s",
            files.opening_seconds,
            _OPENING_SECONDS,
        ),
        in_passages(
            "memory to open the store",
            files.opening_memory,
            machine_bytes,
        ),
        in_questions(
            f"object store, {_PREFIX_REQUESTS:,} GET/s",
            questions.top_k * _COLD_REQUESTS,
            _PREFIX_REQUESTS,
            "local disks",
        ),
        in_questions(
            "asking machine, 25 Gbit/s",
            prompt.read_bytes + prompt.sent_bytes,
            _NETWORK_BYTES,
            "more asking machines",
        ),
    ]
    return sorted(limits, key=lambda limit: -limit.share)


def next_limit(limits: Sequence[Limit], unit: str) -> Limit | None:
    """The nearest in this unit that is not reached; None where all are."""
    return next((limit for limit in limits if limit.unit == unit and limit.share < 1), None)


def split_by(limits: Sequence[Limit]) -> Limit:
    """The nearest of the limits that nothing but a smaller knowledge base helps against."""
    return max((limit for limit in limits if limit.remedy is None), key=lambda limit: limit.share)


def knowledge_bases(limits: Sequence[Limit]) -> int:
    """Into how many the corpus has to be split for each to stay within its limits."""
    return max(1, math.ceil(split_by(limits).share))
