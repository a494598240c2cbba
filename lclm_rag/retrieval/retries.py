"""Calls to a Qdrant server, made again when it is busy, restarting or does not answer in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from grpc import RpcError, StatusCode  # type: ignore[import-untyped]
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from lclm_rag import retries

__all__ = ["with_retries"]

_BUSY = (408, 429, 500, 502, 503, 504)
_BUSY_GRPC = (
    StatusCode.ABORTED,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.INTERNAL,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.UNAVAILABLE,
)

T = TypeVar("T")


def with_retries(call: Callable[[], T]) -> T:
    """Make a call, and make it again if the server may answer later.

    That is so if it says that it has too much to do (429, 503), fails inside (500, 502, 504), does not answer
    in time, or drops the connection. See `lclm_rag.retries.with_retries`.

    Args:
        call: Makes the call. It may have been carried out although it failed, so it must do no harm twice.

    Returns:
        What the call returned.
    """
    return retries.with_retries(call, _pause, "Qdrant")


def _pause(error: Exception) -> float | None:
    if isinstance(error, ResourceExhaustedResponse):
        return float(error.retry_after_s)
    if isinstance(error, RpcError):
        return 0.0 if error.code() in _BUSY_GRPC else None
    if isinstance(error, UnexpectedResponse):
        return 0.0 if error.status_code in _BUSY else None
    # Of what the client itself reports, all but an answer that it cannot read comes from the network.
    if isinstance(error, ResponseHandlingException):
        return None if isinstance(error.source, ValidationError) else 0.0
    return None
