"""A problem of a knowledge base: what `verify` lists, and what a repair works from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Kind", "Problem", "damaged_documents", "nameless_passages", "sentences"]

Kind = Literal[
    "fragment",  # of the version that is checked
    "passage",
    "document",
    "totals",
    "other version",
    "earlier version",  # from before a repair: no problem any more
    "manifest",
    "uncommitted work",
    "lost version",
    "index",
    "indexed passage",  # of the index alone: the store has lost it
]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written, or contradicts itself.

    where: name of the file (fragment, manifest, note on uncommitted work), or the passage index. sentence:
    empty where that of another problem covers it. document_id: the document of which something is damaged or
    lost; None where there is none, or its id is lost as well. rows: of the fragment, damaged or lost.
    """

    kind: Kind
    where: str
    sentence: str
    document_id: str | None = None
    rows: tuple[int, ...] = ()


def sentences(problems: Iterable[Problem]) -> list[str]:
    """What a person reads of them."""
    return [p.sentence for p in problems if p.sentence and p.kind != "earlier version"]


def damaged_documents(problems: Iterable[Problem]) -> list[str]:
    """The ids of those of which something is damaged or lost."""
    return sorted({p.document_id for p in problems if p.document_id is not None})


def nameless_passages(problems: Iterable[Problem]) -> int:
    """How many damaged passages are of documents whose ids are lost."""
    damaged = nameless = indexed = 0
    for problem in problems:
        damaged += len(problem.rows)
        nameless += len(problem.rows) if problem.document_id is None else 0
        indexed += problem.kind == "indexed passage"
    # The index knows the keys of a fragment that cannot be read at all.
    return min(nameless, max(0, damaged - indexed))
