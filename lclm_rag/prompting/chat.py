"""Chat messages → token ids: the chat template's own text is markup, the messages' words are plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.prompting.template import PromptEnds, PromptTemplate, plain_ids, render_chat

__all__ = ["PASSAGES", "ChatMessage", "chat_ends", "chat_ids", "next_turn"]

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
    opening, turns = _turns(checkpoint, template, messages)
    ids = list(opening)
    for words, closing in turns:
        ids += plain_ids(template.inert, words) + closing
    return ids


def chat_ends(
    checkpoint: Checkpoint, template: PromptTemplate, messages: Sequence[ChatMessage]
) -> PromptEnds:
    """Render a chat as what comes before and after its passages.

    Args:
        checkpoint: The checkpoint whose decoder answers.
        template: The template of the decoder's prompts.
        messages: The chat; one message contains `PASSAGES`, once.

    Returns:
        The ends of the prompt.

    Raises:
        ValueError: When there is no message, or `PASSAGES` does not occur exactly once.
        CheckpointError: When the decoder's chat template does not take these roles in this order.
    """
    opening, turns = _turns(checkpoint, template, messages)
    places = sum(words.count(PASSAGES) for words, _ in turns)
    if places != 1:
        raise ValueError(f"The chat must have the place of its passages once, not {places} times.")
    before, lead = list(opening), ""
    after: list[int] = []
    found = False
    for words, closing in turns:
        if PASSAGES in words:
            found = True
            lead, _, words = words.partition(PASSAGES)
        (after if found else before).extend(plain_ids(template.inert, words) + closing)
    return PromptEnds(before, lead, after)


def next_turn(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    prompt: SoftPrompt,
    reply: Sequence[int],
    messages: Sequence[ChatMessage],
) -> SoftPrompt:
    """Extend a prompt by the decoder's reply and the next messages.

    The chat only grows, so a prefix cache still covers everything before.

    Args:
        checkpoint: The checkpoint whose decoder answers.
        template: The template that the prompt was made with.
        prompt: The prompt that was replied to.
        reply: The reply's token ids, as generated.
        messages: The next messages; one, or several results of tools.

    Returns:
        The extended prompt, up to where the next reply begins.

    Raises:
        CheckpointError: When the decoder's chat template does not take such turns.
    """
    roles = [*template.roles, "assistant", *(role for role, _ in messages)]
    around = render_chat(checkpoint, roles, template.tools)[-len(messages) - 1 :]
    ending = template.markup_ids(around[0])
    ids = list(reply[:-1] if reply and reply[-1] in template.end_tokens else reply) + ending
    for (_, words), closing in zip(messages, around[1:], strict=True):
        ids += plain_ids(template.inert, words) + template.markup_ids(closing)
    return replace(prompt, token_ids=prompt.token_ids + ids)


def _turns(
    checkpoint: Checkpoint, template: PromptTemplate, messages: Sequence[ChatMessage]
) -> tuple[list[int], list[tuple[str, list[int]]]]:
    """Token ids before the first message's words; the words of each message, and the token ids after them."""
    if not messages:
        raise ValueError("There is no message to answer.")
    opening, *around = render_chat(checkpoint, [role for role, _ in messages])
    closings = [template.markup_ids(text) for text in around]
    words = [words for _, words in messages]
    return template.markup_ids(opening), list(zip(words, closings, strict=True))
