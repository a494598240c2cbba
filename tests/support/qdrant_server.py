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
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError
from pydantic_core import to_json
from qdrant_client import QdrantClient, models

__all__ = ["Faults", "serve"]


@dataclass
class Faults:
    """One call that fails.

    Attributes:
        at: The number of the call that fails, from 1; 0 for none.
        kind: "429" and "503" refuse it; "time-out" carries it out and answers too late; "dropped" carries it
            out and closes the connection without an answer.
        late: How many seconds a time-out takes.
        calls: The calls that were made, as method and path.
        sizes: The bytes of each call's body.
    """

    at: int = 0
    kind: str = "503"
    late: float = 1.5
    calls: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def next(self, call: str, size: int) -> str | None:
        """Note a call; what is to go wrong with it, if anything."""
        self.calls.append(call)
        self.sizes.append(size)
        return self.kind if len(self.calls) == self.at else None


@contextmanager
def serve(faults: Faults | None = None) -> Iterator[str]:
    """The URL of a server that runs in a thread of this process, with no collections.

    Args:
        faults: Which call fails; by default none.
    """
    collections = _Collections()
    failing = faults or Faults()
    one_by_one = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with one_by_one:
                wrong = failing.next(f"{self.command} {self.path}", len(body))
                if wrong in ("429", "503"):
                    code, content = int(wrong), b'{"status": {"error": "too busy"}}'
                else:
                    code, content = self.carry_out(body)
            if wrong == "time-out":
                time.sleep(failing.late)
            if wrong in ("time-out", "dropped"):
                self.close_connection = True
                return
            self.send_response(code)
            if wrong == "429":
                self.send_header("Retry-After", "1")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def carry_out(self, body: bytes) -> tuple[int, bytes]:
            code, answer = 200, dict[str, Any](status="ok", time=0.0)
            try:
                _, first, *rest = urlsplit(self.path).path.split("/", 3)
                if (first, rest) in (("aliases", []), ("collections", ["aliases"])):
                    answer["result"] = collections.do_aliases(self.command, body)
                else:
                    name, *what = rest
                    answer["result"] = collections.do(self.command, what, unquote(name), body)
            except ValueError as error:
                # In memory, that a collection is not there is a ValueError and no more.
                code = 400 if isinstance(error, ValidationError) else 404
                code = 409 if "already exists" in str(error) else code
                answer["status"] = {"error": str(error)}
            return code, to_json(answer)

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Collections:
    def __init__(self) -> None:
        self._client = QdrantClient(":memory:")
        self._indexed: dict[str, dict[str, models.PayloadIndexInfo]] = {}

    def _own_name(self, name: str) -> str:
        """The name of the collection for which a name stands."""
        aliases = self._client.get_aliases().aliases
        return {alias.alias_name: alias.collection_name for alias in aliases}.get(name, name)

    def do_aliases(self, method: str, body: bytes) -> Any:
        """The `result` of a request about aliases."""
        if method == "GET":
            return self._client.get_aliases()
        changes = models.ChangeAliasesOperation.model_validate_json(body)
        return self._client.update_collection_aliases(changes.actions)

    def do(self, method: str, what: list[str], name: str, body: bytes) -> Any:
        """The `result` of a request. Raises ValueError for a body, a name or a path that is not known."""
        client = self._client
        match method, *what:
            case "GET", "exists":
                return {"exists": client.collection_exists(name)}
            case ["GET"]:
                indexed = self._indexed.get(self._own_name(name), {})
                return client.get_collection(name).model_copy(update={"payload_schema": indexed})
            case ["PUT"]:
                made = models.CreateCollection.model_validate_json(body)
                return client.create_collection(name, made.vectors, made.sparse_vectors)
            case ["PATCH"]:
                changed = models.UpdateCollection.model_validate_json(body)
                return client.update_collection(name, metadata=changed.metadata)
            case ["DELETE"]:
                self._indexed.pop(name, None)
                return client.delete_collection(name)
            case "PUT", "index":
                index = models.CreateFieldIndex.model_validate_json(body)
                info = models.PayloadIndexInfo(data_type=index.field_schema, points=0)
                self._indexed.setdefault(self._own_name(name), {})[index.field_name] = info
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
            case "POST", "points":
                wanted = models.PointRequest.model_validate_json(body)
                return client.retrieve(
                    name, wanted.ids, wanted.with_payload, wanted.with_vector or False
                )
            case "POST", "points/query/batch":
                batch = models.QueryRequestBatch.model_validate_json(body)
                return client.query_batch_points(name, batch.searches)
        raise ValueError(f"This stand-in knows no {method} /collections/{name}/{'/'.join(what)}.")
