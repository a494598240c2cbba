"""Bodies of HTTP requests, read before a route is called."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LimitBody"]


class LimitBody:
    """Reads the body of a request before the route is called, and refuses a large one.

    A client that sends its body slowly so keeps nothing busy, and one that leaves midway leaves no trace.

    Args:
        app: The application.
        limit: Bytes.
        refusal: Makes the response to a large request, from the sentence that says so.
        uploads: Requests to this path and below go by unread.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        refusal: Callable[[str], ASGIApp],
        uploads: str | None = None,
    ) -> None:
        self._app, self._limit, self._refusal, self._uploads = app, limit, refusal, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or self._is_upload(scope["path"]):
            await self._app(scope, receive, send)
            return
        refuse = self._refusal(f"The request is larger than {self._limit:,} bytes.")
        announced = Headers(scope=scope).get("content-length", "0")
        # Python converts no number of thousands of digits.
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self._limit):
            await refuse(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                await refuse(scope, receive, send)
                return
        given = False

        async def read() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, read, send)

    def _is_upload(self, path: str) -> bool:
        within = self._uploads
        return within is not None and (path == within or path.startswith(f"{within}/"))
