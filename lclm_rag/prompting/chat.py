"""Chat messages → token ids: the chat template's own text is markup, the messages' words are plain text."""

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
"""Marks the place in a message's words where the passages go."""


def chat_ids(
    checkpoint: Checkpoint, template: PromptTemplate, messages: Sequence[ChatMessage]
) -> list[int]:
    """Render a chat without passages, up to where the answer begins.

    Args:
        checkpoint: The checkpoint whose decoder answers.
        template: The template of the decoder's prompts.
        messages: The chat.

    Returns:
        Token ids of the prompt.

    Raises:
        ValueError: When there is no message.
        CheckpointError: When the decoder's chat template does not take these roles in this order.
    """
    (ids,) = _parts(checkpoint, template, [(role, [words]) for role, words in messages])
    return ids


def chat_frame(
    checkpoint: Checkpoint, template: PromptTemplate, messages: Sequence[ChatMessage]
) -> Frame:
    """Render a chat as what comes before and after its passages.

    Args:
        checkpoint: The checkpoint whose decoder answers.
        template: The template of the decoder's prompts.
        messages: The chat; one message contains `PASSAGES`, once.

    Returns:
        The frame.

    Raises:
        ValueError: When there is no message, or `PASSAGES` does not occur exactly once.
        CheckpointError: When the decoder's chat template does not take these roles in this order.
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
    """Extend a prompt by the decoder's reply and the next message.

    The chat only grows, so a prefix cache still covers everything before.

    Args:
        checkpoint: The checkpoint whose decoder answers.
        template: The template of the decoder's prompts.
        prompt: The prompt that was replied to.
        reply: The reply's token ids, as generated.
        message: The next message.
        tools: The tools that the prompt was made with.

    Returns:
        The extended prompt, up to where the next reply begins.

    Raises:
        CheckpointError: When the decoder's chat template does not take such a turn.
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
    """Token ids of the whole chat, cut at the places inside messages where the passages go."""
    if not messages:
        raise ValueError("There is no message to answer.")
    opening, *around = render_chat(checkpoint, [role for role, _ in messages])
    parts = [template.markup_ids(opening)]
    for (_, (first, *rest)), closing in zip(messages, around, strict=True):
        parts[-1] += plain_ids(template.inert, first)
        parts += [plain_ids(template.inert, words) for words in rest]
        parts[-1] += template.markup_ids(closing)
    return parts
