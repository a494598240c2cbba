"""The passage index on a Qdrant server, in one collection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from lclm_rag.errors import PassageIndexError
from lclm_rag.retrieval.bm25 import Bm25Settings
from lclm_rag.retrieval.embedders import Embedder
from lclm_rag.retrieval.filters import Filter
from lclm_rag.retrieval.index import ScoredKey
from lclm_rag.retrieval.points import passage_key, translate
from lclm_rag.retrieval.qdrant_index import (
    BM25,
    DENSE,
    PAYLOAD_KEYS,
    PointData,
    QdrantIndex,
    SearchVectors,
    check_dense_width,
)
from lclm_rag.types import PassageKey

__all__ = ["ServerIndex", "collection_exists", "collection_keys", "drop_collection"]

_TIMEOUT = 60  # seconds that one request may take

_SCHEMAS = {"keyword": models.PayloadSchemaType.KEYWORD, "float": models.PayloadSchemaType.FLOAT}


class ServerIndex(QdrantIndex):
    """A `PassageIndex` in a collection on a Qdrant server.

    Args:
        client: A client that speaks HTTP. `close` leaves it open.
        collection: The collection's name; it is created if the server has none of that name.
        bm25: How words become sparse vectors; for an existing index, the settings that it was created with.
        embedder: Makes the dense vectors; None for BM25 alone.

    Raises:
        PassageIndexError: When the server cannot be reached, the collection is not a passage index, or its
            dense vectors do not fit the embedder.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        bm25: Bm25Settings,
        embedder: Embedder | None = None,
    ) -> None:
        super().__init__(bm25, embedder)
        self._client = client
        self._owns_client = False
        self._collection = collection
        options = client.init_options
        self._where = options.get("url") or options.get("host") or options.get("location")
        with self._server_errors():
            if not client.collection_exists(collection):
                self._create_collection()
            self._check_collection(client.get_collection(collection))

    @classmethod
    def connect(
        cls,
        url: str,
        collection: str,
        *,
        bm25: Bm25Settings,
        embedder: Embedder | None = None,
    ) -> ServerIndex:
        """Open, or create, an index on the server at a URL.

        The environment variable QDRANT_API_KEY, if set, is the server's API key.

        Args:
            url: The server's URL.
            collection: See the class.
            bm25: See the class.
            embedder: See the class.

        Returns:
            The index, whose `close` closes the connection.

        Raises:
            PassageIndexError: See the class.
        """
        client = _client(url)
        try:
            index = cls(client, collection, bm25=bm25, embedder=embedder)
        except BaseException:
            client.close()
            raise
        index._owns_client = True
        return index

    def count(self) -> int:
        """The number of passages, exact."""
        with self._server_errors():
            return self._client.count(self._collection, exact=True).count

    def flush(self) -> None:
        """Do nothing: every write waits until the server has applied it, and the server keeps a log."""

    def optimize(self) -> None:
        """Do nothing: the server optimizes by itself."""

    def close(self) -> None:
        """Close the connection if `connect` opened it."""
        if self._owns_client:
            self._client.close()

    def _create_collection(self) -> None:
        vectors = {}
        if self._embedder is not None:
            vectors[DENSE] = models.VectorParams(
                size=self._embedder.width, distance=models.Distance.COSINE
            )
        self._client.create_collection(
            self._collection,
            vectors_config=vectors,
            sparse_vectors_config={BM25: models.SparseVectorParams(modifier=models.Modifier.IDF)},
        )

    def _check_collection(self, info: models.CollectionInfo) -> None:
        where = f"The collection {self._collection!r} at {self._where}"
        params = info.config.params
        bm25 = (params.sparse_vectors or {}).get(BM25)
        if bm25 is None or bm25.modifier != models.Modifier.IDF:
            raise PassageIndexError(f"{where} is not a passage index; choose another name.")
        dense = params.vectors.get(DENSE) if isinstance(params.vectors, dict) else None
        check_dense_width(where, dense.size if dense else None, self._embedder)
        self._note_indexed(info.payload_schema)

    def _write(self, points: list[PointData]) -> None:
        with self._server_errors():
            self._client.upsert(self._collection, [_point(point) for point in points], wait=True)

    def _remove(self, ids: list[str]) -> None:
        with self._server_errors():
            self._client.delete(self._collection, models.PointIdsList(points=[*ids]), wait=True)

    def _create_field_index(self, path: str, schema: str) -> None:
        with self._server_errors():
            self._client.create_payload_index(self._collection, path, _SCHEMAS[schema], wait=True)

    def _refresh_indexed(self) -> None:
        with self._server_errors():
            self._note_indexed(self._client.get_collection(self._collection).payload_schema)

    def _query(self, vectors: SearchVectors, limit: int, filter: Filter | None) -> list[ScoredKey]:
        condition = None if filter is None else translate(filter, models, models.Range, _is_empty)
        words = models.SparseVector(indices=vectors.indices, values=vectors.values)
        if vectors.dense is None:
            request: dict[str, Any] = {"query": words, "using": BM25, "query_filter": condition}
        else:
            queries: list[tuple[Any, str]] = [(vectors.dense, DENSE)]
            queries += [(words, BM25)] if vectors.indices else []
            request = {
                "query": models.FusionQuery(fusion=models.Fusion.RRF),
                "prefetch": [
                    models.Prefetch(
                        query=query, using=using, filter=condition, limit=vectors.candidates
                    )
                    for query, using in queries
                ],
            }
        with self._server_errors():
            found = self._client.query_points(
                self._collection, limit=limit, with_payload=PAYLOAD_KEYS, **request
            )
        return [ScoredKey(passage_key(point.payload), point.score) for point in found.points]

    def _scroll(
        self, filter: Filter | None, limit: int, offset: Any
    ) -> tuple[list[dict[str, Any] | None], Any]:
        condition = None if filter is None else translate(filter, models, models.Range, _is_empty)
        with self._server_errors():
            found, following = self._client.scroll(
                self._collection,
                scroll_filter=condition,
                limit=limit,
                offset=offset,
                with_payload=PAYLOAD_KEYS,
            )
        return [record.payload for record in found], following

    def _server_errors(self) -> AbstractContextManager[None]:
        return _errors_at(self._where, self._collection)


def collection_exists(url: str, collection: str) -> bool:
    """Whether the server has a collection of this name.

    Raises:
        PassageIndexError: When the server cannot be reached.
    """
    with _errors_at(url, collection), closing(_client(url)) as client:
        return client.collection_exists(collection)


def collection_keys(url: str, collection: str) -> set[PassageKey]:
    """The keys of all passages in a collection.

    Raises:
        PassageIndexError: When the server cannot be reached, or has no such collection.
    """
    keys: set[PassageKey] = set()
    with _errors_at(url, collection), closing(_client(url)) as client:
        offset = None
        while True:
            found, offset = client.scroll(
                collection, limit=10_000, offset=offset, with_payload=PAYLOAD_KEYS
            )
            keys.update(passage_key(record.payload) for record in found)
            if offset is None:
                return keys


def drop_collection(url: str, collection: str) -> None:
    """Delete a collection with all its points; do nothing if it does not exist.

    Raises:
        PassageIndexError: When the server cannot be reached.
    """
    with _errors_at(url, collection), closing(_client(url)) as client:
        client.delete_collection(collection)


def _is_empty(path: str) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))


def _client(url: str) -> QdrantClient:
    return QdrantClient(
        url=url,
        api_key=os.environ.get("QDRANT_API_KEY") or None,
        timeout=_TIMEOUT,
        # The check runs in a thread and only warns; a problem shows in the first request anyway.
        check_compatibility=False,
    )


@contextmanager
def _errors_at(where: Any, collection: str) -> Iterator[None]:
    try:
        yield
    except (ApiException, QdrantException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PassageIndexError(
            f"Qdrant at {where}, collection {collection!r}, failed: {reason}"
        ) from error


def _point(point: PointData) -> models.PointStruct:
    vector: dict[str, Any] = {BM25: models.SparseVector(indices=point.indices, values=point.values)}
    if point.dense is not None:
        vector[DENSE] = point.dense
    return models.PointStruct(id=point.id, vector=vector, payload=point.payload)
