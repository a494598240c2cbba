"""JSON files that say when they are damaged: the content, and a SHA-256 over it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["digest", "seal", "unseal"]


def seal(content: Any) -> bytes:
    """The bytes of a file that holds `content`, which must be what JSON can hold."""
    return _dump({"sha256": digest(content), "content": content})


def unseal(sealed: bytes) -> Any:
    """The content of such a file. ValueError where any byte of it is not as it was written."""
    try:
        outer = json.loads(sealed)
        content, noted = outer["content"], outer["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("it is no sealed JSON") from error
    # White space is not under the digest: what is written again must be the same, byte for byte.
    if noted != digest(content) or sealed != _dump(outer):
        raise ValueError("its checksum does not match")
    return content


def digest(content: Any) -> str:
    """The SHA-256 that is written beside such a content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _dump(outer: dict[str, Any]) -> bytes:
    return (json.dumps(outer, indent=1) + "\n").encode()
