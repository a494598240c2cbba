"""LCLM_RAG_OFFLINE: nobody is contacted over the network."""

from __future__ import annotations

import os

from lclm_rag.errors import OfflineError

__all__ = [
    "OFFLINE",
    "OFFLINE_VARIABLES",
    "go_offline",
    "is_offline",
    "offline_error",
    "require_online",
]

OFFLINE = "LCLM_RAG_OFFLINE"

_LIBRARIES = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

OFFLINE_VARIABLES = (OFFLINE, *_LIBRARIES)
"""The environment variables that `go_offline` sets."""


def is_offline() -> bool:
    """Whether LCLM_RAG_OFFLINE is set, to something other than 0, no or false."""
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "no", "false", "off")


def go_offline() -> None:
    """Set LCLM_RAG_OFFLINE, and what libraries have for it; some of them read it when they are imported."""
    os.environ.update({OFFLINE: "1", **_LIBRARIES})


def require_online(whom: str) -> None:
    """Call it before anybody is contacted.

    Args:
        whom: Who, and what for.

    Raises:
        OfflineError: When nobody may be contacted.
    """
    if is_offline():
        raise offline_error(whom)


def offline_error(whom: str) -> OfflineError:
    """The error that names who would have been contacted, and what for."""
    return OfflineError(
        f"This needs {whom}, but nobody may be contacted (--offline or {OFFLINE} is set)."
    )
