"""A stand-in for a Qdrant server that is spoken to by gRPC, in memory; see `support.qdrant_server`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
from qdrant_client import QdrantClient
from qdrant_client import grpc as messages
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload
from qdrant_client.grpc.collections_service_pb2_grpc import add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import add_PointsServicer_to_server

__all__ = ["GrpcFaults", "serve_grpc"]


@dataclass
class GrpcFaults:
    """What goes wrong.

    Attributes:
        codes: The status codes with which the next calls fail, one each.
        calls: The calls that were made, by name.
    """

    codes: list[grpc.StatusCode] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


@contextmanager
def serve_grpc(faults: GrpcFaults | None = None) -> Iterator[int]:
    """The port of a server that runs in threads of this process, with no collections."""
    client = QdrantClient(":memory:")
    failing = faults or GrpcFaults()
    server = grpc.server(ThreadPoolExecutor(1))
    add_CollectionsServicer_to_server(_Service(_Collections(client), failing), server)
    add_PointsServicer_to_server(_Service(_Points(client), failing), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


class _Service:
    """All methods of a servicer; those that the stand-in has not are refused."""

    def __init__(self, methods: Any, faults: GrpcFaults) -> None:
        self._methods, self._faults = methods, faults

    def __getattr__(self, name: str) -> Any:
        def call(request: Any, context: Any) -> Any:
            self._faults.calls.append(name)
            if self._faults.codes:
                context.abort(self._faults.codes.pop(0), "as the test wants it")
            try:
                return getattr(self._methods, name)(request)
            except ValueError as error:
                context.abort(grpc.StatusCode.NOT_FOUND, str(error))

        return call


class _Collections:
    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def CollectionExists(self, request: Any) -> Any:  # noqa: N802
        there = self._client.collection_exists(request.collection_name)
        return messages.CollectionExistsResponse(result=messages.CollectionExists(exists=there))

    def Create(self, request: Any) -> Any:  # noqa: N802
        vectors = request.vectors_config
        sparse = GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config)
        dense = GrpcToRest.convert_vectors_config(vectors) if vectors.WhichOneof("config") else {}
        self._client.create_collection(request.collection_name, dense, sparse)
        return messages.CollectionOperationResponse(result=True)

    def Get(self, request: Any) -> Any:  # noqa: N802
        info = self._client.get_collection(request.collection_name)
        return messages.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def Update(self, request: Any) -> Any:  # noqa: N802
        metadata = grpc_to_payload(request.metadata)
        self._client.update_collection(request.collection_name, metadata=metadata)
        return messages.CollectionOperationResponse(result=True)

    def ListAliases(self, request: Any) -> Any:  # noqa: N802
        aliases = self._client.get_aliases().aliases
        return messages.ListAliasesResponse(
            aliases=[RestToGrpc.convert_alias_description(alias) for alias in aliases]
        )

    def UpdateAliases(self, request: Any) -> Any:  # noqa: N802
        changes = [GrpcToRest.convert_alias_operations(each) for each in request.actions]
        self._client.update_collection_aliases(changes)
        return messages.CollectionOperationResponse(result=True)


class _Points:
    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def CreateFieldIndex(self, request: Any) -> Any:  # noqa: N802
        return _updated()

    def Upsert(self, request: Any) -> Any:  # noqa: N802
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        self._client.upsert(request.collection_name, points)
        return _updated()

    def Delete(self, request: Any) -> Any:  # noqa: N802
        self._client.delete(
            request.collection_name, GrpcToRest.convert_points_selector(request.points)
        )
        return _updated()

    def Count(self, request: Any) -> Any:  # noqa: N802
        count = self._client.count(request.collection_name).count
        return messages.CountResponse(result=messages.CountResult(count=count))

    def QueryBatch(self, request: Any) -> Any:  # noqa: N802
        found = []
        for each in request.query_points:
            filter = GrpcToRest.convert_filter(each.filter) if each.HasField("filter") else None
            query = GrpcToRest.convert_query(each.query)
            result = self._client.query_points(
                request.collection_name,
                query,
                using=each.using,
                query_filter=filter,
                limit=each.limit,
                with_payload=True,
            )
            points = [RestToGrpc.convert_scored_point(point) for point in result.points]
            found.append(messages.BatchResult(result=points))
        return messages.QueryBatchResponse(result=found)


def _updated() -> Any:
    done = messages.UpdateResult(operation_id=1, status=messages.UpdateStatus.Completed)
    return messages.PointsOperationResponse(result=done)
