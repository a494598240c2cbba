"""What is shown of a decoder's reply: the answer, without thoughts and without requests for passages."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding.decoder import Completion, Decoder, Finished, Sampling
from lclm_rag.prompting.replies import MARKS, REQUESTS, parse_reply, without_mark
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.prompting.thinking import Spoken, opens_thought, spoken

__all__ = ["aanswer_pieces", "answer_pieces", "answer_text", "said", "thinks_first"]

_log = logging.getLogger(__name__)

_TAIL = 16
"""Tokens at the end of a prompt that hold the beginning of a thought, if the chat template writes one."""


def thinks_first(checkpoint: Checkpoint, prompt: SoftPrompt) -> bool:
    """Whether a prompt ends with the beginning of a thought, as the chat templates of some families do.

    Args:
        checkpoint: The decoder's checkpoint.
        prompt: The prompt.

    Returns:
        Whether the reply begins inside a thought.
    """
    tail = prompt.token_ids[-_TAIL:]
    return opens_thought(checkpoint.decoder_tokenizer.decode(tail, skip_special_tokens=False))


def said(checkpoint: Checkpoint, prompt: SoftPrompt, completion: Completion) -> str:
    """What a decoder said in reply to a prompt: the completion's text without thoughts.

    Args:
        checkpoint: The decoder's checkpoint.
        prompt: The prompt.
        completion: Its completion.

    Returns:
        The text outside of thoughts; "" if there is nothing else.
    """
    return spoken(completion.text, thinking=thinks_first(checkpoint, prompt)).strip()


def answer_text(checkpoint: Checkpoint, prompt: SoftPrompt, completion: Completion) -> str:
    """The answer in a completion: what `answer_pieces` streams, joined.

    Args:
        checkpoint: The decoder's checkpoint.
        prompt: The prompt.
        completion: Its completion.

    Returns:
        The answer; "" if there is none, which a warning in the log explains.
    """
    show = _Show(thinking=thinks_first(checkpoint, prompt))
    return show(completion.text) + show.end()


def answer_pieces(
    decoder: Decoder, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
) -> Generator[str]:
    """Stream the answer to a prompt. Closing the iterator ends the generation.

    White space at both ends, thoughts and a mark before the answer ("FINAL:") are left out. A request for
    passages is not shown; a warning in the log says that the decoder made one, or that it only thought.

    Args:
        decoder: The decoder.
        prompt: The prompt.
        sampling: How tokens are chosen.
        finished: As for `Decoder.stream`.

    Yields:
        The pieces of the answer.

    Raises:
        PromptError: When the prompt is refused.
        DecoderError: When the engine or the server fails, or the decoder is closed.
    """
    show = _Show(thinking=thinks_first(decoder.checkpoint, prompt))
    with closing(decoder.stream(prompt, sampling, finished)) as pieces:
        for piece in pieces:
            if body := show(piece):
                yield body
    if body := show.end():
        yield body


async def aanswer_pieces(
    decoder: Decoder, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
) -> AsyncGenerator[str]:
    """`answer_pieces` for callers in an event loop.

    Args:
        decoder: The decoder.
        prompt: The prompt.
        sampling: How tokens are chosen.
        finished: As for `Decoder.stream`.

    Yields:
        The pieces of the answer.
    """
    show = _Show(thinking=thinks_first(decoder.checkpoint, prompt))
    async with aclosing(decoder.astream(prompt, sampling, finished)) as pieces:
        async for piece in pieces:
            if body := show(piece):
                yield body
    if body := show.end():
        yield body


class _Show:
    """Called with each piece of a reply, it returns what may be shown by then.

    Args:
        thinking: Whether the reply begins inside a thought.
    """

    def __init__(self, *, thinking: bool) -> None:
        self._spoken = Spoken(thinking=thinking)
        self._held, self._started = "", False

    def __call__(self, piece: str) -> str:
        return self._show(self._spoken(piece))

    def end(self) -> str:
        """What was held back and may be shown now that the reply is whole."""
        last = self._show(self._spoken.end())
        if self._started:
            return last
        reply = parse_reply(self._held, passages=1)
        if reply.asks:
            _log.warning(
                "The decoder asked for passages verbatim, which no stream can give; use query instead."
            )
            return ""
        if self._spoken.thinking:
            _log.warning("The decoder was still thinking at its last token; raise max_tokens.")
        return without_mark(self._held)

    def _show(self, text: str) -> str:
        self._held += text
        if not self._started:
            self._held = self._held.lstrip()
            # Until it is plain how the reply begins, nothing is shown.
            if any(mark.startswith(self._held) or self._held.startswith(mark) for mark in REQUESTS):
                return ""
            if any(mark.startswith(self._held) for mark in MARKS):
                return ""
            self._held = without_mark(self._held) + self._held[len(self._held.rstrip()) :]
        body = self._held.rstrip()
        if body:
            self._started = True
            self._held = self._held[len(body) :]
        return body
