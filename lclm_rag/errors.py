"""Errors meant for a person to read: one sentence that names the thing and says what to do.

Wrong arguments (a `top_k` of 0, an unknown codec) raise ValueError. These errors are about the state of the
world.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ClientGone",
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
    "OfflineError",
    "PassageIndexError",
    "PromptError",
    "RequestError",
    "StoreError",
]


class LclmRagError(Exception):
    """The base class of this package's errors."""


class CheckpointError(LclmRagError):
    """A checkpoint cannot be found, is incomplete, or uses a setting that is not supported."""


class CompressionError(LclmRagError):
    """Texts cannot be compressed on this machine."""


class StoreError(LclmRagError):
    """The latent store cannot be read or written as asked."""


class DamagedError(StoreError):
    """Bytes of the store differ from what was written."""


class PassageIndexError(LclmRagError, RuntimeError):
    """The passage index cannot be reached, read or written; the message says why, in a sentence."""


class LockedError(LclmRagError):
    """Another process holds the lock that is needed."""


class KnowledgeBaseError(LclmRagError):
    """A folder is not a knowledge base, or what was asked of the knowledge base cannot be done."""


class NoPassagesError(LclmRagError):
    """No passage was found, so there is nothing to answer from; the message says why."""


class OfflineError(LclmRagError):
    """Somebody would have to be contacted over the network, which LCLM_RAG_OFFLINE forbids."""


class DecoderError(LclmRagError):
    """A decoder cannot be started or reached, or it failed."""


class EvaluationError(LclmRagError):
    """Questions cannot be read, or an evaluation cannot be run, resumed or compared."""


class PromptError(LclmRagError, ValueError):
    """A decoder cannot take a prompt; other prompts are not affected."""


class ContextLengthError(PromptError):
    """A prompt does not fit into the decoder's context."""


class CorpusError(LclmRagError, ValueError):
    """A corpus cannot be read; the message names the file, line or row and says what to do."""


class RequestError(LclmRagError):
    """A request that is refused.

    Args:
        status: The HTTP status.
        message: What is wrong, and what to do.
        code: OpenAI's word for it, such as "model_not_found".
        param: The field of the request that is wrong.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers


class ClientGone(Exception):  # noqa: N818  Nothing went wrong.
    """The client went away before its answer was ready."""
