"""What a version of a store holds: its documents, their metadata, and all passages as a table.

Latents are read only where that is asked for: in an object store, they are most of the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lclm_rag.retrieval.points import field_of, metadata_fields
from lclm_rag.store import LatentStore
from lclm_rag.store.store import Place
from lclm_rag.types import Document, MetadataField, Passage, PassageKey, StoredDocument

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "describe",
    "document_ids",
    "fields",
    "passage_frame",
    "passage_table",
    "read_document",
]

_TABLE_ROWS = 4096
"""Rows of a table that are held as Python objects at the same time."""


def document_ids(store: LatentStore) -> Iterator[str]:
    """The ids of all documents, in the order in which they lie in the store."""
    return (store.fragment(name).key(row).document_id for name, row in _first_places(store))


def describe(store: LatentStore, document_id: str) -> StoredDocument | None:
    """Describe a document, without reading its text or its latents.

    Args:
        store: The store.
        document_id: The document's id.

    Returns:
        The document; None if the store does not hold it.
    """
    places = _places(store, document_id)
    if not places:
        return None
    rows = [(store.fragment(name), row) for name, row in places]
    first, last = rows[0], rows[-1]
    return StoredDocument(
        id=document_id,
        passages=len(rows),
        characters=last[0].end(last[1]),
        tokens=sum(fragment.tokens(row) for fragment, row in rows),
        latents=sum(fragment.latent_count(row) for fragment, row in rows),
        metadata=first[0].metadata(first[1]),
    )


def read_document(store: LatentStore, document_id: str) -> Document | None:
    """Put a document together from its passages.

    Args:
        store: The store.
        document_id: The document's id.

    Returns:
        The document as it was added; None if the store does not hold it.
    """
    passages = [store.fragment(name).passage(row) for name, row in _places(store, document_id)]
    if not passages:
        return None
    return Document(document_id, "".join(p.text for p in passages), passages[0].metadata)


def fields(store: LatentStore) -> list[MetadataField]:
    """The metadata keys of all documents, with the kinds of their values.

    Args:
        store: The store.

    Returns:
        The keys that filters can name, sorted.
    """
    kinds: dict[str, set[str]] = {}
    documents: dict[str, int] = {}
    for name, row in _first_places(store):
        paths = metadata_fields(store.fragment(name).metadata(row))
        found = {field for path, _ in paths if (field := field_of(path.replace('"', "")))}
        for key, kind in found:
            kinds.setdefault(key, set()).add(kind)
        for key in {key for key, _ in found}:
            documents[key] = documents.get(key, 0) + 1
    return [MetadataField(key, tuple(sorted(kinds[key])), documents[key]) for key in sorted(kinds)]


def passage_table(
    store: LatentStore, keys: Iterable[PassageKey] | None, *, latents: bool
) -> pa.Table:
    """Read passages as an Arrow table.

    Args:
        store: The store.
        keys: The passages; None for all of them, in the order in which they lie in the store.
        latents: Whether to read their latents, too.

    Returns:
        One row for each passage; see `KnowledgeBase.to_arrow`.

    Raises:
        KeyError: If the store does not hold one of the keys.
        DamagedError: If a row is damaged.
    """
    schema = _schema(store.layout.width if latents else None)
    places = _all_places(store) if keys is None else map(store.required_place, keys)
    batches = []
    while part := [place for place, _ in zip(places, range(_TABLE_ROWS), strict=False)]:
        batches.append(_batch(store, part, schema, latents))
    return pa.Table.from_batches(batches, schema)


def passage_frame(
    store: LatentStore, keys: Iterable[PassageKey] | None, *, latents: bool
) -> pd.DataFrame:
    """Read passages as a DataFrame; see `KnowledgeBase.to_pandas`.

    Args:
        store: As for `passage_table`.
        keys: As for `passage_table`.
        latents: As for `passage_table`.

    Raises:
        ImportError: If pandas is not installed.
    """
    try:
        import pandas  # noqa: F401  pyarrow's own message names no command.
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas") from error
    table = passage_table(store, keys, latents=latents)
    columns = ["latents"] if latents else []
    frame: pd.DataFrame = table.drop_columns(columns).to_pandas()
    frame["metadata"] = [json.loads(each) for each in frame["metadata"]]
    if latents:
        width = store.layout.width
        lists = (part for chunk in table["latents"].chunks for part in chunk)
        frame["latents"] = [part.values.flatten().to_numpy().reshape(-1, width) for part in lists]
    return frame


def _schema(width: int | None) -> pa.Schema:
    columns = {
        "document_id": pa.large_string(),
        "ordinal": pa.int32(),
        "start": pa.int64(),
        "end": pa.int64(),
        "tokens": pa.int32(),
        "header": pa.large_string(),
        "text": pa.large_string(),
        "metadata": pa.large_string(),
    }
    if width is not None:
        columns["latents"] = pa.large_list(pa.list_(pa.float32(), width))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def _batch(
    store: LatentStore, places: list[Place], schema: pa.Schema, latents: bool
) -> pa.RecordBatch:
    passages: list[Passage] = []
    vectors: list[np.ndarray] = []
    tokens: list[int] = []
    for name, row in places:
        fragment = store.fragment(name)
        tokens.append(fragment.tokens(row))
        if latents:
            read = fragment.read(row)
            passages.append(read.passage)
            vectors.append(read.latents.float().numpy())
        else:
            passages.append(fragment.passage(row))
    columns = {
        "document_id": [p.key.document_id for p in passages],
        "ordinal": [p.key.ordinal for p in passages],
        "start": [p.start for p in passages],
        "end": [p.end for p in passages],
        "tokens": tokens,
        "header": [p.header for p in passages],
        "text": [p.text for p in passages],
        "metadata": [json.dumps(dict(p.metadata), ensure_ascii=False) for p in passages],
    }
    arrays = [pa.array(values, schema.field(name).type) for name, values in columns.items()]
    if latents:
        offsets = np.cumsum([0, *map(len, vectors)])
        kind = schema.field("latents").type
        flat = pa.array(np.concatenate(vectors).reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
        arrays.append(pa.LargeListArray.from_arrays(pa.array(offsets), lists, type=kind))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _all_places(store: LatentStore) -> Iterator[Place]:
    return chain.from_iterable(
        ((entry.name, row) for row in store.rows(entry)) for entry in store.entries()
    )


def _first_places(store: LatentStore) -> Iterator[Place]:
    """Where the first passage of each document lies."""
    return (
        (name, row) for name, row in _all_places(store) if not store.fragment(name).ordinal(row)
    )


def _places(store: LatentStore, document_id: str) -> list[Place]:
    """Where a document's passages lie, in order; the common document of one passage costs one look."""
    first = store.place(PassageKey(document_id, 0))
    if first is None or store.fragment(first[0]).is_last(first[1]):
        return [] if first is None else [first]
    return store.document_places(document_id)
