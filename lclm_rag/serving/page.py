"""The page at `/`: static files of this package that use the API as any client does."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.responses import Response

from lclm_rag.serving.errors import RequestError

__all__ = ["install"]

_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
"""What is served, by the end of a file's name, and as what."""

# Only files of this service, no scripts or styles in the page itself, and no strings that become markup.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)

_HEADERS = {
    # The browser keeps the files and asks whether they are still the same: a new version is never mixed
    # with an old one.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    packed: bytes
    kind: str
    tag: str


def install(app: FastAPI) -> None:
    """Add the routes of the page. They need no API key: the page asks for one.

    Args:
        app: The application.
    """
    found = _files()

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """Show the page."""
        return _response(request, found["index.html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        """Give a file of the page."""
        if name not in found:
            raise RequestError(404, "The page has no such file.")
        return _response(request, found[name])


def _files() -> dict[str, _File]:
    found = {}
    for entry in files(__package__).joinpath("page").iterdir():
        kind = _KINDS.get(entry.name.rpartition(".")[2])
        if kind is not None:
            content = entry.read_bytes()
            tag = hashlib.sha256(content).hexdigest()[:16]
            found[entry.name] = _File(content, gzip.compress(content, mtime=0), kind, tag)
    return found


def _response(request: Request, file: _File) -> Response:
    packed = "gzip" in request.headers.get("accept-encoding", "")
    # Each encoding has a tag of its own, as they are different bytes.
    tag = f'"{file.tag}-gzip"' if packed else f'"{file.tag}"'
    headers = {**_HEADERS, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(file.packed if packed else file.content, media_type=file.kind, headers=headers)
