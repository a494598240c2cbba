"""What is learned from texts without a chat: how they go on after, and between, memories."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from lclm_rag.checkpoint import MEMORY_END, MEMORY_START, Checkpoint
from lclm_rag.prompting.template import PromptTemplate, plain_ids
from lclm_rag.training.blocks import Block, BlockBuilder
from lclm_rag.training.chats import check_marks

__all__ = ["continue_text", "distill_text", "interleave", "marked_text", "stretch"]


def continue_text(
    checkpoint: Checkpoint, template: PromptTemplate, text: str, rng: random.Random
) -> Block:
    """Learn how a text goes on after a compressed beginning, without a chat.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts.
        text: The text.
        rng: Draws where the beginning ends, between a quarter and three quarters of the words.

    Returns:
        The block.
    """
    return _alternating(checkpoint, template, "continue", _in_two(text, rng), True)


def distill_text(
    checkpoint: Checkpoint, template: PromptTemplate, text: str, rng: random.Random
) -> Block:
    """Learn to go on after a compressed beginning as the decoder does after the beginning as text.

    This needs neither questions nor answers: an encoder learns to read somebody's own corpus by it.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts.
        text: The text.
        rng: As for `continue_text`.

    Returns:
        The block, with the plain text as its teacher.
    """
    beginning, rest = _in_two(text, rng)
    ratio = checkpoint.config.compression_ratio
    teacher = BlockBuilder(template, ratio, "distill").given(plain_ids(template.inert, beginning))
    taught = teacher.said(plain_ids(template.inert, rest)).block()
    block = _alternating(checkpoint, template, "distill", [beginning, rest], True)
    return replace(block, teacher=taught)


def interleave(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    text: str,
    rng: random.Random,
    shortest: int = 16,
    longest: int = 128,
) -> Block:
    """Learn the plain stretches of a text that is compressed and plain by turns, without a chat.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts.
        text: The text.
        rng: Draws the stretches, and whether the first is compressed.
        shortest: Fewest words in a stretch; a shorter text is cut in its middle.
        longest: Most words in a stretch.

    Returns:
        The block.
    """
    cuts, at, places = _cuts(text), rng.randint(shortest, longest), [0]
    while at < len(cuts):
        places.append(cuts[at])
        at += rng.randint(shortest, longest)
    if len(places) == 1:
        places.append(cuts[len(cuts) // 2])
    stretches = [text[a:b] for a, b in zip(places, [*places[1:], len(text)], strict=True)]
    first = rng.random() < 0.5 or len(stretches) == 2
    return _alternating(checkpoint, template, "interleave", stretches, first)


def marked_text(checkpoint: Checkpoint, template: PromptTemplate, text: str) -> Block:
    """Learn all that is outside the memories of a text, but for its first token.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts.
        text: The text.

    Returns:
        The block.

    Raises:
        ValueError: When marks do not pair up, or there is nothing to learn.
    """
    check_marks(text)
    # Between two memories there is a stretch, though it may be empty.
    stretches = re.split(f"{re.escape(MEMORY_START)}|{re.escape(MEMORY_END)}", text)
    block = _alternating(checkpoint, template, "messages", stretches, False)
    if not any(block.learned):
        raise ValueError("The text has nothing outside its memories to learn.")
    return block


def stretch(text: str, share: float, rng: random.Random) -> str:
    """A part of a text, from one word's beginning to another's.

    Args:
        text: The text.
        share: How long it is, as a share of the words.
        rng: Draws where it begins.

    Returns:
        The part; "" if the text has too few words.
    """
    cuts = [0, *_cuts(text), len(text)] if len(text) > 1 else [0]
    words = int((len(cuts) - 1) * share)
    first = rng.randrange(len(cuts) - words)
    return text[cuts[first] : cuts[first + words]].strip()


def _alternating(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    objective: str,
    stretches: Sequence[str],
    compressed: bool,
) -> Block:
    """Stretches that are memories and plain by turns. The first token of all is not learned."""
    builder = BlockBuilder(template, checkpoint.config.compression_ratio, objective)
    for index, words in enumerate(stretches):
        if compressed:
            builder.memory(plain_ids(checkpoint.encoder_tokenizer, words))
        else:
            ids = plain_ids(template.inert, words)
            builder.given(ids[: index == 0]).said(ids[index == 0 :])
        compressed = not compressed
    return builder.block()


def _in_two(text: str, rng: random.Random) -> tuple[str, str]:
    """A beginning, of a quarter to three quarters of the words, and the rest."""
    cuts = _cuts(text)
    cut = cuts[rng.randint(len(cuts) // 4, len(cuts) * 3 // 4 - (len(cuts) > 1))]
    return text[:cut], text[cut:]


def _cuts(text: str) -> list[int]:
    """Where a text can be cut: before the space before a word; a single word, between any characters."""
    cuts = [match.start() for match in re.finditer(r"(?<=\S)\s+(?=\S)", text)]
    cuts = cuts or list(range(1, len(text)))
    if not cuts:
        raise ValueError("The text is too short to be cut in two.")
    return cuts
