"""What the indexes on Qdrant's two engines share: batches, vectors, payload indexes, the order of hits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from lclm_rag.errors import PassageIndexError
from lclm_rag.retrieval.bm25 import Bm25Settings
from lclm_rag.retrieval.embedders import Embedder
from lclm_rag.retrieval.filter_check import unmatchable
from lclm_rag.retrieval.filters import Filter, Kind
from lclm_rag.retrieval.index import IndexEntry, ScoredKey
from lclm_rag.retrieval.points import field_of, metadata_fields, passage_key, payload, point_id
from lclm_rag.types import Metadata, PassageKey

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "BM25",
    "DENSE",
    "PAYLOAD_KEYS",
    "RRF_K",
    "PointData",
    "QdrantIndex",
    "SearchVectors",
    "check_dense_width",
    "plain",
]

# The names of the two vectors of a point.
BM25 = "bm25"
DENSE = "dense"

# The fields of the payload that a search needs: the passage key, and where the passage was.
PAYLOAD_KEYS = ["document_id", "ordinal", "place"]

# Reciprocal rank fusion adds up 1 / (k + rank), with ranks from 0. Every Qdrant server's default for k is 2.
RRF_K = 2

# The payload index of each kind of metadata; the others get "keyword".
_INDEXES = {"number": "float", "date": "datetime"}

_BATCH = 256
# How many hits past top_k are fetched when equal scores cross it, so that the keys can decide the order.
_TIE_REACH = 1000
# The least number of candidates that each half of a hybrid search contributes.
_CANDIDATES = 100

T = TypeVar("T")


@dataclass(frozen=True)
class PointData:
    """A point, before conversion to the engine's own type.

    Attributes:
        id: The point's id, of `point_id`.
        indices: The words of the BM25 vector.
        values: The weights of these words.
        dense: The dense vector; None without an embedder.
        payload: The passage's key and metadata, of `payload`.
    """

    id: str
    indices: list[int]
    values: list[float]
    dense: list[float] | None
    payload: dict[str, Any]


@dataclass(frozen=True)
class SearchVectors:
    """A question as vectors.

    Attributes:
        indices: The words of the BM25 vector; empty if the question has nothing but stop words.
        values: The weights of these words.
        dense: The dense vector; None without an embedder.
        candidates: The number of hits that each vector contributes when the two are fused.
    """

    indices: list[int]
    values: list[float]
    dense: list[float] | None
    candidates: int


class QdrantIndex(ABC):
    """A `PassageIndex` over one of Qdrant's engines; subclasses make the calls to the engine.

    Args:
        bm25: How words become sparse vectors.
        embedder: Makes the dense vectors; None for BM25 alone.
    """

    def __init__(self, bm25: Bm25Settings, embedder: Embedder | None) -> None:
        self._bm25 = bm25.model()
        self._embedder = embedder
        self._indexed: set[str] = set()

    def upsert(self, entries: Iterable[IndexEntry]) -> None:
        """See `PassageIndex.upsert`."""
        for batch in _batches(entries):
            batch = [replace(entry, metadata=self._kept(entry.metadata)) for entry in batch]
            points = self._points(batch)
            for path, kind in sorted(set().union(*(metadata_fields(e.metadata) for e in batch))):
                self._index_field(path, kind)
            self._write(points)

    def delete(self, keys: Iterable[PassageKey]) -> None:
        """See `PassageIndex.delete`."""
        for batch in _batches(keys):
            self._remove([point_id(key) for key in batch])

    def search(self, question: str, top_k: int, filter: Filter | None = None) -> list[ScoredKey]:
        """See `PassageIndex.search`."""
        return self.search_all([question], top_k, filter)[0]

    def search_all(
        self,
        questions: Sequence[str],
        top_k: int,
        filter: Filter | None = None,
        *,
        words_only: bool = False,
        dense_only: bool = False,
    ) -> list[list[ScoredKey]]:
        """See `PassageIndex.search_all`."""
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}.")
        vectors = [self._vectors(_valid_unicode(q), top_k, words_only) for q in questions]
        if dense_only:
            vectors = [replace(each, indices=[], values=[]) for each in vectors]
        asked = [i for i, v in enumerate(vectors) if v.indices or v.dense is not None]
        found: list[list[ScoredKey]] = [[] for _ in questions]
        for batch in _batches(asked):
            searched = [vectors[i] for i in batch]
            for i, hits in zip(batch, self._query_all(searched, top_k + 1, filter), strict=True):
                # The engine may cut a run of equal scores anywhere: if one crosses top_k, fetch all of it.
                if len(hits) > top_k and hits[top_k].score == hits[top_k - 1].score:
                    (hits,) = self._query_all([vectors[i]], top_k + _TIE_REACH, filter)
                found[i] = sorted(hits, key=lambda hit: (-hit.score, hit.key))[:top_k]
        return found

    def _vectors(self, question: str, top_k: int, words_only: bool) -> SearchVectors:
        words, dense = self._bm25.embed_query(question), None
        if self._embedder is not None and not words_only:
            dense = self._embedder.embed_question(question)
            _check_vectors(self._embedder, [dense], 1)
        return SearchVectors(words.indices, words.values, dense, max(_CANDIDATES, 2 * top_k))

    def dense_vectors(self, keys: Sequence[PassageKey]) -> np.ndarray | None:
        """See `PassageIndex.dense_vectors`."""
        import numpy as np  # Not above: reading a corpus needs none of it.

        if self._embedder is None:
            return None
        found = self._dense([point_id(key) for key in keys])
        gone = next((key for key in keys if point_id(key) not in found), None)
        if gone is not None:
            raise PassageIndexError(f"The passage index does not hold passage {gone}.")
        rows = [found[point_id(key)] for key in keys]
        return np.array(rows, np.float32).reshape(len(keys), self._embedder.width)

    def keys(self, filter: Filter | None) -> list[PassageKey]:
        """See `PassageIndex.keys`."""
        keys: list[PassageKey] = []
        offset = None
        while True:
            payloads, offset = self._scroll(filter, _BATCH, offset)
            keys += map(passage_key, payloads)
            if offset is None:
                return sorted(keys)

    def has(self, filter: Filter | None) -> bool:
        """See `PassageIndex.has`."""
        found, _ = self._scroll(filter, 1, None)
        return bool(found)

    def unmatchable(self, filter: Filter) -> list[str]:
        """See `PassageIndex.unmatchable`."""
        # If other processes write too, the fields known here may be out of date: refresh before reporting.
        if not unmatchable(filter, self.fields()):
            return []
        self._refresh_indexed()
        return unmatchable(filter, self.fields())

    def fields(self) -> dict[str, set[Kind]]:
        """See `PassageIndex.fields`. Every kind that ever occurred has a payload index."""
        fields: dict[str, set[Kind]] = {}
        for found in map(field_of, self._indexed):
            if found is not None:
                fields.setdefault(found[0], set()).add(found[1])
        return fields

    @abstractmethod
    def _refresh_indexed(self) -> None:
        """Ask the engine again which paths are indexed, if other processes may have written to it."""

    @abstractmethod
    def _query_all(
        self, vectors: Sequence[SearchVectors], limit: int, filter: Filter | None
    ) -> list[list[ScoredKey]]:
        """For each question at most `limit` hits, best first."""

    @abstractmethod
    def _dense(self, ids: list[str]) -> dict[str, list[float]]:
        """The dense vectors of points, by id."""

    @abstractmethod
    def _scroll(
        self, filter: Filter | None, limit: int, offset: Any
    ) -> tuple[list[dict[str, Any] | None], Any]:
        """At most `limit` payloads from `offset` (None: the start), and the next offset (None: the end)."""

    @abstractmethod
    def _write(self, points: list[PointData]) -> None: ...

    @abstractmethod
    def _remove(self, ids: list[str]) -> None: ...

    @abstractmethod
    def _create_field_index(self, path: str, schema: str) -> None:
        """Create a payload index; `schema` is "keyword", "float" or "datetime"."""

    def _kept(self, metadata: Metadata) -> Metadata:
        """What of a passage's metadata its point holds."""
        return metadata

    def _index_field(self, path: str, kind: str) -> None:
        if plain(path) not in self._indexed:
            # Numbers get a float index, which holds whole numbers too; an integer index would drop 2.5.
            self._create_field_index(path, _INDEXES.get(kind, "keyword"))
            self._indexed.add(plain(path))

    def _note_indexed(self, paths: Iterable[str]) -> None:
        """Remember the paths that the engine reports as indexed."""
        self._indexed = {plain(path) for path in paths}

    def _points(self, batch: list[IndexEntry]) -> list[PointData]:
        texts = [_valid_unicode(entry.text) for entry in batch]
        dense: list[list[float]] | list[None] = [None] * len(batch)
        if self._embedder is not None:
            dense = self._embedder.embed_passages(texts)
            _check_vectors(self._embedder, dense, len(batch))
        points = []
        for entry, text, vector in zip(batch, texts, dense, strict=True):
            # First, because its error names a bad passage.
            fields = payload(entry.key, entry.metadata, entry.place)
            words = self._bm25.embed_document(text)
            points.append(
                PointData(
                    id=point_id(entry.key),
                    indices=words.indices,
                    values=words.values,
                    dense=vector,
                    payload=fields,
                )
            )
        return points


def check_dense_width(where: str, stored: int | None, embedder: Embedder | None) -> None:
    """Check that an index fits the embedder that it is opened with.

    Args:
        where: The index, as the subject of the error's sentence.
        stored: The width of the index's dense vectors; None if it has none.
        embedder: The embedder that the index is opened with, if any.

    Raises:
        PassageIndexError: When only one of the two has dense vectors, or the widths differ.
    """
    if stored is None and embedder is not None:
        raise PassageIndexError(
            f"{where} has no dense vectors; open it without an embedder, or build it again with "
            f"{embedder.name}."
        )
    if stored is not None and (embedder is None or embedder.width != stored):
        named = "no embedder" if embedder is None else f"{embedder.name} of width {embedder.width}"
        raise PassageIndexError(
            f"{where} has dense vectors of width {stored}, but was opened with {named}; open it "
            "with the embedder that built it, or build it again."
        )


def _check_vectors(embedder: Embedder, vectors: list[list[float]], count: int) -> None:
    """Check an embedder's vectors before they are stored or searched, as engines accept NaN silently."""
    if len(vectors) != count:
        raise ValueError(f"{embedder.name} made {len(vectors)} vectors of {count} texts.")
    for vector in vectors:
        if len(vector) != embedder.width:
            raise ValueError(
                f"{embedder.name} made a vector of width {len(vector)}, not {embedder.width}."
            )
        if not math.isfinite(sum(vector)):
            raise ValueError(f"{embedder.name} made a vector that is not finite.")


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


def plain(path: str) -> str:
    """A JSON path without its quotes: engines report paths with only the quotes that they consider needed."""
    return path.replace('"', "")


def _valid_unicode(text: str) -> str:
    """The text with question marks for lone surrogates, which no engine or tokenizer accepts."""
    return text.encode("utf-8", "replace").decode()
