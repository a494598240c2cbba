"""An MCP server over one KnowledgeBase: the tools `search`, `ask`, `expand` and `fields`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as error:
    raise ImportError(
        "lclm_rag.connectors.mcp needs MCP's Python SDK: pip install 'lclm-rag[mcp]'."
    ) from error
from pydantic import Field
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from lclm_rag import __version__
from lclm_rag.decoding import Sampling
from lclm_rag.errors import (
    DecoderError,
    LclmRagError,
    NoPassagesError,
    PromptError,
)
from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.request_bodies import LimitBody
from lclm_rag.retrieval import And, parse_filter
from lclm_rag.types import DEFAULT_TOP_K, Hit, PassageKey

__all__ = ["mcp_server", "serve_http"]

_log = logging.getLogger(__name__)

EXCERPT = 300  # characters

# What a client may ask for at most. More is refused, never cut.
BODY = 2**20  # bytes of a request over HTTP
QUESTION = 32_000  # characters
TOP_K = 64
NEIGHBOURS = 256  # passages before and after one that is read verbatim
CONDITIONS = 32
CONDITION = 2_000  # characters
ID = 4_096  # characters

# Bounds appear in the schema only; `_check` refuses with a sentence in place of pydantic's list.
Text = Annotated[str, Field(json_schema_extra={"maxLength": QUESTION})]
TopK = Annotated[
    int,
    Field(description="Passages to retrieve.", json_schema_extra={"minimum": 1, "maximum": TOP_K}),
]
Id = Annotated[str, Field(json_schema_extra={"maxLength": ID})]
Ordinal = Annotated[int, Field(json_schema_extra={"minimum": 0})]
Count = Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": NEIGHBOURS})]
Filters = Annotated[
    list[str],
    Field(
        description="Conditions on metadata that must all hold: lang=en, lang=en,de (one of these), "
        'lang!=en, year>=2020. A value in quotes is a string: year="2020".',
        json_schema_extra={"maxItems": CONDITIONS},
    ),
]


class Place(TypedDict):
    """A passage: its document, its number in it (from 0), and its characters [start, end) in it."""

    document_id: str
    ordinal: int
    start: int
    end: int
    score: float
    metadata: dict[str, Any]


class FoundPassage(Place):
    text: str


class Hits(TypedDict):
    passages: Annotated[list[FoundPassage], Field(description="Best first.")]


class Source(Place):
    excerpt: Annotated[str, Field(description=f"At most {EXCERPT} characters; see `expand`.")]


class Answered(TypedDict):
    answer: Annotated[str, Field(description="Empty if nothing was found; see `reason`.")]
    reason: Annotated[str, Field(description="Why nothing was found; empty if something was.")]
    complete: Annotated[bool, Field(description="False if the answer was cut for its length.")]
    sources: Annotated[list[Source], Field(description="What the answer rests on, best first.")]
    left_out: Annotated[list[str], Field(description="Passages that the prompt had no room for.")]
    not_in_sources: Annotated[
        list[str],
        Field(
            description="Numbers, codes and quotes in the answer that no source has: check them."
        ),
    ]
    usage: dict[str, int | None]


class FieldOfMetadata(TypedDict):
    name: str
    kinds: Annotated[list[str], Field(description="The kinds of its values.")]
    documents: Annotated[int, Field(description="How many documents have it.")]


class Fields(TypedDict):
    fields: list[FieldOfMetadata]


class Expanded(TypedDict):
    document_id: str
    first_ordinal: int
    last_ordinal: int
    start: int
    end: int
    text: str


def mcp_server(
    knowledge_base: KnowledgeBase, *, top_k: int = DEFAULT_TOP_K, sampling: Sampling | None = None
) -> MCPServer[Any]:
    """Make an MCP server that is ready to run: `mcp_server(kb).run("stdio")`.

    Args:
        knowledge_base: The knowledge base; it stays open as long as the server runs.
        top_k: How many passages to retrieve if a client does not say.
        sampling: How answers are decoded; None for the default.

    Returns:
        The server with the tools `search`, `ask`, `expand` and `fields`.

    Raises:
        ValueError: When `top_k` is above what a client may ask for.
    """
    if top_k > TOP_K:
        raise ValueError(f"top_k must be at most {TOP_K} over MCP, not {top_k:,}.")
    default_top_k, kb = top_k, knowledge_base
    server: MCPServer[Any] = MCPServer(
        "lclm-rag",
        version=__version__,
        instructions="A knowledge base of documents. `ask` answers a question from it and names its "
        "sources; `search` gives the passages themselves; `expand` gives a passage verbatim, with "
        "what stands before and after it; `fields` lists the metadata that `filters` can name.",
        log_level="WARNING",
    )
    reading = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

    @server.tool(annotations=reading)
    async def search(query: Text, top_k: TopK = default_top_k, filters: Filters = []) -> Hits:  # noqa: B006
        """Find the passages of the knowledge base that fit a query best, with their whole text."""
        with _errors_to_client():
            _check(query=query, top_k=top_k, filters=filters)
            hits = await asyncio.to_thread(kb.retrieve, query, top_k, _all(filters))
            # A misspelt metadata key must not look like a subject without passages.
            if not hits and (sentences := kb.reader.unmatchable(_all(filters))):
                raise ToolError(" ".join(sentences))
        return {"passages": [{**_place(hit), "text": hit.text} for hit in hits]}

    @server.tool(annotations=reading)
    async def ask(question: Text, top_k: TopK = default_top_k, filters: Filters = []) -> Answered:  # noqa: B006
        """Answer a question from the knowledge base, and name the passages that the answer rests on."""
        with _errors_to_client():
            _check(question=question, top_k=top_k, filters=filters)
            answer = await kb.aquery(question, top_k, _all(filters), sampling=sampling)
        return {
            "answer": answer.text,
            "reason": answer.reason,
            "complete": answer.complete,
            "sources": [{**_place(hit), "excerpt": hit.text[:EXCERPT]} for hit in answer.sources],
            "left_out": [str(key) for key in answer.left_out],
            "not_in_sources": list(answer.grounding.missing),
            "usage": asdict(answer.usage),
        }

    @server.tool(annotations=reading)
    async def expand(
        document_id: Id, ordinal: Ordinal, before: Count = 0, after: Count = 0
    ) -> Expanded:
        """Read a passage verbatim, as one text with the given numbers of passages before and after it."""
        with _errors_to_client():
            _check(document_id=document_id, before=before, after=after)
            key = PassageKey(document_id, ordinal)
            # The knowledge base's own error names its folder.
            if key not in kb.store:
                raise ToolError(f"There is no passage {key}.")
            passages = await asyncio.to_thread(kb.read_passages, key, before, after)
        first, last = passages[0], passages[-1]
        return {
            "document_id": document_id,
            "first_ordinal": first.key.ordinal,
            "last_ordinal": last.key.ordinal,
            "start": first.start,
            "end": last.end,
            "text": "".join(passage.text for passage in passages),
        }

    @server.tool(annotations=reading)
    async def fields() -> Fields:
        """List the metadata keys that `filters` can name."""
        with _errors_to_client():
            found = await asyncio.to_thread(kb.metadata_fields)
        return {
            "fields": [
                {"name": each.name, "kinds": list(each.kinds), "documents": each.documents}
                for each in found
            ]
        }

    return server


def serve_http(server: MCPServer[Any], port: int) -> None:
    """Serve at http://127.0.0.1:PORT/mcp, for this machine only.

    Requests reach the server whole: large ones are refused, and one dropped by its client costs nothing.

    Args:
        server: The server, as `mcp_server` makes it.
        port: The port.

    Raises:
        SystemExit: When the port is taken; the reason has been printed then.
    """
    import uvicorn

    app = server.streamable_http_app(host="127.0.0.1")
    limited = LimitBody(app, BODY, _too_large)
    uvicorn.run(limited, host="127.0.0.1", port=port, log_level="warning")


def _too_large(message: str) -> JSONResponse:
    error = {"code": -32600, "message": message}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, 413)


def _check(
    *,
    top_k: int = 1,
    filters: Sequence[str] = (),
    before: int = 0,
    after: int = 0,
    **texts: str,
) -> None:
    """Refuse what is out of bounds, before any work."""
    if before < 0 or after < 0:
        raise ToolError("before and after count passages; they cannot be negative.")
    numbers = {
        "top_k": (top_k, TOP_K),
        "before": (before, NEIGHBOURS),
        "after": (after, NEIGHBOURS),
    }
    for name, (number, most) in numbers.items():
        if number > most:
            raise ToolError(f"{name} must be at most {most}.")
    for name, text in texts.items():
        most = ID if name == "document_id" else QUESTION
        if len(text) > most:
            raise ToolError(
                f"{name} has {len(text):,} characters; at most {most:,} are allowed. Shorten it."
            )
    if len(filters) > CONDITIONS or any(len(each) > CONDITION for each in filters):
        raise ToolError(
            f"filters may hold at most {CONDITIONS} conditions of at most {CONDITION:,} characters."
        )


@contextmanager
def _errors_to_client() -> Iterator[None]:
    """Tell the client what it did wrong, and of other errors only that they are in the log.

    Their messages name folders and addresses that are no client's business.
    """
    try:
        yield
    except ToolError:
        raise
    except (PromptError, NoPassagesError, ValueError) as error:
        raise ToolError(str(error)) from error
    except Exception as error:
        known = isinstance(error, LclmRagError | OSError | ImportError)
        _log.error("A client's request failed: %s", error, exc_info=None if known else error)
        failed = "The decoder failed" if isinstance(error, DecoderError) else "This failed"
        raise ToolError(f"{failed}; the server's log says why.") from error


def _all(expressions: list[str]) -> And | None:
    return And(tuple(parse_filter(text) for text in expressions)) if expressions else None


def _place(hit: Hit) -> Place:
    return {
        "document_id": hit.key.document_id,
        "ordinal": hit.key.ordinal,
        "start": hit.start,
        "end": hit.end,
        "score": hit.score,
        "metadata": dict(hit.metadata),
    }
