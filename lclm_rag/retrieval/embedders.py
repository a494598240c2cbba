"""Text → dense vectors, the half of hybrid search that matches meaning rather than words."""

from __future__ import annotations

from typing import Any, Protocol

from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.hub import loading, require_in_cache
from lclm_rag.offline import is_offline
from lclm_rag.own_code import own_code_refused

__all__ = ["GIVEN", "Embedder", "SentenceTransformerEmbedder", "load_embedder"]

GIVEN = "given:"
"""What precedes the name of an embedder in the settings if it was passed as an object."""


class Embedder(Protocol):
    """Makes one vector of `width` finite floats from a text. Vectors are compared by their cosine.

    Passages and questions have separate methods because many models prefix them with different prompts.
    """

    @property
    def name(self) -> str:
        """The name of the model, for the record: vectors of two models cannot be compared."""
        ...

    @property
    def width(self) -> int:
        """The number of floats in a vector."""
        ...

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        """Make the vectors of passages.

        Args:
            texts: The texts of the passages.

        Returns:
            One vector of `width` floats for each text, in the same order.
        """
        ...

    def embed_question(self, text: str) -> list[float]:
        """Make the vector of a question.

        Args:
            text: The question.

        Returns:
            `width` floats.
        """
        ...


class SentenceTransformerEmbedder:
    """A sentence-transformers model; its vectors have length 1.

    Questions and passages are prefixed with the prompts that the model defines for them. The model cuts texts
    that are longer than it can read. Weights are read from safetensors files only.

    Args:
        name_or_path: The model's name on the hub, or its folder.
        device: The torch device, such as "cpu" or "cuda"; None leaves the choice to sentence-transformers.

    Raises:
        ImportError: When sentence-transformers is not installed.
        CheckpointError: When the model cannot be loaded, or needs code of its own, which is never run.
    """

    def __init__(self, name_or_path: str, device: str | None = None) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                "Dense retrieval needs sentence-transformers: pip install lclm-rag[dense]"
            ) from error
        from lclm_rag.torch_setup import renew_thread_pool

        renew_thread_pool()
        self.name = str(name_or_path)
        require_in_cache(self.name, "the embedder")
        with loading("embedder", self.name), own_code_refused(self.name):
            self._model: Any = SentenceTransformer(
                self.name,
                device=device,
                model_kwargs={"use_safetensors": True},
                trust_remote_code=False,
                local_files_only=is_offline(),
            )
            self.width = len(self.embed_question("width"))

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        """See `Embedder.embed_passages`."""
        vectors = self._model.encode_document(
            texts, normalize_embeddings=True, show_progress_bar=False
        )
        rows: list[list[float]] = vectors.tolist()
        return rows

    def embed_question(self, text: str) -> list[float]:
        """See `Embedder.embed_question`."""
        vector = self._model.encode_query(text, normalize_embeddings=True, show_progress_bar=False)
        row: list[float] = vector.tolist()
        return row


def load_embedder(name: str | None) -> Embedder | None:
    """Load the embedder that the settings of a knowledge base name.

    Args:
        name: The name or folder of a sentence-transformers model; None for BM25 alone.

    Returns:
        The embedder; None for BM25 alone.

    Raises:
        KnowledgeBaseError: When the embedder was passed as an object, which has no name to load it by.
        CheckpointError: When the model cannot be loaded, or needs code of its own.
        ImportError: When sentence-transformers is not installed.
    """
    if name is None:
        return None
    if name.startswith(GIVEN):
        raise KnowledgeBaseError(
            f"This knowledge base was made with the embedder {name.removeprefix(GIVEN)!r}, given as an "
            "object; give it again: KnowledgeBase.open(…, embedder=…)."
        )
    return SentenceTransformerEmbedder(name)
