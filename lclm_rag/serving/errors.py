"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from lclm_rag.errors import (
    ClientGone,
    ContextLengthError,
    DecoderError,
    LclmRagError,
    PromptError,
    RequestError,
)

__all__ = ["CLIENT_GONE", "ClientGone", "RequestError", "body_of", "error_response", "install"]

CLIENT_GONE = 499
"""The status of a request whose client went away; nginx has it, and nobody sees it but the log."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def body_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body that tell a client of an error. Nothing else of the server is told.

    Args:
        error: The error.

    Returns:
        The HTTP status and the body.
    """
    code = param = None
    if isinstance(error, RequestError):
        status, message, code, param = error.status, str(error), error.code, error.param
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        status, message = 400, f"{param or 'The body'}: {first['msg']}."
    elif isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
    elif isinstance(error, ContextLengthError):
        status, message, code = 400, str(error), "context_length_exceeded"
    elif isinstance(error, PromptError | ValueError):
        status, message = 400, str(error)
    elif isinstance(error, DecoderError):
        status, message = 503, "The decoder failed; see the service's log, and ask again."
    elif isinstance(error, LclmRagError | OSError):
        status, message = 500, "The knowledge base could not be read; see the service's log."
    else:
        status, message = 500, "The service failed; see its log."
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: Exception) -> JSONResponse:
    """The response that tells a client of an error."""
    status, body = body_of(error)
    headers = error.headers if isinstance(error, RequestError) else None
    return JSONResponse(body, status, headers)


def install(app: Any) -> None:
    """Have an application answer all errors so."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    kinds = (RequestError, RequestValidationError, HTTPException, LclmRagError, ValueError, OSError)
    for kind in kinds:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer)

    async def end(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ClientGone, end)
