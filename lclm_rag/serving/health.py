"""Whether a service is alive and ready, and what it has counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from lclm_rag.decoding import Sampling
from lclm_rag.serving.access import Access
from lclm_rag.serving.bases import ServedBase
from lclm_rag.serving.errors import RequestError
from lclm_rag.serving.guards import is_loopback
from lclm_rag.serving.metrics import Metrics

__all__ = ["Readiness", "install"]

_log = logging.getLogger(__name__)

_VALID = 5.0
"""Seconds for which a check holds."""

_PATIENCE = 10.0
"""Seconds that a check may take."""


class Readiness:
    """Whether every knowledge base can be searched and every decoder answers.

    A check searches each knowledge base for a word, and has each decoder write one token unless it has just
    answered a question. It holds for a few seconds, and those who ask meanwhile share it, so that nobody can
    keep the decoder busy with it.

    Args:
        bases: The knowledge bases.
        metrics: Tells when a decoder last answered.
    """

    def __init__(self, bases: Mapping[str, ServedBase], metrics: Metrics) -> None:
        self._bases, self._metrics = bases, metrics
        self._closing = False
        self._check: asyncio.Task[str] | None = None
        self._checked = 0.0

    def begin_to_close(self) -> None:
        """Be ready no more: what runs is finished, and nothing new should be sent here."""
        self._closing = True

    async def trouble(self) -> str:
        """Why the service is not ready; empty if it is."""
        if self._closing:
            return "The service is shutting down."
        if self._check is None or (
            self._check.done() and time.monotonic() - self._checked > _VALID
        ):
            self._check = asyncio.create_task(self._look())
        # A probe that goes away must not end the check of the others.
        return await asyncio.shield(self._check)

    async def _look(self) -> str:
        trouble = ""
        decoders: set[int] = set()
        for base in self._bases.values():
            try:
                async with asyncio.timeout(_PATIENCE):
                    await asyncio.to_thread(base.kb.retrieve, "ready", 1)
                    just_now = self._metrics.answered_at(base.name) > time.monotonic() - _PATIENCE
                    if id(base.kb.decoder) not in decoders and not just_now:
                        decoders.add(id(base.kb.decoder))
                        await base.kb.aquery("ready", context="none", sampling=Sampling(1))
            except TimeoutError:
                trouble = f"{base.name} did not answer within {_PATIENCE:g} seconds."
            except Exception as error:
                trouble = f"{base.name} does not answer: {error}"
            if trouble:
                _log.warning("Not ready: %s", trouble)
                break
        self._checked = time.monotonic()
        return trouble


def install(app: FastAPI, access: Access, metrics: Metrics, readiness: Readiness) -> None:
    """Add the routes /healthz, /readyz and /metrics.

    Anybody may ask the first two; why a service is not ready is told only where /metrics is: on the machine
    itself, and elsewhere with a key for all knowledge bases. A service without keys tells everybody.

    Args:
        app: The application.
        access: Who may ask what.
        metrics: What is counted.
        readiness: Whether the service is ready.
    """

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz(request: Request) -> JSONResponse:
        """Tell whether questions can be answered."""
        trouble = await readiness.trouble()
        if not trouble:
            return JSONResponse({"status": "ready"})
        body = {"status": "not ready"}
        try:
            _require_insider(access, request)
        except RequestError:
            return JSONResponse(body, 503)
        return JSONResponse(body | {"reason": trouble}, 503)

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        """Show what was counted, in Prometheus's text format."""
        _require_insider(access, request)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _require_insider(access: Access, request: Request) -> None:
    """Raise RequestError unless a request comes from this machine or has a key for all knowledge bases."""
    # What a proxy on this machine passes on comes from elsewhere.
    passed_on = {"forwarded", "x-forwarded-for", "via"} & set(request.headers.keys())
    if request.client is not None and is_loopback(request.client.host) and not passed_on:
        return
    key = access.key(request)
    if key is not None and key.bases is not None:
        raise RequestError(
            403, "This API key is not for all knowledge bases, whose metrics these are."
        )
