"""What every decoder is: SoftPrompt → Completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lclm_rag.prompting.soft_prompt import SoftPrompt

__all__ = ["Completion", "Decoder", "Sampling", "check_prompt", "stripped"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_p in (0, 1]; seed makes sampling repeatable."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}.")


@dataclass(frozen=True)
class Completion:
    """What a decoder wrote.

    text: without special tokens, as decoded (white space is not stripped).
    token_ids: with the end-of-turn token where it was written.
    finish_reason: "stop" at the end of the turn, "length" at max_tokens.
    first_token, total: seconds from the call on; for a batch, those of the whole batch.
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    first_token: float
    total: float


class Decoder(Protocol):
    """Takes soft prompts, gives completions; knows nothing of stores or questions."""

    context_length: int

    def complete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Completion]:
        """Completions in the order of the prompts."""
        ...

    def stream(self, prompt: SoftPrompt, sampling: Sampling) -> Iterator[str]:
        """Pieces of text; joined, they are the completion's text."""
        ...


def check_prompt(prompt: SoftPrompt, *, width: int, context_length: int, max_tokens: int) -> None:
    """Refuse what would break an engine or be cut: ValueError with one sentence."""
    if not prompt.token_ids:
        raise ValueError("The prompt is empty.")
    if prompt.positions + max_tokens > context_length:
        raise ValueError(
            f"The prompt takes {prompt.positions} positions and the answer may take {max_tokens}; the "
            f"decoder's context holds {context_length}."
        )
    for latents in prompt.latents:
        if latents.shape[1] != width:
            raise ValueError(
                f"The prompt's latents are {latents.shape[1]} wide, the decoder's embeddings {width}."
            )
        if not bool(latents.isfinite().all()):
            raise ValueError("The prompt's latents hold values that are not finite.")


def stripped(pieces: Iterator[str]) -> Iterator[str]:
    """Leave out white space at both ends of the text that the pieces make."""
    held, started = "", False
    for piece in pieces:
        held += piece if started else piece.lstrip()
        if held.strip():
            started = True
            body = held.rstrip()
            yield body
            held = held[len(body) :]
