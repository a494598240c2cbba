"""What tests of services over a small knowledge base share; the fixtures are in tests/serving/conftest.py."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import httpx

from lclm_rag.serving.keys import ApiKey, ApiKeys
from support.processes import LIMIT

__all__ = ["LONG", "ODD_ID", "Serve", "bearer", "ended", "keys", "until"]

Serve = Callable[..., httpx.Client]
"""Serves the copied knowledge base, with the arguments of `create_app`: a client of its /v1/."""

LONG = "".join(f"Line {number} of the long report says nothing new. " for number in range(120))
"""The text of the document "report"."""

ODD_ID = "notes/2026/a b?c#d%2F&é\n雪/"
"""The id of a document that is hard to put into a path."""


def bearer(key: str | None) -> dict[str, str]:
    """The headers of somebody who has a key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def keys(**holders: dict[str, Any]) -> ApiKeys:
    """Keys that are the same as their holders' names, with what each may do."""
    return ApiKeys(
        [
            ApiKey(name, hashlib.sha256(name.encode()).hexdigest(), **rights)
            for name, rights in holders.items()
        ]
    )


def until(holds: Callable[[], Any]) -> Any:
    """Wait until something holds, and return it."""
    end = time.monotonic() + LIMIT
    while not (found := holds()):
        assert time.monotonic() < end, "It never comes to hold."
        time.sleep(0.02)
    return found


def ended(client: httpx.Client, job: dict[str, Any], **headers: str) -> dict[str, Any]:
    """A job, once it has ended."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"jobs/{job['id']}", headers=headers).json()
        return found if found["state"] in ("done", "failed") else None

    found: dict[str, Any] = until(look)
    return found
