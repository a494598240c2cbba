"""JSON files with a checksum: the content, and a SHA-256 over it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["digest", "seal", "unseal"]


def seal(content: Any) -> bytes:
    """Serialize content together with its checksum.

    Args:
        content: Anything that JSON can hold.

    Returns:
        The bytes of the file.
    """
    return _dump({"sha256": digest(content), "content": content})


def unseal(sealed: bytes) -> Any:
    """Check a sealed file and return its content.

    Args:
        sealed: The bytes of the file, as `seal` made them.

    Returns:
        The content.

    Raises:
        ValueError: When the bytes are not sealed JSON, or any byte differs from what was written.
    """
    try:
        outer = json.loads(sealed, parse_constant=_refuse)
        content, noted = outer["content"], outer["sha256"]
        # The digest does not cover white space, so the file must also equal its content serialized again.
        is_sound = noted == digest(content) and sealed == _dump(outer)
    # RecursionError: lists in lists in lists, which some can read and not write.
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("it is no sealed JSON") from error
    if not is_sound:
        raise ValueError("its checksum does not match")
    return content


def digest(content: Any) -> str:
    """The SHA-256 of a content, in hex, as `seal` writes it beside the content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _dump(outer: dict[str, Any]) -> bytes:
    return (json.dumps(outer, indent=1) + "\n").encode()
