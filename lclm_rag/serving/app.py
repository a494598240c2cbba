"""The application: routes, and what is around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import EventSourceResponse

from lclm_rag import __version__
from lclm_rag.serving import chat, errors
from lclm_rag.serving.access import Access
from lclm_rag.serving.bases import ServedBase, follow
from lclm_rag.serving.keys import ApiKeys
from lclm_rag.serving.limits import Limits
from lclm_rag.types import Answer

__all__ = ["create_app"]


def create_app(
    bases: Mapping[str, ServedBase],
    *,
    keys: ApiKeys | None = None,
    writable: bool = False,
    limits: Limits | None = None,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "[::1]"),
    origins: Sequence[str] = (),
) -> FastAPI:
    """Make the application that serves knowledge bases, for any ASGI server.

    Args:
        bases: The knowledge bases by name, as `open_bases` gives them. The caller closes them.
        keys: The API keys; None lets everybody ask who reaches the service.
        writable: Whether documents may be changed.
        limits: What a client may ask for; default `Limits()`.
        hosts: The values of the Host header that are answered, without port; "*" for all.
        origins: Other origins whose pages may ask.

    Returns:
        The application.
    """
    limits = limits or Limits()
    access = Access(bases, keys, writable)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        following = [asyncio.create_task(follow(base)) for base in bases.values()]
        yield
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)

    app = FastAPI(title="lclm-rag", version=__version__, lifespan=lifespan)
    errors.install(app)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """List the knowledge bases, as models."""
        visible = access.visible(request)
        return {"object": "list", "data": [base.describe() for base in visible]}

    @app.get("/v1/models/{name}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        """Describe one knowledge base."""
        return access.base(request, name)[0].describe()

    @app.post("/v1/chat/completions")
    async def completions(request: Request, body: chat.ChatRequest) -> Response:
        """Answer the last message from a knowledge base."""
        base, bound = access.base(request, body.model)
        question = chat.asked(base, body, limits, bound)
        if not body.stream:
            answer = await chat.unless_gone(request, chat.ask(question))
            return JSONResponse(chat.reply(question, answer))
        options = body.stream_options
        done: list[Answer] = []
        stream = chat.events(question, options is not None and options.include_usage, done)
        return EventSourceResponse(stream, sep="\n")

    return app
