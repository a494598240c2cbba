"""What readers hand to encoders on other machines: Arrow tables with a row for each passage to be compressed,
and for each document that needs none of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from lclm_rag.ingestion.passages import PassageWork
from lclm_rag.store import Layout, StoredPassage
from lclm_rag.types import Passage, PassageKey

__all__ = ["Kind", "Source", "WorkRow", "from_table", "to_table"]

Kind = Literal["passage", "unchanged", "finished", "problem", "ignored"]
"""passage: to be written. unchanged: its document is in the store as it is. finished: a run before had
finished its document, and was killed. problem: `message` tells why it is left out. ignored: `message` is
about what is left out by rule."""


@dataclass(frozen=True)
class Source:
    """Where a document was read: the number of the part, and its own in that part."""

    part: int
    number: int


@dataclass(frozen=True)
class WorkRow:
    """document_id: "" where it is not known. updated: whether the store has another version of it. work: of a
    passage."""

    kind: Kind
    source: Source
    document_id: str
    document_hash: bytes
    updated: bool
    message: str = ""
    work: PassageWork | None = None


_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("part", pa.int64()),
        ("number", pa.int64()),
        ("document_id", pa.large_string()),
        ("document_hash", pa.binary()),
        ("updated", pa.bool_()),
        ("message", pa.large_string()),
        ("ordinal", pa.int32()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("last", pa.bool_()),
        ("header", pa.large_string()),
        ("text", pa.large_string()),
        ("metadata", pa.large_string()),
        ("token_ids", pa.large_list(pa.int32())),
        # Of a passage whose latents are there: its source tokens, and the latents as they are stored.
        ("known_tokens", pa.int32()),
        ("known_latents", pa.large_binary()),
    ]
)


def to_table(rows: Sequence[WorkRow]) -> pa.Table:
    """With null in what a row does not have."""
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
    if known is None:
        flat["token_ids"] = np.asarray(row.work.token_ids, np.int32)
    else:
        flat |= {"known_tokens": known.tokens, "known_latents": known.encoded.tobytes()}
    return flat


def from_table(table: pa.Table, layout: Layout) -> list[WorkRow]:
    """What `to_table` was given. layout: of the store that known latents come from."""
    return [_row(flat, layout) for flat in table.to_pylist()]


def _row(flat: dict[str, Any], layout: Layout) -> WorkRow:
    work = _work(flat, layout) if flat["kind"] == "passage" else None
    names = [f.name for f in fields(WorkRow) if f.name not in ("source", "work")]
    source = Source(flat["part"], flat["number"])
    return WorkRow(source=source, work=work, **{name: flat[name] for name in names})


def _work(flat: dict[str, Any], layout: Layout) -> PassageWork:
    key = PassageKey(flat["document_id"], flat["ordinal"])
    metadata = json.loads(flat["metadata"])
    passage = Passage(key, flat["start"], flat["end"], flat["text"], metadata, flat["header"])
    digest, last = flat["document_hash"], flat["last"]
    known = None
    if flat["known_latents"] is not None:
        encoded = np.frombuffer(flat["known_latents"], np.uint8)
        encoded = encoded.reshape(-1, layout.latent_bytes)
        known = StoredPassage(passage, flat["known_tokens"], digest, last, encoded, layout)
    return PassageWork(passage, digest, last, known, flat["token_ids"] or ())
