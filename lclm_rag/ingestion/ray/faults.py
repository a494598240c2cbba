"""Faults of storage and GPUs, which no document is to blame for: the worker ends, and another takes over."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lclm_rag.errors import CompressionError, LclmRagError

__all__ = ["FURTHER_TRIES", "is_fault", "worker_ends_at_faults"]

FURTHER_TRIES = 4
"""Further tries of a task whose worker died, and not at a document that it had noted.

Three are enough to find a document at which workers die.
"""

_FIRST_PAUSE = 1.0
"""Seconds before a worker ends at a first fault; each further time takes twice as long."""

_GPU = ("CUDA", "CUBLAS", "cuBLAS", "cuDNN", "CUDNN", "HIP error", "NCCL")

_log = logging.getLogger(__name__)


def is_fault(error: BaseException) -> bool:
    """Whether storage or a GPU failed."""
    return isinstance(error, OSError) or _is_of_gpu(error)


@contextmanager
def worker_ends_at_faults(tries: int) -> Iterator[None]:
    """End this process at a fault within the context, so that Ray gives the task to another one.

    After a CUDA error a process cannot use its GPU again, and a store that refuses a request may take it a
    little later.

    Args:
        tries: `Attempts.tries`. The last one raises the error, which ends the run.

    Raises:
        OSError: When storage failed.
        CompressionError: When the GPU failed.
    """
    try:
        yield
    except Exception as error:
        if not is_fault(error):
            raise
        if tries <= FURTHER_TRIES:
            _log.warning("This worker ends, and another takes over: %s", error)
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(_FIRST_PAUSE * 2 ** (tries - 1))
            os._exit(1)
        if isinstance(error, OSError | LclmRagError):
            raise  # It has a sentence of its own.
        raise CompressionError(
            f"The GPU on {socket.gethostname()} failed {tries} times: {str(error).splitlines()[0]}."
        ) from error


def _is_of_gpu(error: BaseException | None) -> bool:
    while error is not None:
        # By its text: torch has no one class for these errors, and readers do not load torch.
        if isinstance(error, RuntimeError) and any(word in str(error) for word in _GPU):
            return True
        error = error.__cause__
    return False
