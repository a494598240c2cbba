"""Objectives: what is learned from an example. Each makes a block, the same one for the same random numbers.

Text outside memories is tokenized for the decoder, memories for the encoder. Special tokens in texts are
plain letters, but for the memory marks of `messages` and `marked_text`. Neither memories nor what a user says
are learned.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting.template import PromptTemplate
from lclm_rag.training.blocks import Block
from lclm_rag.training.chats import messages
from lclm_rag.training.examples import Chat, MarkedText, Questions, Text
from lclm_rag.training.prompts import REPEAT, answer, copy_random, distill, expand, reconstruct
from lclm_rag.training.texts import continue_text, distill_text, interleave, marked_text

__all__ = [
    "OBJECTIVES",
    "REPEAT",
    "Objective",
    "answer",
    "continue_text",
    "copy_random",
    "distill",
    "distill_text",
    "expand",
    "interleave",
    "marked_text",
    "messages",
    "reconstruct",
]


@dataclass(frozen=True)
class Objective:
    """An objective, by which a mixture makes blocks.

    Attributes:
        takes: The kinds of example that it takes; none if it needs no data.
        make: Checkpoint, template, example and random numbers → block.
    """

    takes: tuple[type[Any], ...]
    make: Callable[[Checkpoint, PromptTemplate, Any, random.Random], Block]


def _text(c: Checkpoint, t: PromptTemplate, q: Questions, rng: random.Random) -> Block:
    """All passages are text."""
    return answer(c, t, q, range(1, len(q.passages) + 1), "answer_text")


def _mixed(c: Checkpoint, t: PromptTemplate, q: Questions, rng: random.Random) -> Block:
    """One or two passages are text, the others memories: some that are to be asked for, if there are any."""
    named = sorted({ask.number for ask in q.asks if ask.number is not None})
    among = named or range(1, len(q.passages) + 1)
    pasted = rng.sample(among, min(len(among), rng.randint(1, 2)))
    return answer(c, t, q, pasted, "answer_mixed")


def _distill(c: Checkpoint, t: PromptTemplate, e: Questions | Text, rng: random.Random) -> Block:
    return distill(c, t, e) if isinstance(e, Questions) else distill_text(c, t, e.text, rng)


def _chat(c: Checkpoint, t: PromptTemplate, e: Chat | MarkedText, rng: random.Random) -> Block:
    return messages(c, t, e) if isinstance(e, Chat) else marked_text(c, t, e.text)


OBJECTIVES: dict[str, Objective] = {
    "reconstruct": Objective((Text,), lambda c, t, e, rng: reconstruct(c, t, e.text)),
    "continue": Objective((Text,), lambda c, t, e, rng: continue_text(c, t, e.text, rng)),
    "interleave": Objective((Text,), lambda c, t, e, rng: interleave(c, t, e.text, rng)),
    "copy_random": Objective((), lambda c, t, e, rng: copy_random(c, t, rng)),
    "copy_random_text": Objective((), lambda c, t, e, rng: copy_random(c, t, rng, pasted=True)),
    "answer": Objective((Questions,), lambda c, t, e, rng: answer(c, t, e)),
    "answer_text": Objective((Questions,), _text),
    "answer_mixed": Objective((Questions,), _mixed),
    "distill": Objective((Questions, Text), _distill),
    "expand": Objective((Questions,), lambda c, t, e, rng: expand(c, t, e)),
    "messages": Objective((Chat, MarkedText), _chat),
}
"""The objectives, by the names that data sets of a recipe give. "answer_mixed" pastes one or two passages;
those that end in "_text" paste all of them, so that a decoder learns to read before there are latents."""
