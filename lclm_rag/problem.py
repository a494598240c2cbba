"""A problem of a knowledge base: what `verify` lists and what a repair works from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Kind", "Problem", "damaged_documents", "nameless_passages", "sentences"]

Kind = Literal[
    "list",  # of fragments of the version that is checked, which are lost with it
    "deletions",  # of a fragment of that version: what it shows of it is lost
    "keys",  # what that version's passages are looked up in, made anew from them
    "fragment",  # of that version
    "passage",
    "document",
    "totals",
    "other version",
    "earlier version",  # from before a repair: no longer a problem
    "manifest",
    "uncommitted work",
    "lost version",
    "index",
    "indexed passage",  # in the index only: the store has lost it
]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that differs from what was written, or contradicts itself.

    Attributes:
        kind: What kind of thing has the problem.
        where: Name of the file (a fragment, a fragment list, a key run, a manifest, a note on uncommitted
            work), or the passage index.
        sentence: The problem in words; empty if another problem's sentence covers it.
        document_id: The document of which something is damaged or lost; None if there is none, or if its id
            is lost as well.
        rows: The fragment's rows that are damaged or lost.
    """

    kind: Kind
    where: str
    sentence: str
    document_id: str | None = None
    rows: tuple[int, ...] = ()


def sentences(problems: Iterable[Problem]) -> list[str]:
    """The sentences of those problems that a person should read."""
    return [p.sentence for p in problems if p.sentence and p.kind != "earlier version"]


def damaged_documents(problems: Iterable[Problem]) -> list[str]:
    """The ids of documents of which something is damaged or lost, sorted."""
    return sorted({p.document_id for p in problems if p.document_id is not None})


def nameless_passages(problems: Iterable[Problem]) -> int:
    """How many damaged passages belong to documents whose ids are lost."""
    damaged = nameless = indexed = 0
    for problem in problems:
        damaged += len(problem.rows)
        nameless += len(problem.rows) if problem.document_id is None else 0
        indexed += problem.kind == "indexed passage"
    # The index still has the keys of passages in a fragment that cannot be read at all.
    return min(nameless, max(0, damaged - indexed))
