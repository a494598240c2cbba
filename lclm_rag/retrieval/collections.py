"""Collections on a Qdrant server: the calls that concern a whole one, and how all calls are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from grpc import RpcError, StatusCode  # type: ignore[import-untyped]
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from lclm_rag.errors import PassageIndexError
from lclm_rag.offline import require_online
from lclm_rag.retrieval.collection_setup import options_of
from lclm_rag.retrieval.points import passage_key
from lclm_rag.retrieval.qdrant_index import PAYLOAD_KEYS
from lclm_rag.retrieval.retries import with_retries
from lclm_rag.types import PassageKey

__all__ = [
    "MARK",
    "Mark",
    "at_server",
    "collection_behind",
    "collection_exists",
    "collection_options",
    "collection_pages",
    "count_points",
    "drop_collection",
    "mark_of",
    "open_client",
    "put_alias",
    "read_mark",
]

_TIMEOUT = 60  # seconds that one request may take

MARK = "lclm_rag"
"""The key of `Mark` in a collection's metadata."""

_PAGE = 5_000  # keys in one answer
_NOT_FOUND = 404
_NOT_ALLOWED = (401, 403)
_TOO_LARGE = 413

T = TypeVar("T")


@dataclass(frozen=True)
class Mark:
    """What a collection itself says about its content, in its metadata.

    Attributes:
        id: The id of the knowledge base.
        version: The number of the store's version that the collection shows; None while it is first filled.
        manifest: The digest of that version's manifest.
    """

    id: str
    version: int | None
    manifest: str | None


def collection_exists(url: str, collection: str) -> bool:
    """Whether the server has a collection or an alias of this name.

    Raises:
        PassageIndexError: When the server cannot be reached.
    """
    with closing(open_client(url)) as client:
        return at_server(url, collection, lambda: client.collection_exists(collection))


def collection_behind(url: str, name: str) -> str | None:
    """The collection that an alias stands for.

    Args:
        url: The server's URL.
        name: The alias, or the name of a collection.

    Returns:
        The collection's name, which is `name` itself if it is no alias; None if there is neither.

    Raises:
        PassageIndexError: When the server cannot be reached.
    """
    with closing(open_client(url)) as client:
        for alias in at_server(url, name, client.get_aliases).aliases:
            if alias.alias_name == name:
                return alias.collection_name
        return name if at_server(url, name, lambda: client.collection_exists(name)) else None


def read_mark(url: str, collection: str) -> Mark | None:
    """What a collection itself says about its content; None if it says nothing.

    Raises:
        PassageIndexError: When the server cannot be reached, or has no such collection.
    """
    with closing(open_client(url)) as client:
        return mark_of(at_server(url, collection, lambda: client.get_collection(collection)))


def count_points(url: str, collection: str) -> int:
    """The number of points in a collection, exact.

    Raises:
        PassageIndexError: When the server cannot be reached, or has no such collection.
    """
    with closing(open_client(url)) as client:
        return at_server(url, collection, lambda: client.count(collection, exact=True).count)


def collection_options(url: str, collection: str) -> dict[str, Any]:
    """The options with which a collection like this one can be made.

    Raises:
        PassageIndexError: When the server cannot be reached, or has no such collection.
    """
    with closing(open_client(url)) as client:
        return options_of(at_server(url, collection, lambda: client.get_collection(collection)))


def put_alias(url: str, alias: str, collection: str) -> None:
    """Let an alias stand for a collection, in one step, whatever it stood for before.

    Raises:
        PassageIndexError: When the server cannot be reached, or a collection has the alias as its name.
    """
    delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
    create = models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
    )
    with closing(open_client(url)) as client:

        def put() -> None:
            there = any(a.alias_name == alias for a in client.get_aliases().aliases)
            client.update_collection_aliases([delete, create] if there else [create])

        at_server(url, alias, put)


def drop_collection(url: str, collection: str) -> None:
    """Delete a collection with all its points; do nothing if it does not exist.

    Raises:
        PassageIndexError: When the server cannot be reached.
    """
    with closing(open_client(url)) as client:
        at_server(url, collection, lambda: client.delete_collection(collection))


def collection_pages(url: str, collection: str) -> Iterator[list[PassageKey]]:
    """The keys of all passages in a collection, some thousands at a time, in no order that matters.

    Raises:
        PassageIndexError: When the server cannot be reached, or has no such collection.
    """
    with closing(open_client(url)) as client:
        offset: Any = None
        while True:
            page = partial(_page, client, collection, offset)
            found, offset = at_server(url, collection, page)
            yield [passage_key(record.payload) for record in found]
            if offset is None:
                return


def _page(client: QdrantClient, collection: str, offset: Any) -> tuple[list[models.Record], Any]:
    return client.scroll(collection, limit=_PAGE, offset=offset, with_payload=PAYLOAD_KEYS)


def mark_of(info: models.CollectionInfo) -> Mark | None:
    """What a collection itself says about its content; None if it says nothing."""
    raw = (info.config.metadata or {}).get(MARK)
    if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
        return None
    return Mark(raw["id"], raw.get("version"), raw.get("manifest"))


def open_client(url: str) -> QdrantClient:
    """A client of the server at a URL.

    The environment says how this machine reaches it: QDRANT_API_KEY is the key, and QDRANT_GRPC_PORT, if set,
    the port at which points are written and searched by gRPC.

    Raises:
        OfflineError: When nobody may be contacted.
        PassageIndexError: When QDRANT_GRPC_PORT is not a port.
    """
    require_online(f"the Qdrant server {url}")
    port = os.environ.get("QDRANT_GRPC_PORT") or ""
    if port and not port.isdecimal():
        raise PassageIndexError(
            f"QDRANT_GRPC_PORT is {port!r}, not the number of a port such as 6334."
        )
    by_grpc: dict[str, Any] = {"prefer_grpc": True, "grpc_port": int(port)} if port else {}
    return QdrantClient(
        url=url,
        **by_grpc,
        api_key=os.environ.get("QDRANT_API_KEY") or None,
        timeout=_TIMEOUT,
        # The check runs in a thread and only warns; a problem shows in the first request anyway.
        check_compatibility=False,
    )


def at_server(where: Any, collection: str, call: Callable[[], T]) -> T:
    """Make a call with retries; PassageIndexError if it fails for good."""
    try:
        return with_retries(call)
    except UnexpectedResponse as error:
        if error.status_code == _NOT_FOUND:
            raise _lost(where, collection) from error
        if error.status_code in _NOT_ALLOWED:
            raise _not_let_in(where, error.status_code) from error
        if error.status_code == _TOO_LARGE:
            raise PassageIndexError(
                f"A request with passages is too large for Qdrant at {where}: raise its "
                "service.max_request_size_mb, or the limit of the proxy before it."
            ) from error
        raise _failed(where, collection, error) from error
    except (ApiException, QdrantException) as error:
        raise _failed(where, collection, error) from error
    except RpcError as error:
        if error.code() == StatusCode.NOT_FOUND:
            raise _lost(where, collection) from error
        if error.code() in (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED):
            raise _not_let_in(where, error.code().name) from error
        raise _failed(where, collection, error, error.details()) from error


def _lost(where: Any, collection: str) -> PassageIndexError:
    return PassageIndexError(
        f"Qdrant at {where} has no collection {collection!r}: was it deleted, or is this another server? "
        "lclm-rag verify --repair makes it anew from the store, where nothing is lost."
    )


def _not_let_in(where: Any, status: object) -> PassageIndexError:
    return PassageIndexError(
        f"Qdrant at {where} does not let this process in ({status}): set QDRANT_API_KEY to a key that may do "
        "this."
    )


def _failed(
    where: Any, collection: str, error: Exception, details: str | None = None
) -> PassageIndexError:
    reason = " ".join((details or str(error)).split()) or type(error).__name__
    return PassageIndexError(f"Qdrant at {where}, collection {collection!r}, failed: {reason}")
