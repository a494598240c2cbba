"""Calls over the network, made again when the other side is busy or does not answer."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["with_retries"]

_TRIES = 6
_FIRST = 0.5  # seconds; twice as long before each further try
_LONGEST = 120.0  # seconds that the other side may ask for
_PATIENCE = (
    300.0  # seconds; some libraries try for minutes on their own before they report a failure
)

_log = logging.getLogger(__name__)

T = TypeVar("T")


def with_retries(call: Callable[[], T], pause: Callable[[Exception], float | None], whom: str) -> T:
    """Make a call, and make it again if it may succeed later.

    The last failure is raised after six tries, or after the first that fails when five minutes are over.

    Args:
        call: Makes the call. It may have been carried out although it failed, so it must do no harm twice.
        pause: Says of a failure how many seconds the other side asks to be left alone, 0 if it does not say;
            None if the call would fail again.
        whom: Who is called, for the log.

    Returns:
        What the call returned.
    """
    begun = time.monotonic()
    for number in range(_TRIES - 1):
        try:
            return call()
        except Exception as error:
            least = pause(error)
            if least is None or time.monotonic() - begun > _PATIENCE:
                raise
            # Without jitter, workers that failed together would come back together.
            wait = min(least, _LONGEST) + _FIRST * 2**number * random.uniform(0.5, 1.0)
            reason = " ".join(str(error).split()) or type(error).__name__
            _log.info("%s failed (%s); again in %.1f s.", whom, reason, wait)
            time.sleep(wait)
    return call()
