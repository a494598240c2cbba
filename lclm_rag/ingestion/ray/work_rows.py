"""The Arrow tables that readers hand to encoders on other machines.

They have a row for each passage to be written, and one for each document that needs no writing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from lclm_rag.ingestion.passages import PassageWork
from lclm_rag.types import Passage, PassageKey

__all__ = ["Kind", "Source", "WorkRow", "from_table", "to_table"]

Kind = Literal["passage", "unchanged", "finished", "problem", "ignored", "end"]
"""What a row is about.

- passage: a passage to be written.
- unchanged: a document that the store already has in this version.
- finished: a document that an earlier run had finished before it was killed.
- problem: a document that is left out; `message` says why.
- ignored: something that the corpus leaves out by rule; `message` says what.
- end: none; the part ends here.
"""


@dataclass(frozen=True)
class Source:
    """Where a document was read.

    Attributes:
        part: The number of the part of the corpus.
        number: The number of the document in that part.
    """

    part: int
    number: int


@dataclass(frozen=True)
class WorkRow:
    """A row of the table: a passage, or a document that needs no writing.

    Attributes:
        kind: What the row is about.
        source: Where the document was read.
        document_id: The document's id; "" if it is unknown.
        document_hash: The hash of the document's content.
        updated: Whether the store has another version of the document.
        message: A sentence, for the kinds "problem" and "ignored".
        work: The passage, for the kind "passage".
        row: The number of the row in the part.
        before: The digest of all rows of the part before this one: see `handovers`.
    """

    kind: Kind
    source: Source
    document_id: str
    document_hash: bytes
    updated: bool
    message: str = ""
    work: PassageWork | None = None
    row: int = 0
    before: bytes = b""


_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("part", pa.int64()),
        ("number", pa.int64()),
        ("document_id", pa.large_string()),
        ("document_hash", pa.binary()),
        ("updated", pa.bool_()),
        ("message", pa.large_string()),
        ("row", pa.int64()),
        ("before", pa.binary()),
        ("ordinal", pa.int32()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("last", pa.bool_()),
        ("header", pa.large_string()),
        ("text", pa.large_string()),
        ("metadata", pa.large_string()),
        ("token_ids", pa.large_list(pa.int32())),
        # For a passage that is already compressed: the fragment and the row from which the encoder reads it.
        ("known_fragment", pa.string()),
        ("known_row", pa.int64()),
    ]
)


def to_table(rows: Sequence[WorkRow]) -> pa.Table:
    """The rows as an Arrow table, with null in columns that do not apply to a row."""
    return pa.Table.from_pylist([_flat(row) for row in rows], _SCHEMA)


def _flat(row: WorkRow) -> dict[str, Any]:
    flat: dict[str, Any] = {
        f.name: getattr(row, f.name) for f in fields(row) if f.name not in ("source", "work")
    }
    flat |= {"part": row.source.part, "number": row.source.number}
    if row.work is None:
        return flat
    passage, known = row.work.passage, row.work.known
    flat |= {name: getattr(passage, name) for name in ("start", "end", "header", "text")}
    flat |= {"ordinal": passage.key.ordinal, "last": row.work.last}
    flat["metadata"] = json.dumps(dict(passage.metadata), ensure_ascii=False)
    flat["token_ids"] = np.asarray(row.work.token_ids, np.int32)
    if known is not None:
        flat["known_fragment"], flat["known_row"] = known
    return flat


def from_table(table: pa.Table) -> list[WorkRow]:
    """The rows that `to_table` was given, in order."""
    return [_row(flat) for flat in table.to_pylist()]


def _row(flat: dict[str, Any]) -> WorkRow:
    work = _work(flat) if flat["kind"] == "passage" else None
    names = [f.name for f in fields(WorkRow) if f.name not in ("source", "work")]
    source = Source(flat["part"], flat["number"])
    return WorkRow(source=source, work=work, **{name: flat[name] for name in names})


def _work(flat: dict[str, Any]) -> PassageWork:
    key = PassageKey(flat["document_id"], flat["ordinal"])
    metadata = json.loads(flat["metadata"])
    passage = Passage(key, flat["start"], flat["end"], flat["text"], metadata, flat["header"])
    digest, last = flat["document_hash"], flat["last"]
    fragment = flat["known_fragment"]
    known = None if fragment is None else (fragment, flat["known_row"])
    return PassageWork(passage, digest, last, known, flat["token_ids"] or ())
