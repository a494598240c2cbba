"""Tells failures of an object store that pass by themselves from those that stay."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

__all__ = ["pause_after"]

# 409 is S3's answer to two conditional writes at once: it is decided only when they are made again.
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)

_ERRNOS = {
    getattr(errno, name, None)
    for name in (
        *(
            "EAGAIN",
            "EBUSY",
            "ECONNABORTED",
            "ECONNREFUSED",
            "ECONNRESET",
            "EHOSTDOWN",
            "EHOSTUNREACH",
        ),
        *("ENETDOWN", "ENETRESET", "ENETUNREACH", "EPIPE", "EREMOTEIO", "ETIMEDOUT"),
    )
} - {None}

# By name, because a store's library is imported only if the store is used.
_NETWORK = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "azure": ("ServiceRequestError", "ServiceResponseError"),
    "botocore": (
        "ConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseParserError",
    ),
    "gcsfs": ("ChecksumError",),
    "google": ("TransportError",),
    "httpx": ("TransportError",),
    "requests": ("ConnectionError", "Timeout", "ChunkedEncodingError", "ContentDecodingError"),
    "urllib3": ("TimeoutError", "ProtocolError", "NewConnectionError", "IncompleteRead"),
}

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, NotImplementedError)


def pause_after(error: Exception) -> float | None:
    """How many seconds to leave an object store alone after a failure.

    Args:
        error: What the store's library raised.

    Returns:
        The seconds that the store asks for, 0 if it does not say; None if the same call would fail again.
    """
    if isinstance(error, _FINAL):
        return None
    # Also the causes: libraries often translate an answer to an OSError that says less.
    chain = list(_causes(error))
    if not any(map(_passes, chain)):
        return None
    return max(map(_asked_for, chain))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _passes(error: BaseException) -> bool:
    status = _status(error)
    if status in _BUSY or isinstance(error, ConnectionError | TimeoutError | HTTPException):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    # An answer with another status is an answer, whatever the class of the error.
    return status is None and any(map(_is_of_network, type(error).__mro__))


def _is_of_network(kind: type) -> bool:
    return kind.__name__ in _NETWORK.get(kind.__module__.partition(".")[0], ())


def _status(error: BaseException) -> int | None:
    """The HTTP status of the store's answer; None if there was none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        found = [_metadata(response).get("HTTPStatusCode")]
    else:
        names = ("status_code", "status", "code")
        found = [getattr(holder, name, None) for holder in (error, response) for name in names]
    return next((int(str(each)) for each in found if str(each).isdecimal()), None)


def _asked_for(error: BaseException) -> float:
    """The seconds in the answer's Retry-After; 0 if there is none, or none that can be read."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        headers = _metadata(response).get("HTTPHeaders")
    else:
        headers = getattr(response, "headers", None) or getattr(error, "headers", None)
    if not isinstance(headers, Mapping):
        return 0.0
    value = next((str(v) for k, v in headers.items() if str(k).lower() == "retry-after"), "")
    if value.isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _metadata(response: Mapping[str, Any]) -> Mapping[str, Any]:
    found = response.get("ResponseMetadata")
    return found if isinstance(found, Mapping) else {}
