"""Decoders that work in another thread, for callers in threads and in event loops alike."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from functools import cached_property, partial

from lclm_rag.decoding.decoder import Completion, Decoder, Finished, Outcome, Sampling
from lclm_rag.decoding.detokenizer import Detokenizer, hidden_tokens
from lclm_rag.decoding.streams import Generation, Put, apieces, pieces
from lclm_rag.errors import DecoderError, PromptError
from lclm_rag.prompting.soft_prompt import SoftPrompt

__all__ = ["BackgroundDecoder"]


class BackgroundDecoder(Decoder):
    """A decoder whose work is submitted to another thread. Nobody waits for the work of others."""

    _ends: list[int]
    """The tokens that end an answer."""

    @cached_property
    def _hidden(self) -> frozenset[int]:
        return hidden_tokens(self.checkpoint, self._ends)

    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self.checkpoint.decoder_tokenizer, self._hidden)

    @abstractmethod
    def _submit(
        self, prompts: Sequence[SoftPrompt], sampling: Sampling
    ) -> Iterator[Future[Outcome]]:
        """Submit prompts. Cancelling a future ends its generation within a token.

        Yields:
            The outcome of each prompt to come. Errors may also be raised by the future.
        """

    @abstractmethod
    def _start(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished, put: Put
    ) -> Generation:
        """Start a stream that puts its pieces."""

    def complete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Outcome]:
        """See `Decoder.complete`."""
        futures: list[Future[Outcome]] = []
        try:
            futures += self._submit(prompts, sampling)
            return [_outcome(future) for future in futures]
        finally:
            for future in futures:
                future.cancel()

    async def acomplete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Outcome]:
        """See `Decoder.acomplete`; no thread waits here."""
        futures: list[Future[Outcome]] = []
        try:
            futures += self._submit(prompts, sampling)
            waits = [asyncio.wrap_future(future) for future in futures]
            await asyncio.gather(*waits, return_exceptions=True)
            return [_outcome(future) for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
    ) -> Generator[str]:
        """See `Decoder.stream`."""
        self.check(prompt, sampling)
        yield from pieces(partial(self._start, prompt, sampling, finished or _ignore))

    async def astream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
    ) -> AsyncGenerator[str]:
        """See `Decoder.astream`; no thread waits for the pieces."""
        await asyncio.to_thread(self.check, prompt, sampling)
        start = partial(self._start, prompt, sampling, finished or _ignore)
        async with aclosing(apieces(start)) as came:
            async for piece in came:
                yield piece


def _outcome(future: Future[Outcome]) -> Outcome:
    """What became of a prompt; waits for it."""
    try:
        return future.result()
    except (PromptError, DecoderError) as error:
        return error


def _ignore(completion: Completion) -> None:
    """Nobody wants to know what a stream has made."""
