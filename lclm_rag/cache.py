"""The folder for what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """The cache's folder: LCLM_RAG_CACHE, or lclm-rag in the user's cache."""
    named = os.environ.get("LCLM_RAG_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lclm-rag"
