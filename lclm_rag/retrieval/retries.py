"""Calls to a Qdrant server, made again when it is busy, restarting or does not answer in time."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

__all__ = ["with_retries"]

_TRIES = 6
_FIRST = 0.5  # seconds; twice as long before each further try
_BUSY = (408, 429, 500, 502, 503, 504)

_log = logging.getLogger(__name__)

T = TypeVar("T")


def with_retries(call: Callable[[], T]) -> T:
    """Make a call, and make it again if the server may answer later.

    That is so if it says that it has too much to do (429, 503), fails inside (500, 502, 504), does not answer
    in time, or drops the connection. The last failure is raised after six tries.

    Args:
        call: Makes the call. It may have been carried out although it failed, so it must do no harm twice.

    Returns:
        What the call returned.
    """
    for number in range(_TRIES - 1):
        try:
            return call()
        except (ResourceExhaustedResponse, ResponseHandlingException, UnexpectedResponse) as error:
            if not _may_pass(error):
                raise
            # Without jitter, workers that failed together would come back together.
            wait = _FIRST * 2**number * random.uniform(0.5, 1.0)
            if isinstance(error, ResourceExhaustedResponse):
                wait += error.retry_after_s
            reason = " ".join(str(error).split()) or type(error).__name__
            _log.info("Qdrant failed (%s); again in %.1f s.", reason, wait)
            time.sleep(wait)
    return call()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, UnexpectedResponse):
        return error.status_code in _BUSY
    # Of what the client itself reports, all but an answer that it cannot read comes from the network.
    return not (
        isinstance(error, ResponseHandlingException) and isinstance(error.source, ValidationError)
    )
