"""LlamaIndex's embedding models as the dense half of hybrid retrieval."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings.utils import EmbedType, resolve_embed_model

from lclm_rag.config import read_settings
from lclm_rag.retrieval import GIVEN, Embedder
from lclm_rag.storage import open_folder

__all__ = ["LlamaIndexEmbedder", "embedder_to_create", "embedder_to_open"]

_logger = logging.getLogger(__name__)

_said: set[str] = set()
"""What was said of Settings.embed_model in this process; each is said once."""


class LlamaIndexEmbedder:
    """An embedding model of LlamaIndex as an `Embedder`.

    Args:
        model: The embedding model.
    """

    def __init__(self, model: BaseEmbedding) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """The model's class and name."""
        return f"{type(self.model).__name__}/{self.model.model_name}"

    @cached_property
    def width(self) -> int:
        """The number of floats in a vector."""
        return len(self.embed_question("width"))

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        """See `Embedder.embed_passages`."""
        return self.model.get_text_embedding_batch(texts)

    def embed_question(self, text: str) -> list[float]:
        """See `Embedder.embed_question`."""
        return self.model.get_query_embedding(text)


def embedder_to_create(embed_model: EmbedType | None, embedder: Any) -> Any:
    """The embedder for a new knowledge base.

    Args:
        embed_model: LlamaIndex's embedding model, if one was given.
        embedder: The embedder as for `KnowledgeBase.create`, if one was given.

    Returns:
        `embedder`, or the embedding model as an `Embedder`; without either that of LlamaIndex's settings, if
        it was set there, which is logged once.

    Raises:
        ValueError: When both are given.
    """
    if embed_model is not None and embedder is not None:
        raise ValueError("Give embed_model (of LlamaIndex) or embedder (of lclm-rag), not both.")
    if embed_model is not None:
        return LlamaIndexEmbedder(resolve_embed_model(embed_model))
    if embedder is not None or (found := _of_settings()) is None:
        return embedder
    _say(f"Settings.embed_model ({found.name}) is used for hybrid retrieval.")
    return found


def embedder_to_open(path: Any, embed_model: EmbedType | None) -> Embedder | None:
    """The embedder to open a knowledge base with.

    Args:
        path: The knowledge base's folder.
        embed_model: LlamaIndex's embedding model, if one was given.

    Returns:
        The embedding model as an `Embedder`; without one that of LlamaIndex's settings, if the knowledge base
        was made with it. None if the knowledge base needs none that is an object.
    """
    if embed_model is not None:
        return LlamaIndexEmbedder(resolve_embed_model(embed_model))
    made_with, found = read_settings(open_folder(path)).embedder, _of_settings()
    if found is not None and made_with == f"{GIVEN}{found.name}":
        return found
    if found is not None and made_with is None:
        _say(f"{path} was made without an embed_model: it is searched by words alone (BM25).")
    return None


def _of_settings() -> LlamaIndexEmbedder | None:
    # The public property would load OpenAI's model if none was set.
    model = Settings._embed_model
    return None if model is None else LlamaIndexEmbedder(model)


def _say(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        _logger.warning("%s", sentence)
