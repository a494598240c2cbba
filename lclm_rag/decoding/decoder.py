"""The interface of all decoders: SoftPrompt → Completion."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lclm_rag.checkpoint import Checkpoint, Space
from lclm_rag.checks import check_number, check_whole
from lclm_rag.decoding.streams import Generation, Put, apieces, in_thread
from lclm_rag.errors import ContextLengthError, DecoderError, PromptError
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.prompting.template import PromptTemplate

if TYPE_CHECKING:
    import torch

__all__ = [
    "Completion",
    "Decoder",
    "Finished",
    "Outcome",
    "Sampling",
    "all_answered",
    "check_prompt",
    "end_token_ids",
    "vllm_sampling",
]


@dataclass(frozen=True)
class Sampling:
    """How a decoder chooses tokens.

    Attributes:
        max_tokens: The most tokens that a completion may have; at least 1.
        temperature: 0 is greedy; higher values sample more evenly.
        top_p: The share of probability to sample from, in (0, 1].
        seed: Makes sampling repeatable, 0 to 2**63 - 1; None samples differently each time.

    Raises:
        ValueError: When a setting is out of its range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_whole(self.max_tokens, "max_tokens", 1)
        check_number(self.temperature, "temperature", 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.seed is not None:
            check_whole(self.seed, "seed", 0)


@dataclass(frozen=True)
class Completion:
    """The text that a decoder wrote for one prompt.

    Attributes:
        text: The text without special tokens. White space at its ends is kept: see `stripped`.
        token_ids: The tokens, including the end-of-turn token if the decoder wrote it.
        finish_reason: "stop" at the end of the turn, "length" at `max_tokens`.
        first_token: Seconds from the call to the first token. `TransformersDecoder` gives the batch's time.
        total: Seconds from the call to the last token. `TransformersDecoder` gives the batch's time.
        cached_positions: The prompt positions that a prefix cache already held; None if a server does not
            report them.
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    first_token: float
    total: float
    cached_positions: int | None = 0


Outcome = Completion | PromptError | DecoderError
"""What became of one prompt: its completion, or the error that says why there is none."""


Finished = Callable[[Completion], object]
"""Takes the completion that a stream has made."""


class Decoder(ABC):
    """Turns soft prompts into completions; knows nothing of stores or questions.

    Threads and event loops may share it. Interrupting or cancelling a call ends its generation within a
    token.

    Attributes:
        checkpoint: The checkpoint whose decoder it runs.
        context_length: The most positions of prompt and answer together.
        takes_encoder_space: Whether the decoder has the adapter, and so takes latents of both spaces.
        latent_dtype: The dtype that latents are cast to; None if another machine decides.
    """

    checkpoint: Checkpoint
    context_length: int
    takes_encoder_space: bool = False
    latent_dtype: torch.dtype | None = None

    @property
    def space(self) -> Space:
        """The best space for a prompt's latents: "encoder" if the decoder has the adapter, else "decoder".

        Stores usually keep latents in encoder space, and a decoder with the adapter takes them unchanged.
        """
        return "encoder" if self.takes_encoder_space else "decoder"

    @abstractmethod
    def complete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Outcome]:
        """Complete prompts. What becomes of one does not change what becomes of the others.

        Args:
            prompts: The prompts.
            sampling: How tokens are chosen, for all prompts.

        Returns:
            The outcome of each prompt, in the same order: a completion; a PromptError where the prompt was
            refused; a DecoderError where the engine or the server failed, or the decoder was closed
            meanwhile.

        Raises:
            DecoderError: When the decoder is closed.
        """

    @abstractmethod
    def stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
    ) -> Generator[str]:
        """Complete a prompt piece by piece.

        Args:
            prompt: The prompt.
            sampling: How tokens are chosen.
            finished: Called with the completion after its last piece, perhaps in another thread.

        Yields:
            Pieces of text; joined, they are the completion's text. Closing the iterator ends the generation.

        Raises:
            PromptError: When the prompt is refused.
            DecoderError: When the engine or the server fails, or the decoder is closed.
        """

    async def acomplete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Outcome]:
        """`complete` for callers in an event loop.

        Here it runs in a thread, and goes on there when it is cancelled: a subclass that can end it does.
        """
        return await asyncio.to_thread(self.complete, prompts, sampling)

    async def astream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
    ) -> AsyncGenerator[str]:
        """`stream` for callers in an event loop.

        Here it runs in a thread, and ends with the next piece when it is cancelled.
        """

        def start(put: Put) -> Generation:
            ended = threading.Event()

            def work() -> None:
                pieces = self.stream(prompt, sampling, finished)
                try:
                    for piece in pieces:
                        if ended.is_set():
                            break
                        put(piece)
                finally:
                    pieces.close()

            return in_thread(work, ended.set)

        async with aclosing(apieces(start)) as came:
            async for piece in came:
                yield piece

    def check(self, prompt: SoftPrompt, sampling: Sampling) -> None:
        """Check that this decoder can take a prompt: see `check_prompt`.

        Args:
            prompt: The prompt.
            sampling: Its `max_tokens` must fit into the context, too.

        Raises:
            PromptError: When the decoder would cut the prompt, or the prompt would do harm.
        """
        check_prompt(
            prompt,
            self.checkpoint,
            context_length=self.context_length,
            max_tokens=sampling.max_tokens,
            takes_encoder_space=self.takes_encoder_space,
            dtype=self.latent_dtype,
        )

    def close(self) -> None:  # noqa: B027  Not every decoder has something to release.
        """Release engines and connections. Whoever waits for an answer gets a DecoderError.

        Closing twice does nothing. A closed decoder answers with a DecoderError that says so.
        """


def all_answered(results: Sequence[Outcome]) -> list[Completion]:
    """The completions, if every prompt has one.

    Args:
        results: What `Decoder.complete` returned.

    Returns:
        The same results in the same order, all of them completions.

    Raises:
        PromptError: When a prompt was refused, and nothing went wrong before it.
        DecoderError: When the decoder failed or was closed, and nothing went wrong before that.
    """
    for result in results:
        if not isinstance(result, Completion):
            raise result
    return [result for result in results if isinstance(result, Completion)]


def end_token_ids(checkpoint: Checkpoint) -> list[int]:
    """The tokens that end an answer: the end of the turn, and those of the decoder's generation config."""
    return sorted(PromptTemplate.of(checkpoint).end_tokens)


def vllm_sampling(sampling: Sampling, ends: list[int]) -> dict[str, Any]:
    """Every sampling setting by vLLM's name, also those that change nothing.

    A vLLM server takes what a request leaves out from the decoder's generation_config.json. That would give
    other answers, and a penalty together with prompt embeddings is reported to end the engine (vllm #57719).

    Args:
        sampling: How tokens are chosen.
        ends: The tokens that end an answer.

    Returns:
        The settings.
    """
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.temperature else 1.0,
        "top_k": 0,  # All tokens.
        "min_p": 0.0,
        "repetition_penalty": 1.0,  # A factor.
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": sampling.seed,
        "stop_token_ids": ends,
    }


def check_prompt(
    prompt: SoftPrompt,
    checkpoint: Checkpoint,
    *,
    context_length: int,
    max_tokens: int,
    takes_encoder_space: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuse a prompt that would be cut, break an engine or poison its cache.

    Args:
        prompt: The prompt.
        checkpoint: The decoder's checkpoint.
        context_length: The most positions of prompt and answer together.
        max_tokens: The most tokens of the answer.
        takes_encoder_space: Whether the decoder has the adapter.
        dtype: The dtype that the latents will be cast to; None if they are not cast here.

    Raises:
        ContextLengthError: When prompt and answer do not fit into the context.
        PromptError: When the prompt is empty or has an unknown token id, or its latents are in the wrong
            space, have the wrong width or dtype, are not finite or contain a row of zeros.
    """
    if not prompt.token_ids:
        raise PromptError("The prompt is empty.")
    if prompt.positions + max_tokens > context_length:
        raise ContextLengthError(
            f"The prompt takes {prompt.positions} positions and the answer may take {max_tokens}; the "
            f"decoder's context holds {context_length}."
        )
    vocabulary = checkpoint.vocabulary
    if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < vocabulary:
        outside = next(token for token in prompt.token_ids if not 0 <= token < vocabulary)
        raise PromptError(
            f"The prompt has token id {outside}; the decoder's vocabulary ends at {vocabulary - 1}."
        )
    if prompt.space == "encoder" and not takes_encoder_space:
        raise PromptError(
            "The prompt's latents are in encoder space, and this decoder has no adapter; assemble the "
            "prompt in decoder space."
        )
    for span, latents in zip(prompt.spans, prompt.latents, strict=True):
        _check_latents(latents, span.start, checkpoint.width(prompt.space), prompt.space, dtype)


def _check_latents(
    latents: torch.Tensor, start: int, width: int, space: str, dtype: torch.dtype | None
) -> None:
    if latents.shape[1] != width:
        raise PromptError(
            f"The latents at position {start} are {latents.shape[1]} wide; in {space} space the "
            f"checkpoint's are {width} wide."
        )
    if not latents.is_floating_point():
        raise PromptError(
            f"The latents at position {start} are {latents.dtype}; they must be floating point."
        )
    cast = latents if dtype is None else latents.to(dtype)
    if not bool(cast.isfinite().all()):
        inside = "" if dtype is None else f" as {str(dtype).removeprefix('torch.')}"
        raise PromptError(
            f"The latents at position {start} hold values that are not finite{inside}."
        )
    if not bool(latents.any(dim=1).all()):
        raise PromptError(
            f"The latents at position {start} hold a row of zeros: a latent is missing."
        )
