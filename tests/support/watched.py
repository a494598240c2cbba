"""What tests of streams share: a decoder that tells whether it is still writing, a question for it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence

from lclm_rag import Completion, PromptError, Sampling, SoftPrompt
from lclm_rag.decoding import Decoder
from lclm_rag.decoding.decoder import Finished
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet

__all__ = ["WatchedDecoder", "of_several_words"]


class WatchedDecoder(Decoder):
    """A real decoder, watched.

    Attributes:
        writing: Whether a stream is neither at its end nor closed.
        go: While it is not set, no stream ends.
    """

    def __init__(self, watched: Decoder) -> None:
        self.checkpoint = watched.checkpoint
        self.context_length = watched.context_length
        self.takes_encoder_space = watched.takes_encoder_space
        self.writing = False
        self.go = threading.Event()
        self.go.set()
        self._watched = watched

    def complete(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> list[Completion | PromptError]:
        return self._watched.complete(prompts, sampling)

    def stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
    ) -> Generator[str]:
        self.writing = True
        try:
            yield from self._watched.stream(prompt, sampling, finished)
            self.go.wait(60)
        finally:
            self.writing = False


def of_several_words(sheets: list[FactSheet]) -> str:
    """A question whose answer is streamed in several pieces."""
    return next(q.question for sheet in sheets for q in sheet.questions if " " in q.answer)
