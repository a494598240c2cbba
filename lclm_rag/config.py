"""`kb.json`: what was chosen when a knowledge base was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.errors import KnowledgeBaseError

if TYPE_CHECKING:
    from lclm_rag.storage import Folder

__all__ = ["SETTINGS", "Settings", "is_knowledge_base", "read_settings", "write_settings"]

SETTINGS = "kb.json"
_FORMAT = 3


@dataclass(frozen=True)
class Settings:
    """What was chosen when the knowledge base was created.

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


def is_knowledge_base(folder: Folder) -> bool:
    try:
        return bool(folder.read(SETTINGS))
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_settings(folder: Folder) -> Settings:
    """KnowledgeBaseError where the folder is no knowledge base, or of another format."""
    try:
        raw = unseal(folder.read(SETTINGS))
        if raw["format"] != _FORMAT:
            raise KnowledgeBaseError(
                f"{folder} has format {raw['format']}; this lclm-rag reads format {_FORMAT}. Build it "
                "anew, or use the version of lclm-rag that made it."
            )
        return Settings(**raw)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise KnowledgeBaseError(
            f"{folder} is not a knowledge base: it has no {SETTINGS}. Make one with lclm-rag build."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise KnowledgeBaseError(
            f"{folder / SETTINGS} is damaged or of an early format: {error}. Restore it from a backup, or "
            "build the knowledge base anew."
        ) from error


def write_settings(folder: Folder, settings: Settings) -> None:
    folder.replace(SETTINGS, seal(asdict(settings)))
