"""What stands before the routes: which hosts and origins are answered, how large and how many requests."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lclm_rag.serving.errors import RequestError, error_response

__all__ = ["InFlight", "LimitInFlight", "Origins", "SecurityHeaders", "is_loopback"]

_QUESTIONS = {"/v1/chat/completions", "/v1/search"}
"""Routes whose requests keep the decoder or the passage index busy."""


class Origins:
    """Answers only for its own names, and only to its own and allowed pages.

    The first is against DNS rebinding: a page whose name is made to resolve to this machine is same-origin
    for a browser, but sends its own name as Host. An address as Host is safe, because nobody can rebind it.
    The second is against pages elsewhere that send a browser here.

    Args:
        app: The application.
        hosts: The names that are answered, without port; "*" for all.
        origins: Other origins whose pages may ask; "*" for all.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refusal = self._refusal(headers.get("host", ""), headers.get("origin"))
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, host: str, origin: str | None) -> RequestError | None:
        if not self._answers(host):
            return RequestError(
                421, "This Host is not answered here; lclm-rag serve --allow-host NAME allows one."
            )
        if origin is None or {"*", origin.lower()} & self._origins or _same(origin, host):
            return None
        return RequestError(
            403, "Pages of this Origin may not ask here; lclm-rag serve --cors ORIGIN allows one."
        )

    def _answers(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if "*" in self._hosts or name in self._hosts or f"[{name}]" in self._hosts:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _same(origin: str, host: str) -> bool:
    """Whether an origin is this service itself, as the browser reached it."""
    scheme, _, place = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return default is not None and place.removesuffix(default) == host.lower().removesuffix(default)


class LimitInFlight:
    """Lets only so many questions be worked on or wait at the same time.

    Args:
        app: The application.
        limit: How many.
        count: Holds how many there are.
    """

    def __init__(self, app: ASGIApp, limit: int, count: InFlight) -> None:
        self._app, self._limit, self._count = app, limit, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        asks = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _QUESTIONS
        if not asks:
            await self._app(scope, receive, send)
            return
        if self._count.now >= self._limit:
            error = RequestError(
                429,
                f"{self._count.now:,} questions are being answered; ask again in a second.",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
            await error_response(error)(scope, receive, send)
            return
        self._count.now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._count.now -= 1


class InFlight:
    """How many questions are worked on or wait.

    Attributes:
        now: The number.
    """

    def __init__(self) -> None:
        self.now = 0


class SecurityHeaders:
    """Tells browsers not to guess types, and everybody not to keep answers.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if _below(scope["path"], "/v1"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)


def _below(path: str, route: str) -> bool:
    return path == route or path.startswith(f"{route}/")


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this machine as only it can reach itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
