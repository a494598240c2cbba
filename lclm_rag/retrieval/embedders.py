"""Text → dense vectors, for the half of hybrid search that looks past the words."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Embedder", "SentenceTransformerEmbedder"]


class Embedder(Protocol):
    """Makes one vector of `width` finite floats from a text; they are compared by their cosine.

    Passages and questions have a method each because many models put different words before them.
    """

    @property
    def name(self) -> str:
        """Which model this is, for the record: vectors of two models cannot be compared."""
        ...

    @property
    def width(self) -> int: ...

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text, in order."""
        ...

    def embed_question(self, text: str) -> list[float]: ...


class SentenceTransformerEmbedder:
    """A sentence-transformers model, by name or folder; its vectors have length 1.

    Prompts that the model defines for questions and for passages are put before them. Texts longer
    than the model reads are cut there by the model. Weights are read from safetensors only.

    Raises ImportError where sentence-transformers is not installed.
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
        self._model: Any = SentenceTransformer(
            self.name, device=device, model_kwargs={"use_safetensors": True}
        )
        self.width = len(self.embed_question("width"))

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        vectors = self._model.encode_document(
            texts, normalize_embeddings=True, show_progress_bar=False
        )
        rows: list[list[float]] = vectors.tolist()
        return rows

    def embed_question(self, text: str) -> list[float]:
        vector = self._model.encode_query(text, normalize_embeddings=True, show_progress_bar=False)
        row: list[float] = vector.tolist()
        return row
