"""The passage index on a Qdrant server, in one collection."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, get_args

from qdrant_client import QdrantClient, models

from lclm_rag.errors import PassageIndexError
from lclm_rag.retrieval.bm25 import Bm25Settings
from lclm_rag.retrieval.collection_setup import CollectionSetup, creation
from lclm_rag.retrieval.collections import MARK, Mark, at_server, mark_of, open_client
from lclm_rag.retrieval.embedders import Embedder
from lclm_rag.retrieval.filter_check import filter_keys
from lclm_rag.retrieval.filters import Filter, Kind
from lclm_rag.retrieval.index import ScoredKey
from lclm_rag.retrieval.points import metadata_path, scored_key, translate
from lclm_rag.retrieval.qdrant_index import (
    BM25,
    DENSE,
    PAYLOAD_KEYS,
    PointData,
    QdrantIndex,
    SearchVectors,
    check_dense_width,
    plain,
)
from lclm_rag.retrieval.strict_filters import only_indexed, paths_of
from lclm_rag.types import Metadata

__all__ = ["ServerIndex"]

_REQUEST_BYTES = 4 * 2**20
"""The most bytes of points in one request. A server takes 32 MiB, and a proxy before it often less."""

# What a number takes as JSON, at the most.
_FLOAT_BYTES = 26
_WORD_BYTES = 12 + _FLOAT_BYTES
_POINT_BYTES = 200


T = TypeVar("T")

_SCHEMAS = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "float": models.PayloadSchemaType.FLOAT,
    "datetime": models.PayloadSchemaType.DATETIME,
}
_ON_DISK = {
    "keyword": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, on_disk=True),
    "float": models.FloatIndexParams(type=models.FloatIndexType.FLOAT, on_disk=True),
    "datetime": models.DatetimeIndexParams(type=models.DatetimeIndexType.DATETIME, on_disk=True),
}

_MANY_INDEXES = 100
_DOCUMENT_ID = PAYLOAD_KEYS[0]

_log = logging.getLogger(__name__)


class ServerIndex(QdrantIndex):
    """A `PassageIndex` in a collection on a Qdrant server.

    Calls that fail because the server is busy or does not answer in time are made again.

    Args:
        client: A client that speaks HTTP. `close` leaves it open.
        collection: The collection's name, or an alias of it.
        bm25: How words become sparse vectors; for an existing index, the settings that it was created with.
        embedder: Makes the dense vectors; None for BM25 alone.
        create: Whether to create the collection if there is none of that name.
        setup: How the collection is made, and what its points hold.

    Raises:
        PassageIndexError: When the server cannot be reached, there is no such collection, it is not a passage
            index, or its dense vectors do not fit the embedder.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        bm25: Bm25Settings,
        embedder: Embedder | None = None,
        create: bool = False,
        setup: CollectionSetup | None = None,
    ) -> None:
        super().__init__(bm25, embedder)
        self._setup = setup or CollectionSetup()
        self._client = client
        self._owns_client = False
        self._collection = collection
        options = client.init_options
        self._where = options.get("url") or options.get("host") or options.get("location")
        if create:
            self._call(self._create_collection)
        info = self._call(lambda: client.get_collection(collection))
        self._check_collection(info)
        self.mark = mark_of(info)
        if create:
            self._create_field_indexes()

    @classmethod
    def connect(
        cls,
        url: str,
        collection: str,
        *,
        bm25: Bm25Settings,
        embedder: Embedder | None = None,
        create: bool = False,
        setup: CollectionSetup | None = None,
    ) -> ServerIndex:
        """Open, or create, an index on the server at a URL.

        The environment variable QDRANT_API_KEY, if set, is the server's API key.

        Args:
            url: The server's URL.
            collection: See the class.
            bm25: See the class.
            embedder: See the class.
            create: See the class.
            setup: See the class.

        Returns:
            The index, whose `close` closes the connection.

        Raises:
            PassageIndexError: See the class.
        """
        client = open_client(url)
        try:
            index = cls(
                client, collection, bm25=bm25, embedder=embedder, create=create, setup=setup
            )
        except BaseException:
            client.close()
            raise
        index._owns_client = True
        return index

    def count(self) -> int:
        """The number of passages, exact."""
        return self._call(lambda: self._client.count(self._collection, exact=True).count)

    @property
    def collection(self) -> str:
        """The name that the collection was opened with."""
        return self._collection

    def put_mark(self, mark: Mark) -> None:
        """Note in the collection what it shows. Servers before Qdrant 1.16 forget it."""
        metadata = {MARK: {"id": mark.id, "version": mark.version, "manifest": mark.manifest}}
        self._call(lambda: self._client.update_collection(self._collection, metadata=metadata))
        self.mark = mark

    def flush(self) -> None:
        """Do nothing: every write waits until the server has applied it, and the server keeps a log."""

    def optimize(self) -> None:
        """Do nothing: the server optimizes by itself."""

    def close(self) -> None:
        """Close the connection if `connect` opened it."""
        if self._owns_client:
            self._client.close()

    def _create_collection(self) -> None:
        # Asked each time, because the answer to an earlier try may have been lost.
        if self._client.collection_exists(self._collection):
            return
        width = None if self._embedder is None else self._embedder.width
        self._client.create_collection(self._collection, **creation(self._setup.options, width))

    def _create_field_indexes(self) -> None:
        """Make the payload indexes that can be made before the first point."""
        if _DOCUMENT_ID not in self._indexed:
            self._create_field_index(_DOCUMENT_ID, "keyword")
            self._indexed.add(_DOCUMENT_ID)
        for key in self._setup.filter_keys or ():
            for kind in get_args(Kind):
                self._index_field(metadata_path(key, kind), kind)

    def _check_collection(self, info: models.CollectionInfo) -> None:
        where = f"The collection {self._collection!r} at {self._where}"
        params = info.config.params
        bm25 = (params.sparse_vectors or {}).get(BM25)
        if bm25 is None or bm25.modifier != models.Modifier.IDF:
            raise PassageIndexError(f"{where} is not a passage index; choose another name.")
        dense = params.vectors.get(DENSE) if isinstance(params.vectors, dict) else None
        check_dense_width(where, dense.size if dense else None, self._embedder)
        if dense is not None and dense.distance != models.Distance.COSINE:
            raise PassageIndexError(
                f"{where} compares its dense vectors by {dense.distance.value}, and a passage index by "
                "Cosine; choose another name."
            )
        self._note_indexed(info.payload_schema)
        strict = info.config.strict_mode_config
        self._is_strict = bool(
            strict and strict.enabled and strict.unindexed_filtering_retrieve is False
        )

    def _write(self, points: list[PointData]) -> None:
        for request in _requests(points):
            made = [_point(point) for point in request]
            self._call(partial(self._client.upsert, self._collection, made, wait=True))

    def _remove(self, ids: list[str]) -> None:
        gone = models.PointIdsList(points=[*ids])
        self._call(lambda: self._client.delete(self._collection, gone, wait=True))

    def _create_field_index(self, path: str, schema: str) -> None:
        kind: Any = _ON_DISK[schema] if self._setup.large else _SCHEMAS[schema]
        self._call(
            lambda: self._client.create_payload_index(self._collection, path, kind, wait=True)
        )
        if len(self._indexed) == _MANY_INDEXES:
            _log.warning(
                "The metadata have more than %d keys, and each has an index on %s, which takes memory and "
                "time there: choose those that filters need with --filter-keys.",
                _MANY_INDEXES,
                self._where,
            )

    def _kept(self, metadata: Metadata) -> Metadata:
        keys = self._setup.filter_keys
        return metadata if keys is None else {k: v for k, v in metadata.items() if k in keys}

    def _refresh_indexed(self) -> None:
        info = self._call(lambda: self._client.get_collection(self._collection))
        self._note_indexed(info.payload_schema)

    def _query_all(
        self, vectors: Sequence[SearchVectors], limit: int, filter: Filter | None
    ) -> list[list[ScoredKey]]:
        condition = self._condition(filter)
        requests = [_request(each, limit, condition) for each in vectors]
        answers = self._call(lambda: self._client.query_batch_points(self._collection, requests))
        return [
            [scored_key(point.payload, point.score) for point in answer.points]
            for answer in answers
        ]

    def _dense(self, ids: list[str]) -> dict[str, list[float]]:
        records = self._call(
            lambda: self._client.retrieve(
                self._collection, [*ids], with_payload=False, with_vectors=[DENSE]
            )
        )
        return {
            str(record.id): record.vector[DENSE]  # type: ignore[misc]  # One list of floats.
            for record in records
            if isinstance(record.vector, dict)
        }

    def _scroll(
        self, filter: Filter | None, limit: int, offset: Any
    ) -> tuple[list[dict[str, Any] | None], Any]:
        condition = self._condition(filter)
        found, following = self._call(
            lambda: self._client.scroll(
                self._collection,
                scroll_filter=condition,
                limit=limit,
                offset=offset,
                with_payload=PAYLOAD_KEYS,
            )
        )
        return [record.payload for record in found], following

    def unmatchable(self, filter: Filter) -> list[str]:
        """See `PassageIndex.unmatchable`. Of chosen keys, what occurs is not known."""
        self._check_keys(filter)
        return super().unmatchable(filter) if self._setup.filter_keys is None else []

    def _check_keys(self, filter: Filter) -> None:
        keys = self._setup.filter_keys
        if keys is None:
            return
        if others := [key for key in filter_keys(filter) if key not in keys]:
            raise ValueError(
                f"This knowledge base can be filtered by {', '.join(keys) or 'no key'}, and not by "
                f"{others[0]!r}: lclm-rag reindex --filter-keys {','.join([*keys, others[0]])} changes that."
            )

    def _condition(self, filter: Filter | None) -> models.Filter | None:
        if filter is None:
            return None
        self._check_keys(filter)
        condition = translate(filter, models, models.Range, models.DatetimeRange, _is_empty)
        if not self._is_strict:
            return condition  # type: ignore[no-any-return]
        # What occurs has an index; what has none occurs nowhere, and the server would refuse the condition.
        if any(plain(path) not in self._indexed for path in paths_of(condition)):
            self._refresh_indexed()
        return only_indexed(condition, lambda path: plain(path) in self._indexed)

    def _call(self, call: Callable[[], T]) -> T:
        return at_server(self._where, self._collection, call)


def _is_empty(path: str) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))


def _request(
    vectors: SearchVectors, limit: int, condition: models.Filter | None
) -> models.QueryRequest:
    words = models.SparseVector(indices=vectors.indices, values=vectors.values)
    if vectors.dense is None:
        return models.QueryRequest(
            query=words, using=BM25, filter=condition, limit=limit, with_payload=PAYLOAD_KEYS
        )
    queries: list[tuple[Any, str]] = [(vectors.dense, DENSE)]
    queries += [(words, BM25)] if vectors.indices else []
    return models.QueryRequest(
        query=models.FusionQuery(fusion=models.Fusion.RRF),
        prefetch=[
            models.Prefetch(query=query, using=using, filter=condition, limit=vectors.candidates)
            for query, using in queries
        ],
        limit=limit,
        with_payload=PAYLOAD_KEYS,
    )


def _requests(points: list[PointData]) -> Iterator[list[PointData]]:
    """The points in groups of at most `_REQUEST_BYTES`; one that is larger goes alone."""
    group: list[PointData] = []
    size = 0
    for point in points:
        more = _bytes(point)
        if group and size + more > _REQUEST_BYTES:
            yield group
            group, size = [], 0
        group.append(point)
        size += more
    if group:
        yield group


def _bytes(point: PointData) -> int:
    """The size of a point as JSON, at the most: only its payload is worth measuring."""
    numbers = len(point.indices) * _WORD_BYTES + len(point.dense or ()) * _FLOAT_BYTES
    return _POINT_BYTES + numbers + len(json.dumps(point.payload))


def _point(point: PointData) -> models.PointStruct:
    vector: dict[str, Any] = {BM25: models.SparseVector(indices=point.indices, values=point.values)}
    if point.dense is not None:
        vector[DENSE] = point.dense
    return models.PointStruct(id=point.id, vector=vector, payload=point.payload)
