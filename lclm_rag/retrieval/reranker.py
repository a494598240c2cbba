"""A second look at the order of hits: a cross-encoder, which reads question and passage together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from lclm_rag.errors import CheckpointError
from lclm_rag.hub import loading, require_in_cache
from lclm_rag.offline import is_offline
from lclm_rag.own_code import own_code_refused

__all__ = ["CrossEncoderReranker"]

_SHORTEST = 16
"""Tokens of a passage that must fit beside the question."""


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers. Threads may share it; they take turns.

    Weights are read from safetensors files only.

    Args:
        name_or_path: The model's name on the hub, or its folder.
        device: The torch device, such as "cpu" or "cuda"; None leaves the choice to sentence-transformers.

    Raises:
        ImportError: When sentence-transformers is not installed.
        CheckpointError: When the model cannot be loaded, is not a cross-encoder, gives more than one score,
            or needs code of its own, which is never run.
    """

    def __init__(self, name_or_path: str, device: str | None = None) -> None:
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise ImportError(
                "Reranking needs sentence-transformers: pip install 'lclm-rag[rerank]'"
            ) from error
        from lclm_rag.torch_setup import renew_thread_pool

        renew_thread_pool()
        self.name = name_or_path
        require_in_cache(name_or_path, "the reranker")
        self._lock = threading.Lock()
        with loading("reranker", name_or_path), own_code_refused(name_or_path):
            self._model: Any = CrossEncoder(
                name_or_path,
                device=device,
                model_kwargs={"use_safetensors": True},
                trust_remote_code=False,
                local_files_only=is_offline(),
            )
        config = self._model.config
        # Without a head of its own, the model would get one of random weights.
        if not any("For" in kind for kind in config.architectures or ()):
            raise CheckpointError(
                f"{name_or_path} is not a cross-encoder but an encoder of texts; name a model that scores a "
                "question and a passage together."
            )
        if self._model.num_labels != 1:
            raise CheckpointError(
                f"{name_or_path} gives {self._model.num_labels} scores for a question and a passage; a "
                "reranker gives one."
            )

    def scores(self, questions: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score passages for questions, all in one batch.

        A passage that is longer than the model can read beside the question is scored in pieces; its score is
        that of the best piece.

        Args:
            questions: The questions.
            texts: For each question the passages.

        Returns:
            For each question a score for each passage; higher is better.

        Raises:
            ValueError: When a question leaves no room for a passage.
        """
        with self._lock:
            pairs: list[tuple[str, str]] = []
            owners: list[tuple[int, int]] = []
            for i, (question, passages) in enumerate(zip(questions, texts, strict=True)):
                room = self._room(question)
                for j, text in enumerate(passages):
                    for piece in self._pieces(text, room):
                        pairs.append((question, piece))
                        owners.append((i, j))
            scores = self._model.predict(pairs, show_progress_bar=False) if pairs else []
        best = [[float("-inf")] * len(passages) for passages in texts]
        for (i, j), score in zip(owners, scores, strict=True):
            best[i][j] = max(best[i][j], float(score))
        return best

    def _room(self, question: str) -> float:
        """The tokens of a passage that the model can read beside the question."""
        longest = self._model.max_seq_length
        if longest is None:
            return float("inf")
        marks = self._model.tokenizer.num_special_tokens_to_add(pair=True)
        room: int = longest - marks - self._length(question)
        if room < _SHORTEST:
            raise ValueError(
                f"The question leaves no room for a passage in the {longest} tokens that the reranker "
                f"{self.name} can read; shorten it, or ask without rerank."
            )
        return room

    def _pieces(self, text: str, room: float) -> list[str]:
        if len(text) < 2 or self._length(text) <= room:
            return [text]
        half = len(text) // 2
        cut = text.rfind(" ", 1, half) + 1 or half
        return self._pieces(text[:cut], room) + self._pieces(text[cut:], room)

    def _length(self, text: str) -> int:
        return len(
            self._model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        )
