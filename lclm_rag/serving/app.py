"""The application: routes, and what is around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import EventSourceResponse
from starlette.middleware.cors import CORSMiddleware

from lclm_rag import __version__
from lclm_rag.request_bodies import LimitBody
from lclm_rag.serving import chat, documents, errors, health, page
from lclm_rag.serving.access import Access
from lclm_rag.serving.bases import ServedBase, follow
from lclm_rag.serving.guards import InFlight, LimitInFlight, Origins, SecurityHeaders
from lclm_rag.serving.health import Readiness
from lclm_rag.serving.keys import ApiKeys
from lclm_rag.serving.limits import Limits
from lclm_rag.serving.metrics import Metrics
from lclm_rag.serving.observing import ObserveRequests, observe

__all__ = ["create_app"]

_UPLOADS = "/v1/documents"
"""Routes below take large bodies, which they limit themselves."""


def create_app(
    bases: Mapping[str, ServedBase],
    *,
    keys: ApiKeys | None = None,
    writable: bool = False,
    limits: Limits | None = None,
    hosts: Sequence[str] = ("localhost",),
    origins: Sequence[str] = (),
    reranker: str | None = None,
) -> FastAPI:
    """Make the application that serves knowledge bases, for any ASGI server.

    Args:
        bases: The knowledge bases by name, as `open_bases` gives them. The caller closes them.
        keys: The API keys; None lets everybody ask who reaches the service.
        writable: Whether documents may be changed.
        limits: What a client may ask for; default `Limits()`.
        hosts: The names that are answered as Host, without port; "*" for all. Addresses always are.
        origins: Other origins whose pages may ask, such as "https://intranet.example"; "*" for all.
        reranker: The cross-encoder that clients may have hits reranked with, by name or folder.

    Returns:
        The application.
    """
    limits = limits or Limits()
    access = Access(bases, keys, writable)
    count = InFlight()
    metrics = Metrics(bases, lambda: count.now)
    readiness = Readiness(bases, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        following = [asyncio.create_task(follow(base)) for base in bases.values()]
        yield
        readiness.begin_to_close()
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)

    # FastAPI's own pages load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(
        title="lclm-rag", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    errors.install(app)
    app.state.readiness = readiness
    health.install(app, access, metrics, readiness)
    page.install(app)
    # The last one is the outermost.
    app.add_middleware(LimitInFlight, limit=limits.in_flight, count=count)
    app.add_middleware(LimitBody, limit=limits.body, refusal=_too_large, uploads=_UPLOADS)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(Origins, hosts=hosts, origins=origins)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(ObserveRequests, metrics=metrics)

    documents.add_routes(app, access, limits, reranker)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """List the knowledge bases, as models."""
        writable = {"writable": access.may_write(request)}
        bound = access.bound(request) is not None
        data = [base.describe(bound=bound) | writable for base in access.visible(request)]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        """Describe one knowledge base."""
        base, bound = access.base(request, name)
        described = base.describe(bound=bound is not None)
        return described | {"writable": access.may_write(request)}

    @app.post("/v1/chat/completions")
    async def completions(request: Request, body: chat.ChatRequest) -> Response:
        """Answer the last message from a knowledge base."""
        base, bound = access.base(request, body.model)
        request.state.question = question = chat.asked(base, body, limits, bound, reranker)
        observed = partial(observe, request, question)
        if not body.stream:
            answer = await chat.unless_gone(request, chat.ask(question))
            observed(answer)
            return JSONResponse(chat.reply(question, answer))
        request.state.streamed = True
        options = body.stream_options
        stream = chat.events(question, options is not None and options.include_usage, observed)
        # When the server ends, it says itself for how long a stream may go on.
        return EventSourceResponse(stream, sep="\n", shutdown_grace_period=inf)

    return app


def _too_large(message: str) -> Response:
    return errors.error_response(errors.RequestError(413, message))
