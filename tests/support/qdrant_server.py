"""A stand-in for a Qdrant server, so that several processes can share one collection in a test.

It speaks the part of Qdrant's REST API that `lclm_rag.retrieval.server` uses. Requests are read with
qdrant-client's own models, which refuse what they do not know, and carried out by qdrant-client in memory. So
tests over it show that our requests are well formed, that answers are read rightly, and what processes see of
each other. They do not show what a real server does with the same requests: it has another engine, with a
log, optimizers, payload indexes and limits; here requests come one after another, nothing lasts, no key is
asked for, and most of the API is missing. For that, run tests/retrieval with QDRANT_URL set.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError
from pydantic_core import to_json
from qdrant_client import QdrantClient, models

__all__ = ["serve"]


@contextmanager
def serve() -> Iterator[str]:
    """The URL of a server that runs in a thread of this process, with no collections."""
    collections = _Collections()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, answer = 200, dict[str, Any](status="ok", time=0.0)
            try:
                _, _, name, *what = urlsplit(self.path).path.split("/", 3)
                answer["result"] = collections.do(self.command, what, unquote(name), body)
            except ValueError as error:
                # In memory, that a collection is not there is a ValueError and no more.
                code = 400 if isinstance(error, ValidationError) else 404
                answer["status"] = {"error": str(error)}
            content = to_json(answer)
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Collections:
    def __init__(self) -> None:
        self._client = QdrantClient(":memory:")
        self._indexed: dict[str, dict[str, models.PayloadIndexInfo]] = {}

    def do(self, method: str, what: list[str], name: str, body: bytes) -> Any:
        """The `result` of a request. Raises ValueError for a body, a name or a path that is not known."""
        client = self._client
        match method, *what:
            case "GET", "exists":
                return {"exists": client.collection_exists(name)}
            case ["GET"]:
                indexed = self._indexed.get(name, {})
                return client.get_collection(name).model_copy(update={"payload_schema": indexed})
            case ["PUT"]:
                made = models.CreateCollection.model_validate_json(body)
                return client.create_collection(name, made.vectors, made.sparse_vectors)
            case ["DELETE"]:
                self._indexed.pop(name, None)
                return client.delete_collection(name)
            case "PUT", "index":
                index = models.CreateFieldIndex.model_validate_json(body)
                info = models.PayloadIndexInfo(data_type=index.field_schema, points=0)
                self._indexed.setdefault(name, {})[index.field_name] = info
                with warnings.catch_warnings(action="ignore"):  # It has no effect in memory.
                    return client.create_payload_index(name, index.field_name, index.field_schema)
            case "PUT", "points":
                return client.upsert(name, models.PointsList.model_validate_json(body).points)
            case "POST", "points/delete":
                return client.delete(name, models.PointIdsList.model_validate_json(body))
            case "POST", "points/count":
                return client.count(name, models.CountRequest.model_validate_json(body).filter)
            case "POST", "points/scroll":
                page = models.ScrollRequest.model_validate_json(body)
                points, following = client.scroll(
                    name, page.filter, page.limit or 10, None, page.offset, page.with_payload
                )
                return {"points": points, "next_page_offset": following}
            case "POST", "points/query":
                asked = models.QueryRequest.model_validate_json(body)
                return client.query_points(
                    name,
                    asked.query,
                    using=asked.using,
                    prefetch=asked.prefetch,
                    query_filter=asked.filter,
                    limit=asked.limit or 10,
                    with_payload=asked.with_payload,
                )
        raise ValueError(f"This stand-in knows no {method} /collections/{name}/{'/'.join(what)}.")
