"""RAG with precompressed document stores: passages enter the prompt as latents, not as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lclm_rag.interrupts import watch_imports

watch_imports()  # Before anything else: imports take a while, and Ctrl-C may come at any time.

from lclm_rag.errors import (  # noqa: E402
    CheckpointError,
    CompressionError,
    ContextLengthError,
    CorpusError,
    DamagedError,
    DecoderError,
    KnowledgeBaseError,
    LclmRagError,
    LockedError,
    NoPassagesError,
    OfflineError,
    PassageIndexError,
    PromptError,
    StoreError,
)
from lclm_rag.offline import go_offline, is_offline  # noqa: E402
from lclm_rag.types import (  # noqa: E402
    AddReport,
    Answer,
    Document,
    Grounding,
    Hit,
    MetadataField,
    Passage,
    PassageKey,
    StoredDocument,
    Timings,
    Usage,
)

if TYPE_CHECKING:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.compression import Compressor
    from lclm_rag.decoding import Completion, Decoder, Sampling
    from lclm_rag.ingestion.ray import RayEngine
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.prompting import Context, SoftPrompt
    from lclm_rag.querying.expansion import Expand
    from lclm_rag.retrieval import Embedder, Filter, field

__all__ = [
    "AddReport",
    "Answer",
    "Checkpoint",
    "CheckpointError",
    "Completion",
    "CompressionError",
    "Compressor",
    "Context",
    "ContextLengthError",
    "CorpusError",
    "DamagedError",
    "Decoder",
    "DecoderError",
    "Document",
    "Embedder",
    "Expand",
    "Filter",
    "Grounding",
    "Hit",
    "KnowledgeBase",
    "KnowledgeBaseError",
    "LclmRagError",
    "LockedError",
    "MetadataField",
    "NoPassagesError",
    "OfflineError",
    "Passage",
    "PassageIndexError",
    "PassageKey",
    "PromptError",
    "RayEngine",
    "Sampling",
    "SoftPrompt",
    "StoreError",
    "StoredDocument",
    "Timings",
    "Usage",
    "field",
]
__version__ = "0.1.0"

# Imported on first use, so that `lclm-rag --help` does not wait for tokenizers or Qdrant.
_LATE = {
    "Checkpoint": "lclm_rag.checkpoint",
    "Completion": "lclm_rag.decoding",
    "Compressor": "lclm_rag.compression",
    "Context": "lclm_rag.prompting",
    "Decoder": "lclm_rag.decoding",
    "Embedder": "lclm_rag.retrieval",
    "Expand": "lclm_rag.querying.expansion",
    "Filter": "lclm_rag.retrieval",
    "KnowledgeBase": "lclm_rag.knowledge_base",
    "RayEngine": "lclm_rag.ingestion.ray",
    "Sampling": "lclm_rag.decoding",
    "SoftPrompt": "lclm_rag.prompting",
    "field": "lclm_rag.retrieval",
}

if is_offline():
    go_offline()  # Before libraries are imported, which look only then.


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
