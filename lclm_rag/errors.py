"""The errors that a person is meant to read: one sentence that names the thing and what to do.

Wrong arguments (a top_k of 0, an unknown codec) are ValueError. These are for the state of the world.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CompressionError",
    "ContextLengthError",
    "CorpusError",
    "DamagedError",
    "DecoderError",
    "EvaluationError",
    "KnowledgeBaseError",
    "LclmRagError",
    "LockedError",
    "NoPassagesError",
    "PassageIndexError",
    "PromptError",
    "StoreError",
]


class LclmRagError(Exception):
    """The base of this package's own errors."""


class CheckpointError(LclmRagError):
    """A checkpoint cannot be found, is incomplete, or uses a setting that is not supported."""


class CompressionError(LclmRagError):
    """Texts cannot be compressed here."""


class StoreError(LclmRagError):
    """The latent store cannot be read or written as asked."""


class DamagedError(StoreError):
    """Bytes of the store are not what was written."""


class PassageIndexError(LclmRagError, RuntimeError):
    """The index cannot be reached, read or written; the message says why, in a sentence."""


class LockedError(LclmRagError):
    """Another process holds the lock that this one needs."""


class KnowledgeBaseError(LclmRagError):
    """A folder is not a knowledge base, or not one that can be opened this way."""


class NoPassagesError(LclmRagError):
    """No passage was found, so that there is nothing to answer from; says why."""


class DecoderError(LclmRagError):
    """What decodes cannot be started, cannot be reached, or failed."""


class EvaluationError(LclmRagError):
    """Questions cannot be read, or an evaluation cannot be run, gone on with, or compared."""


class PromptError(LclmRagError, ValueError):
    """A decoder cannot take a prompt; other prompts are not concerned."""


class ContextLengthError(PromptError):
    """A prompt does not fit into the decoder's context."""


class CorpusError(LclmRagError, ValueError):
    """A corpus cannot be read as asked: one sentence names file, line or row, and what to do."""
