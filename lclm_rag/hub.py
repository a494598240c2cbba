"""The Hugging Face hub: where checkpoints, models and data sets are fetched by their ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["fetch", "is_hub_id"]


def is_hub_id(name: str) -> bool:
    """Whether it is written as "owner/name", and not as a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def fetch(name: str, **options: Any) -> Path:
    """The folder of a snapshot, fetched where it is not in the cache. options: of `snapshot_download`.

    Raises OSError with the reason, in one line.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:  # The hub raises dozens of types, down to those of its HTTP client.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(reason.rstrip(".")) from error
