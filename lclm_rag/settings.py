"""`kb.json`: what was chosen when a knowledge base was made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lclm_rag.errors import KnowledgeBaseError

__all__ = ["Settings", "read_settings", "write_json", "write_settings"]

_FORMAT = 2


@dataclass(frozen=True)
class Settings:
    """`kb.json`: what was chosen when the knowledge base was created.

    checkpoint: folder, hub id or "bundled". passage_tokens: most encoder tokens in a passage.
    qdrant_url, collection: where the passage index is; None: embedded, in the folder.
    embedder: name or path of a sentence-transformers model; None: BM25 alone.
    contextual_headers: whether passages carry title and headings.
    """

    checkpoint: str
    passage_tokens: int
    instruction: str
    embedder: str | None
    qdrant_url: str | None
    collection: str | None
    contextual_headers: bool
    format: int = _FORMAT


def read_settings(path: Path) -> Settings:
    file = path / "kb.json"
    if not file.is_file():
        raise KnowledgeBaseError(
            f"{path} is not a knowledge base: it has no kb.json. Make one with lclm-rag build."
        )
    try:
        raw = json.loads(file.read_text("utf-8"))
        if raw["format"] != _FORMAT:
            raise KnowledgeBaseError(
                f"{path} has format {raw['format']}; this lclm-rag reads format {_FORMAT}."
            )
        return Settings(**raw)
    except (ValueError, KeyError, TypeError) as error:
        raise KnowledgeBaseError(f"{file} is damaged: {error}.") from error


def write_settings(path: Path, settings: Settings) -> None:
    write_json(path / "kb.json", asdict(settings))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file atomically and durably."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)
