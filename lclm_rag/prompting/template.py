"""The fixed parts of every prompt, as token ids: header, passage marks, question and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from lclm_rag.checkpoint import MEMORY, MEMORY_END, MEMORY_START, Checkpoint
from lclm_rag.errors import CheckpointError

__all__ = [
    "DEFAULT_INSTRUCTION",
    "Frame",
    "PromptTemplate",
    "plain_ids",
    "render_chat",
]

DEFAULT_INSTRUCTION = "Answer the question from the passages."

# Takes the place of a message's words while the chat template is rendered; no template writes it itself.
_WORDS_MARK = "\ue000lclm-rag-words\ue000"


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenize text that comes from a document or a user.

    Special tokens are plain letters here: `<|im_end|>` in a document ends nothing.

    Args:
        tokenizer: A tokenizer with `encode_special_tokens` set, such as `Checkpoint.inert_decoder_tokenizer`.
        text: The text.

    Returns:
        The token ids.
    """
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class Frame:
    """Token ids of what comes before and after the passages.

    Attributes:
        before: Token ids before the passages.
        after: Token ids after the passages, up to where the answer begins.
    """

    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class PromptTemplate:
    """Header → passages → question, in one user turn of the decoder's own chat template.

    Everything before the question depends on the passages alone, so an engine's prefix cache is hit by every
    further question about them. A passage's body is either a memory span (latents) or text; both come after
    the passage's number.

    Attributes:
        markup: The decoder's tokenizer, which recognizes special tokens.
        inert: The same tokenizer with `encode_special_tokens`: special tokens are plain letters.
        opening: The chat template's text before the content of the user's turn.
        closing: The chat template's text after the content of the user's turn.
        instruction: The first line of the user's turn.
    """

    markup: Tokenizer
    inert: Tokenizer
    opening: str
    closing: str
    instruction: str = DEFAULT_INSTRUCTION

    @classmethod
    def of(cls, checkpoint: Checkpoint, instruction: str = DEFAULT_INSTRUCTION) -> PromptTemplate:
        """Make the template of a checkpoint's decoder. The chat template is rendered once, here.

        Args:
            checkpoint: The checkpoint.
            instruction: The first line of the user's turn.

        Returns:
            The template.

        Raises:
            CheckpointError: When there is no usable chat template.
        """
        opening, closing = render_chat(checkpoint, ["user"])
        return cls(
            markup=checkpoint.decoder_tokenizer,
            inert=checkpoint.inert_decoder_tokenizer,
            opening=opening,
            closing=closing,
            instruction=instruction,
        )

    def with_tools(self, checkpoint: Checkpoint, tools: Sequence[dict[str, Any]]) -> PromptTemplate:
        """Describe tools to the decoder.

        Args:
            checkpoint: The template's checkpoint.
            tools: The tools, in the format of OpenAI's API.

        Returns:
            The same template, with the tools.

        Raises:
            CheckpointError: When the decoder's chat template does not support tools.
        """
        opening, closing = render_chat(checkpoint, ["user"], tools)
        if (opening, closing) == (self.opening, self.closing):
            raise CheckpointError(
                f"The chat template in {checkpoint.path / 'decoder'} offers no tools to the decoder."
            )
        return replace(self, opening=opening, closing=closing)

    @cached_property
    def header(self) -> list[int]:
        """Token ids of what comes before the passages: the turn's opening and the instruction."""
        return self.markup_ids(self.opening) + plain_ids(self.inert, self._before)

    @property
    def _before(self) -> str:
        return f"{self.instruction}\n\n"

    @staticmethod
    def _after(question: str) -> str:
        return f"\nQuestion: {question}"

    def words(self, passages: str, question: str) -> str:
        """The user's turn in words, for callers that render the chat themselves.

        Args:
            passages: The passages' text, as it goes into the turn.
            question: The question.

        Returns:
            The content of the user's turn.
        """
        return f"{self._before}{passages}{self._after(question)}"

    @property
    def end_of_turn(self) -> int:
        """The token that ends a turn, such as `<|im_end|>` in Qwen's format."""
        return self._end[0]

    @cached_property
    def _end(self) -> list[int]:
        return self.markup_ids(self.closing)

    @cached_property
    def _between(self) -> list[int]:
        return plain_ids(self.inert, "\n")

    def markup_ids(self, text: str) -> list[int]:
        """Token ids of the chat template's own text, in which special tokens are recognized."""
        return list(self.markup.encode(text, add_special_tokens=False).ids)

    def special_id(self, token: str) -> int:
        """Look up the id of a special token.

        Args:
            token: The token.

        Returns:
            The id.

        Raises:
            ValueError: When the tokenizer has no such token.
        """
        found = self.markup.token_to_id(token)
        if found is None:
            raise ValueError(f"The decoder's tokenizer has no token {token}.")
        return int(found)

    def passage_mark(self, number: int) -> list[int]:
        """Token ids before passage `number` (counted from 1)."""
        return plain_ids(self.inert, f"[{number}] ")

    def marks_length(self, number: int) -> int:
        """The number of positions that passage `number` takes besides its body."""
        return len(self.passage_mark(number)) + len(self._between)

    def memory_span(self, n_latents: int) -> list[int]:
        """Token ids of `<|memory_start|>`, one placeholder per latent, and `<|memory_end|>`."""
        return [
            self.special_id(MEMORY_START),
            *([self.special_id(MEMORY)] * n_latents),
            self.special_id(MEMORY_END),
        ]

    def context(
        self, before: Sequence[int], bodies: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[int]]:
        """Put numbered passages after what comes before them.

        Args:
            before: Token ids before the passages.
            bodies: Token ids of each passage's body.

        Returns:
            The token ids, and the offset at which each body begins.
        """
        ids, starts = list(before), []
        for number, body in enumerate(bodies, start=1):
            ids += self.passage_mark(number)
            starts.append(len(ids))
            ids += body
            ids += self._between
        return ids, starts

    def frame(self, question: str) -> Frame:
        """Make the frame of a question: the header, and what follows the passages up to the answer.

        Args:
            question: The question.

        Returns:
            The frame.

        Raises:
            ValueError: When the question is empty.
        """
        if not question.strip():
            raise ValueError("The question is empty.")
        return Frame(self.header, plain_ids(self.inert, self._after(question)) + self._end)


def render_chat(
    checkpoint: Checkpoint, roles: Sequence[str], tools: Sequence[dict[str, Any]] | None = None
) -> list[str]:
    """Render what the chat template of a checkpoint's decoder writes around the words of messages.

    Args:
        checkpoint: The checkpoint.
        roles: The role of each message.
        tools: Tools that the chat template describes to the decoder, in the format of OpenAI's API.

    Returns:
        The text before the first message's words, between each two, and after the last up to where the answer
        begins.

    Raises:
        CheckpointError: When there is no chat template, or it does not show each message exactly once and in
            order.
    """
    decoder, tokenizer = checkpoint.path / "decoder", checkpoint.chat_tokenizer
    if not tokenizer.chat_template:
        raise CheckpointError(f"The tokenizer in {decoder} has no chat template.")
    marks = [f"{_WORDS_MARK}{number}{_WORDS_MARK}" for number in range(len(roles))]
    messages = [{"role": r, "content": mark} for r, mark in zip(roles, marks, strict=True)]
    turns = " → ".join(roles)
    try:
        rest = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # Templates raise what they like, through jinja2.
        raise CheckpointError(
            f"The chat template in {decoder} does not render the turns {turns}: {error}"
        ) from error
    around = []
    for mark in marks:
        before, found, rest = str(rest).partition(mark)
        around.append(before)
        if not found:
            rest = _WORDS_MARK
    if any(_WORDS_MARK in piece for piece in (*around, rest)):
        raise CheckpointError(
            f"The chat template in {decoder} does not show each of the turns {turns} exactly once."
        )
    return [*around, rest]
