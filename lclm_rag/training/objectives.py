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
from lclm_rag.training.examples import Chat, MarkedText, Question, Text
from lclm_rag.training.prompts import REPEAT, answer, copy_random, distill, expand, reconstruct
from lclm_rag.training.texts import continue_text, interleave, marked_text

__all__ = [
    "OBJECTIVES",
    "REPEAT",
    "Objective",
    "answer",
    "continue_text",
    "copy_random",
    "distill",
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


def _mixed(c: Checkpoint, t: PromptTemplate, q: Question, rng: random.Random) -> Block:
    """One or two passages are text, the others memories."""
    count = min(len(q.passages), rng.randint(1, 2))
    pasted = rng.sample(range(1, len(q.passages) + 1), count)
    return answer(c, t, q.passages, q.question, q.answer, pasted, "answer_mixed")


def _chat(c: Checkpoint, t: PromptTemplate, e: Chat | MarkedText, rng: random.Random) -> Block:
    return messages(c, t, e) if isinstance(e, Chat) else marked_text(c, t, e.text)


OBJECTIVES: dict[str, Objective] = {
    "reconstruct": Objective((Text,), lambda c, t, e, rng: reconstruct(c, t, e.text)),
    "continue": Objective((Text,), lambda c, t, e, rng: continue_text(c, t, e.text, rng)),
    "interleave": Objective((Text,), lambda c, t, e, rng: interleave(c, t, e.text, rng)),
    "copy_random": Objective((), lambda c, t, e, rng: copy_random(c, t, rng)),
    "answer": Objective(
        (Question,), lambda c, t, e, rng: answer(c, t, e.passages, e.question, e.answer)
    ),
    "answer_mixed": Objective((Question,), _mixed),
    "distill": Objective(
        (Question,), lambda c, t, e, rng: distill(c, t, e.passages, e.question, e.answer)
    ),
    "expand": Objective(
        (Question,), lambda c, t, e, rng: expand(c, t, e.passages, e.question, e.answer, e.number)
    ),
    "messages": Objective(
        (Chat, MarkedText),
        _chat,
    ),
}
"""The objectives, by the names that data sets of a recipe give. "answer_mixed" pastes one or two passages."""
