"""An MCP server over one KnowledgeBase: the tools `search`, `ask`, `expand` and `fields`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Any

try:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import CallToolResult, InputRequiredResult, Tool, ToolAnnotations
except ImportError as error:
    raise ImportError(
        "lclm_rag.connectors.mcp needs MCP's Python SDK: pip install 'lclm-rag[mcp]'."
    ) from error
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from lclm_rag import __version__
from lclm_rag.checks import check_whole
from lclm_rag.decoding import Sampling, all_answered
from lclm_rag.errors import (
    DecoderError,
    LclmRagError,
    NoPassagesError,
    PromptError,
)
from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.querying.rounds import step
from lclm_rag.request_bodies import LimitBody
from lclm_rag.retrieval import And, parse_filter
from lclm_rag.types import DEFAULT_TOP_K, Answer, Hit, PassageKey

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

_SHOWN = 40
"""Metadata keys that the instructions list."""

_WRONG = 5
"""Wrong arguments that are named."""

_NAME = 60
"""Characters of an unknown argument's name that are given back."""

_BEAT = 2.0
"""Seconds between two reports of an answer's progress: most clients give up after 60 without one."""

# Bounds appear in the schema only; `_check` refuses with a sentence in place of pydantic's list.
Query = Annotated[
    str,
    Field(
        title="Query",
        description="What to look for: a question, or words that the passages have.",
        json_schema_extra={"maxLength": QUESTION},
    ),
]
Question = Annotated[
    str,
    Field(
        title="Question",
        description="The question, complete in itself: earlier ones are not known.",
        json_schema_extra={"maxLength": QUESTION},
    ),
]
TopK = Annotated[
    int,
    Field(
        title="Passages",
        description="How many passages to retrieve.",
        json_schema_extra={"minimum": 1, "maximum": TOP_K},
    ),
]
Id = Annotated[
    str,
    Field(
        title="Document id",
        description="The document, by its `document_id` in a result of `search` or `ask`.",
        json_schema_extra={"maxLength": ID},
    ),
]
Ordinal = Annotated[
    int,
    Field(
        title="Passage",
        description="The passage's number in the document, from 0: its `ordinal` in a result.",
        json_schema_extra={"minimum": 0},
    ),
]
Before = Annotated[
    int,
    Field(
        title="Passages before",
        description="How many passages before it to read, too.",
        json_schema_extra={"minimum": 0, "maximum": NEIGHBOURS},
    ),
]
After = Annotated[
    int,
    Field(
        title="Passages after",
        description="How many passages after it to read, too.",
        json_schema_extra={"minimum": 0, "maximum": NEIGHBOURS},
    ),
]
Filters = Annotated[
    list[str],
    Field(
        title="Filters",
        description="Conditions on metadata that must all hold: lang=en, lang=en,de (one of these), "
        'lang!=en, year>=2020. A value in quotes is a string: year="2020". `fields` lists the keys.',
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
    knowledge_base: KnowledgeBase,
    *,
    name: str | None = None,
    description: str = "",
    top_k: int = DEFAULT_TOP_K,
    sampling: Sampling | None = None,
) -> MCPServer[Any]:
    """Make an MCP server that is ready to run: `mcp_server(kb).run("stdio")`.

    It moves to new versions of the knowledge base as other processes commit them, unless the knowledge base
    is open at an earlier version.

    Args:
        knowledge_base: The knowledge base; it stays open as long as the server runs.
        name: What clients call the server. Default: the name of the knowledge base's folder.
        description: What the documents are, in a sentence, for agents that choose among several servers.
        top_k: How many passages to retrieve if a client does not say.
        sampling: How answers are decoded; None for the default.

    Returns:
        The server with the tools `search`, `ask`, `expand` and `fields`.

    Raises:
        ValueError: When the name is empty, or `top_k` is below 1 or above what a client may ask for.
    """
    check_whole(top_k, "top_k over MCP", 1, TOP_K)
    if name is not None and not name.strip():
        raise ValueError(
            "The name of an MCP server cannot be empty; leave it out for the folder's."
        )
    default_top_k, kb = top_k, knowledge_base
    name = name or kb.name
    about = description.strip()
    # Agents are often shown the tools of several servers in one list, and no instructions.
    whose = f" Of {name}: {about}" if about else f" Of the knowledge base {name}."

    async def at_newest(ctx: ServerRequestContext[Any], call_next: CallNext) -> HandlerResult:
        """Answer from the newest version; the first message of a client gets what is in it."""
        if ctx.method == "tools/call":
            await asyncio.to_thread(_follow, kb)
        result = await call_next(ctx)
        if ctx.method in ("initialize", "server/discover"):
            await asyncio.to_thread(_follow, kb)
            instructions = await asyncio.to_thread(_instructions, kb, name, about)
            if isinstance(result, BaseModel):
                return result.model_copy(update={"instructions": instructions})
            return {**(result or {}), "instructions": instructions}
        return result

    server = _Server(
        name,
        title=name,
        description=about or None,
        version=__version__,
        log_level="WARNING",
        middleware=[at_newest],
    )
    reading = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

    def tool(title: str, does: str) -> Callable[[Any], Any]:
        return server.tool(title=title, description=does + whose, annotations=reading)

    @tool("Search", "Find the passages that fit a query best, with their whole text.")
    async def search(query: Query, top_k: TopK = default_top_k, filters: Filters = []) -> Hits:  # noqa: B006
        with _errors_to_client():
            _check(query=query, top_k=top_k, filters=filters)
            hits = await asyncio.to_thread(kb.retrieve, query, top_k, _all(filters))
            # A misspelt metadata key must not look like a subject without passages.
            if not hits and (sentences := kb.reader.unmatchable(_all(filters))):
                raise ToolError(" ".join(sentences))
        return {"passages": [{**_place(hit), "text": hit.text} for hit in hits]}

    @tool("Ask", "Answer a question, and name the passages that the answer rests on.")
    async def ask(
        question: Question,
        context: Context[Any, Any],
        top_k: TopK = default_top_k,
        filters: Filters = [],  # noqa: B006
    ) -> Answered:
        with _errors_to_client():
            _check(question=question, top_k=top_k, filters=filters)
            async with _progress(context) as now:
                answer = await _answer(kb, question, top_k, _all(filters), sampling, now)
        return {
            "answer": answer.text,
            "reason": answer.reason,
            "complete": answer.complete,
            "sources": [{**_place(hit), "excerpt": hit.text[:EXCERPT]} for hit in answer.sources],
            "left_out": [str(key) for key in answer.left_out],
            "not_in_sources": list(answer.grounding.missing),
            "usage": asdict(answer.usage),
        }

    @tool("Expand", "Read a passage verbatim, as one text with passages before and after it.")
    async def expand(
        document_id: Id, ordinal: Ordinal, before: Before = 0, after: After = 0
    ) -> Expanded:
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

    @tool("Metadata fields", "List the metadata keys that `filters` can name.")
    async def fields() -> Fields:
        with _errors_to_client():
            found = await asyncio.to_thread(kb.metadata_fields)
        return {
            "fields": [
                {"name": each.name, "kinds": list(each.kinds), "documents": each.documents}
                for each in found
            ]
        }

    return server


class _Server(MCPServer[Any]):
    """MCP's server, which ignores arguments that a tool does not have: here they are refused."""

    async def list_tools(self) -> list[Tool]:
        """The tools; their schemas say that there are no other arguments."""
        tools = await super().list_tools()
        for tool in tools:
            tool.input_schema["additionalProperties"] = False
        return tools

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool, and say in one sentence what is wrong with its arguments."""
        known = {
            tool.name: list(tool.input_schema["properties"]) for tool in await self.list_tools()
        }
        if name in known and (alien := [each for each in arguments if each not in known[name]]):
            takes = f"takes {', '.join(known[name])}" if known[name] else "takes no arguments"
            raise ToolError(
                f"{name} has no argument {', '.join(map(_short, alien[:_WRONG]))}; it {takes}."
            )
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
            wrong = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
                for each in error.__cause__.errors()[:_WRONG]
            )
            raise ToolError(f"{name}: {wrong}.") from error


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


def _follow(kb: KnowledgeBase) -> None:
    try:
        kb.follow()
    except (LclmRagError, OSError) as error:
        # The version before goes on being served; the next look may succeed. Closed, it is at its end.
        if not kb.reader.closed:
            _log.warning("The server stays at version %d: %s", kb.store.version, error)


def _instructions(kb: KnowledgeBase, name: str, about: str) -> str:
    """What an agent is told of the server: what the documents are, and how to get at them."""
    totals = kb.store.manifest.totals
    what = about or "A knowledge base of documents."
    if not what.endswith((".", "!", "?")):
        what += "."
    try:
        found = sorted(kb.index.fields().items())
    except (LclmRagError, OSError) as error:
        _log.warning("The metadata of the documents are not known: %s", error)
        found = []
    keys = [f"{key} ({' or '.join(sorted(kinds))})" for key, kinds in found[:_SHOWN]]
    if len(found) > _SHOWN:
        keys.append(f"{len(found) - _SHOWN:,} more")
    filters = (
        f"`filters` can name {', '.join(keys)}" if keys else "There are no metadata to filter by"
    )
    return (
        f"{name}: {what} {totals.documents:,} documents, {totals.passages:,} passages. `ask` answers a "
        "question from them and names its sources; `search` gives the passages themselves; `expand` gives a "
        f"passage verbatim, with what stands before and after it. {filters}; `fields` lists the metadata "
        "with the number of documents that have them."
    )


@asynccontextmanager
async def _progress(context: Context[Any, Any]) -> AsyncIterator[Callable[[str], None]]:
    """Report what is being done to a client that wants to know: at once, and every few seconds again.

    Yields:
        A function that is told what is being done now.
    """
    started, doing, changed = time.monotonic(), "Searching", asyncio.Event()

    def now(what: str) -> None:
        nonlocal doing
        doing = what
        changed.set()

    async def report() -> None:
        last = -1.0
        while True:
            # Progress must grow from report to report, and no one knows how much is to come: the seconds.
            last = max(time.monotonic() - started, last + 1e-3)
            await context.report_progress(last, message=doing)
            # Not wait_for: before Python 3.12 it may swallow the cancellation at the end.
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEAT):
                    await changed.wait()
            changed.clear()

    reporting = asyncio.create_task(report())
    try:
        yield now
    finally:
        reporting.cancel()
        # A client that is gone hears of no progress, and its request is cancelled anyway.
        await asyncio.gather(reporting, return_exceptions=True)


async def _answer(
    kb: KnowledgeBase,
    question: str,
    top_k: int,
    filters: And | None,
    sampling: Sampling | None,
    now: Callable[[str], None],
) -> Answer:
    """Answer as `KnowledgeBase.aquery` does, and tell `now` what is being done."""
    how = sampling or Sampling()
    rounds = kb.rounds(question, top_k, filters, sampling=how)
    now("Loading the decoder")
    decoder = await asyncio.to_thread(lambda: kb.decoder)
    now("Searching")
    next_ = await asyncio.to_thread(step, rounds, None)
    while not isinstance(next_, Answer):
        now("Answering")
        (completion,) = all_answered(await decoder.acomplete([next_], how))
        now("Checking the answer against its sources")
        next_ = await asyncio.to_thread(step, rounds, completion)
    return next_


def _short(name: str) -> str:
    return repr(name if len(name) <= _NAME else f"{name[:_NAME]}…")


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
