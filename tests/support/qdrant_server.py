"""A stand-in for a Qdrant server, so that several processes can share one collection in a test.

It speaks the part of Qdrant's REST API that `lclm_rag.retrieval.server` uses. Requests are read with
qdrant-client's own models, which refuse what they do not know, and carried out by qdrant-client in memory. So
tests over it show that our requests are well formed, that answers are read rightly, and what processes see of
each other. They do not show what a real server does with the same requests: it has another engine, with a
log, optimizers, payload indexes and limits; here requests come one after another, nothing lasts, options of a
collection have no effect, and most of the API is missing. For that, run tests/retrieval with QDRANT_URL set.
"""

from __future__ import annotations

import json
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
        conditions: The paths in the filters of calls.
    """

    at: int = 0
    kind: str = "503"
    late: float = 1.5
    calls: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    conditions: set[str] = field(default_factory=set)

    def next(self, call: str, size: int) -> str | None:
        """Note a call; what is to go wrong with it, if anything."""
        self.calls.append(call)
        self.sizes.append(size)
        return self.kind if len(self.calls) == self.at else None


@contextmanager
def serve(faults: Faults | None = None, key: str | None = None) -> Iterator[str]:
    """The URL of a server that runs in a thread of this process, with no collections.

    Args:
        faults: Which call fails; by default none.
        key: The key that calls must have; None for no key.
    """
    collections = _Collections()
    failing = faults or Faults()
    one_by_one = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with one_by_one:
                failing.conditions.update(_paths(body))
                wrong = failing.next(f"{self.command} {self.path}", len(body))
                if wrong in ("429", "503"):
                    code, content = int(wrong), b'{"status": {"error": "too busy"}}'
                elif key is not None and self.headers.get("api-key") != key:
                    code, content = 401, b"Must provide an API key or an Authorization bearer token"
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
        self._made: dict[str, models.CreateCollection] = {}

    def _own_name(self, name: str) -> str:
        """The name of the collection for which a name stands."""
        aliases = self._client.get_aliases().aliases
        return {alias.alias_name: alias.collection_name for alias in aliases}.get(name, name)

    def _as_made(self, info: models.CollectionInfo, name: str) -> models.CollectionInfo:
        """A collection's facts with what it was made with, of which there is nothing in memory."""
        made = self._made[name]
        config = info.config
        names = (
            "shard_number",
            "replication_factor",
            "write_consistency_factor",
            "on_disk_payload",
        )
        params = {n: value for n in names if (value := getattr(made, n)) is not None}
        rest = {"quantization_config": made.quantization_config}
        rest["strict_mode_config"] = made.strict_mode_config
        of_params = config.params.model_copy(update=params)
        return info.model_copy(
            update={"config": config.model_copy(update={"params": of_params, **rest})}
        )

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
                info = self._as_made(client.get_collection(name), self._own_name(name))
                return info.model_copy(update={"payload_schema": indexed})
            case ["PUT"]:
                made = models.CreateCollection.model_validate_json(body)
                self._made[name] = made
                return client.create_collection(name, made.vectors, made.sparse_vectors)
            case ["PATCH"]:
                changed = models.UpdateCollection.model_validate_json(body)
                return client.update_collection(name, metadata=changed.metadata)
            case ["DELETE"]:
                self._indexed.pop(name, None)
                return client.delete_collection(name)
            case "PUT", "index":
                index = models.CreateFieldIndex.model_validate_json(body)
                data = index.field_schema
                on_disk = not isinstance(data, models.PayloadSchemaType)
                kind = models.PayloadSchemaType(data.type.value) if on_disk else data
                info = models.PayloadIndexInfo(
                    data_type=kind, params=data if on_disk else None, points=0
                )
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


def _paths(body: bytes) -> set[str]:
    """The paths that the conditions in a body name: what has a "key" that is a string."""
    found: set[str] = set()

    def walk(part: Any) -> None:
        if isinstance(part, list):
            for each in part:
                walk(each)
        elif isinstance(part, dict):
            found.update(
                value for name, value in part.items() if name == "key" and isinstance(value, str)
            )
            for name, each in part.items():
                if name != "payload":
                    walk(each)

    walk(json.loads(body or b"null"))
    return found
