"""Chat messages → token ids: the chat template's own text is markup, the messages' words are only text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.prompting.template import Frame, PromptTemplate, plain_ids, render_chat

__all__ = ["PASSAGES", "ChatMessage", "chat_frame", "chat_ids", "next_turn"]

ChatMessage = tuple[str, str]
"""Role ("system", "user", "assistant") and words."""

PASSAGES = "\ue000passages\ue000"
"""Stands in one message's words where the passages go."""


def chat_ids(
    checkpoint: Checkpoint, template: PromptTemplate, messages: Sequence[ChatMessage]
) -> list[int]:
    """The prompt of a chat without passages, up to where the answer begins.

    Raises ValueError where there is no message, CheckpointError where the decoder's chat template does
    not take these roles in this order.
    """
    (ids,) = _parts(checkpoint, template, [(role, [words]) for role, words in messages])
    return ids


def chat_frame(
    checkpoint: Checkpoint, template: PromptTemplate, messages: Sequence[ChatMessage]
) -> Frame:
    """What stands before and after the passages of a chat.

    Raises as `chat_ids`, and ValueError where PASSAGES is not there exactly once.
    """
    split = [(role, words.split(PASSAGES)) for role, words in messages]
    parts = _parts(checkpoint, template, split)
    if len(parts) != 2:
        raise ValueError(
            f"The chat must have the place of its passages once, not {len(parts) - 1} times."
        )
    return Frame(*parts)


def next_turn(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    prompt: SoftPrompt,
    reply: Sequence[int],
    message: ChatMessage,
    tools: Sequence[dict[str, Any]] | None = None,
) -> SoftPrompt:
    """A prompt, what was replied to it, and the next message: the chat only grows, so that a prefix cache
    holds all of what was there.

    reply: token ids as they were generated. tools: as the prompt was made with.
    Raises CheckpointError where the decoder's chat template does not take such a turn.
    """
    role, words = message
    _, _, between, closing = render_chat(checkpoint, ["user", "assistant", role], tools)
    ending = template.markup_ids(between)
    sentence = list(reply[:-1] if reply and reply[-1] == ending[0] else reply)
    return replace(
        prompt,
        token_ids=prompt.token_ids
        + sentence
        + ending
        + plain_ids(template.inert, words)
        + template.markup_ids(closing),
    )


def _parts(
    checkpoint: Checkpoint, template: PromptTemplate, messages: Sequence[tuple[str, list[str]]]
) -> list[list[int]]:
    """Token ids of the whole chat, cut where the words of its messages are."""
    if not messages:
        raise ValueError("There is no message to answer.")
    opening, *around = render_chat(checkpoint, [role for role, _ in messages])
    parts = [template.markup_ids(opening)]
    for (_, (first, *rest)), closing in zip(messages, around, strict=True):
        parts[-1] += plain_ids(template.inert, first)
        parts += [plain_ids(template.inert, words) for words in rest]
        parts[-1] += template.markup_ids(closing)
    return parts
