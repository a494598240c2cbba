"""One line in the log for each request: JSON, and never text of documents or questions."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from lclm_rag.serving.metrics import first_token
from lclm_rag.types import Answer

__all__ = ["log_request"]

_log = logging.getLogger("lclm_rag.serving.requests")

_PROBES = {"/healthz", "/readyz", "/metrics"}
"""Routes that machines ask every few seconds; their lines have the level DEBUG."""


def log_request(
    id: str,
    method: str,
    route: str,
    status: int,
    seconds: float,
    *,
    base: str | None = None,
    key: str | None = None,
    streamed: bool = False,
    passages: int | None = None,
    answer: Answer | None = None,
) -> None:
    """Log a request that has ended, on the logger `lclm_rag.serving.requests`.

    Args:
        id: Its id.
        method: The HTTP method.
        route: The template of its route, or "other".
        status: The HTTP status; 499 if the client went away.
        seconds: How long it took.
        base: Its knowledge base.
        key: The name of its API key.
        streamed: Whether the answer was streamed.
        passages: How many passages a search found.
        answer: The answer.
    """
    level = logging.DEBUG if route in _PROBES else logging.INFO
    if not _log.isEnabledFor(level):
        return
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": id,
        "method": method,
        "route": route,
        "base": base,
        "key": key,
        "status": status,
        "seconds": round(seconds, 4),
        "streamed": streamed or None,
        "passages": passages,
    }
    if answer is not None:
        usage = answer.usage
        line |= {
            "first_token": round(first_token(answer), 4) if answer.rounds else None,
            "positions": usage.positions,
            "cached": usage.cached_positions,
            "latents": usage.latents,
            "source_tokens": usage.source_tokens,
            "generated": usage.generated_tokens,
            "passages": len(answer.sources) + len(answer.left_out),
        }
    _log.log(level, json.dumps({name: v for name, v in line.items() if v is not None}))
