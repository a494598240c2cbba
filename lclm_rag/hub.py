"""The Hugging Face hub, from which checkpoints, models and data sets are fetched by id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["fetch", "is_hub_id"]


def is_hub_id(name: str) -> bool:
    """Whether a name is written as "owner/name", and not as a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def fetch(name: str, **options: Any) -> Path:
    """Fetch a snapshot from the hub, unless it is in the cache.

    Args:
        name: The hub id.
        **options: Options of `huggingface_hub.snapshot_download`.

    Returns:
        The snapshot's folder.

    Raises:
        OSError: When it cannot be fetched; the message is the reason, in one line.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:  # The hub raises dozens of types, its HTTP client's included.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(reason.rstrip(".")) from error
