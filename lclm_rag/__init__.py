"""RAG with precompressed document stores: passages enter the prompt as latents, not as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lclm_rag.errors import (
    CheckpointError,
    ContextLengthError,
    DecoderError,
    KnowledgeBaseError,
    LclmRagError,
    LockedError,
    NoPassagesError,
    PromptError,
    StoreError,
)
from lclm_rag.types import AddReport, Answer, Document, Hit, Passage, PassageKey, Timings, Usage

if TYPE_CHECKING:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.decoding import Completion, Sampling
    from lclm_rag.ingestion.ray import RayEngine
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.prompting import SoftPrompt
    from lclm_rag.retrieval import field

__all__ = [
    "AddReport",
    "Answer",
    "Checkpoint",
    "CheckpointError",
    "Completion",
    "ContextLengthError",
    "DecoderError",
    "Document",
    "Hit",
    "KnowledgeBase",
    "KnowledgeBaseError",
    "LclmRagError",
    "LockedError",
    "NoPassagesError",
    "Passage",
    "PassageKey",
    "PromptError",
    "RayEngine",
    "Sampling",
    "SoftPrompt",
    "StoreError",
    "Timings",
    "Usage",
    "field",
]
__version__ = "0.1.0"

# Imported when first asked for: `lclm-rag --help` must not wait for tokenizers or Qdrant.
_LATE = {
    "Checkpoint": "lclm_rag.checkpoint",
    "Completion": "lclm_rag.decoding",
    "KnowledgeBase": "lclm_rag.knowledge_base",
    "RayEngine": "lclm_rag.ingestion.ray",
    "Sampling": "lclm_rag.decoding",
    "SoftPrompt": "lclm_rag.prompting",
    "field": "lclm_rag.retrieval",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
