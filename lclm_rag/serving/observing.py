"""What is seen of every request: metrics, a line in the log, and for a question a span."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lclm_rag.serving.chat import Asked
from lclm_rag.serving.errors import CLIENT_GONE, body_of
from lclm_rag.serving.log import log_request
from lclm_rag.serving.metrics import Metrics
from lclm_rag.serving.tracing import trace_question
from lclm_rag.types import Answer

__all__ = ["ObserveRequests", "observe"]


def observe(request: HTTPConnection, question: Asked, outcome: Answer | Exception) -> None:
    """See what became of a question: whole and streamed answers all pass here.

    Args:
        request: Its request.
        question: The question.
        outcome: The answer, or the error that ended a stream.
    """
    if isinstance(outcome, Exception):
        request.state.failed = body_of(outcome)[0]
        return
    request.state.answer = outcome
    metrics: Metrics | None = getattr(request.state, "metrics", None)
    if metrics is not None:
        metrics.answered(question.base.name, outcome)


class ObserveRequests:
    """Gives each request an id, and counts and logs it when it ends.

    Routes leave what they know in `request.state`: `base` and `key` (names), `question`, `answer`, `passages`
    and `failed` (the status of an error that came after the response had begun).

    Args:
        app: The application.
        metrics: Counts.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(metrics=self._metrics, id=f"req-{uuid.uuid4().hex}")
        status: int | None = None
        ended = False

        def end(status: int) -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._ended(scope, state, status, time.perf_counter() - started)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = _id(state)
            elif not message.get("more_body") and status is not None:
                # Before it is sent: who has the whole response finds it counted.
                end(state.get("failed", status))
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            end(500)
            raise
        finally:
            end(CLIENT_GONE)  # If the response did not come to its end.

    def _ended(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        now = time.time_ns()
        route = str(getattr(scope.get("route"), "path", "other"))
        base, question = state.get("base"), state.get("question")
        answer: Answer | None = state.get("answer")
        self._metrics.request(scope["method"], route, base or "", status, seconds)
        log_request(
            _id(state),
            scope["method"],
            route,
            status,
            seconds,
            base=base,
            key=state.get("key"),
            streamed=bool(state.get("streamed")),
            passages=state.get("passages"),
            answer=answer,
        )
        if question is not None:
            began = now - int(seconds * 1e9)
            trace_question(question, answer, status, began, now, Headers(scope=scope))


def _id(state: dict[str, Any]) -> str:
    """The id of the answer, if there is to be one: clients and the log then name it alike."""
    question: Asked | None = state.get("question")
    return str(state["id"]) if question is None else question.id
