"""Passages and a question → soft prompt, within a budget of decoder positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from lclm_rag.checkpoint import Space
from lclm_rag.errors import ContextLengthError
from lclm_rag.prompting.soft_prompt import SoftPrompt, Span
from lclm_rag.prompting.template import PromptEnds, PromptTemplate, plain_ids
from lclm_rag.types import PassageKey

if TYPE_CHECKING:
    import torch

__all__ = [
    "AssembledPrompt",
    "Context",
    "Order",
    "PromptPassage",
    "assemble",
    "check_order",
    "positions",
]

Context = Literal["latents", "text", "none"]
"""What a question is answered from: passages as latents, the same pasted, or nothing (closed book)."""

Order = Literal["key", "best_first", "best_last", "given"]
"""The order of passages in a prompt: by document and place in it, so that the same passages give the same
prefix whatever the question; by rank; or as a caller lists those that it has picked. Retrieved passages are
listed best first."""


def check_order(order: str) -> None:
    """Check that there is such an order.

    Args:
        order: The order.

    Raises:
        ValueError: When there is none.
    """
    if order not in get_args(Order):
        raise ValueError(f"Unknown order {order!r}; use {', '.join(get_args(Order))}.")


@dataclass(frozen=True)
class PromptPassage:
    """A passage to put into a prompt, as latents or as text.

    Attributes:
        key: Identifies the passage in the prompt and determines its place in it.
        text: The passage's text.
        latents: Its latents, [n, width]; None puts it in as text.
        stored: Its key in the store, if its latents are still to be read from there.
    """

    key: PassageKey
    text: str
    latents: torch.Tensor | None = None
    stored: PassageKey | None = None

    def as_text(self) -> PromptPassage:
        """The same passage, to be put in as text."""
        return replace(self, latents=None, stored=None)


@dataclass(frozen=True)
class AssembledPrompt:
    """A prompt, and which passages are in it.

    Attributes:
        prompt: The prompt.
        used: Keys of the passages in the prompt, in their order.
        left_out: Keys of the passages that did not fit.
    """

    prompt: SoftPrompt
    used: tuple[PassageKey, ...]
    left_out: tuple[PassageKey, ...]


def assemble(
    template: PromptTemplate,
    passages: Sequence[PromptPassage],
    ends: PromptEnds,
    budget: int,
    space: Space = "decoder",
    cache_salt: str = "",
    order: Order = "key",
) -> AssembledPrompt:
    """Build a prompt: passages, between what comes before and after them.

    Args:
        template: The fixed parts of the prompt.
        passages: The passages, best first; they are taken as long as they fit.
        ends: What comes before and after the passages.
        budget: Most positions in the prompt.
        space: The space of the passages' latents.
        cache_salt: As in `SoftPrompt`.
        order: The order of the passages in the prompt.

    Returns:
        The prompt, with the keys of the passages that are in it and of those that did not fit.

    Raises:
        ContextLengthError: When the question alone, or with the best passage, does not fit.
    """
    before = len(ends.before) + len(plain_ids(template.inert, ends.lead))
    room = budget - before - len(ends.after)
    if room < 0:
        raise ContextLengthError(
            f"The question takes {len(ends.after)} tokens; with the {before} before the "
            f"passages that is more than the {budget} positions there are. Shorten it."
        )
    bodies = [_body(template, passage) for passage in passages]
    taken = 0
    for number, body in enumerate(bodies, start=1):
        # A passage's place is not known yet, but n passages have the marks 1 … n in any order.
        needed = len(body) + template.marks_length(ends.lead, number)
        if needed > room:
            break
        room -= needed
        taken += 1
    if passages and not taken:
        raise ContextLengthError(
            f"Passage {passages[0].key} takes {len(bodies[0])} positions, more than the {room} that the "
            "question leaves. Raise the budget, or build the knowledge base with smaller passages."
        )
    places = list(range(taken))
    if order == "key":
        places.sort(key=lambda i: passages[i].key)
    elif order == "best_last":
        places.reverse()
    context, starts = template.context(ends, [bodies[i] for i in places])
    spans, latents = [], []
    for i, start in zip(places, starts, strict=True):
        found = passages[i].latents
        if found is not None:
            # The span's first position comes after <|memory_start|>.
            spans.append(Span(start + 1, len(found), passages[i].key))
            latents.append(found)
    for offset, found in ends.memories:
        spans.append(Span(len(context) + offset, len(found)))
        latents.append(found)
    return AssembledPrompt(
        prompt=SoftPrompt(context + ends.after, tuple(latents), tuple(spans), space, cache_salt),
        used=tuple(passages[i].key for i in places),
        left_out=tuple(p.key for p in passages[taken:]),
    )


def positions(template: PromptTemplate, passage: PromptPassage) -> int:
    """Count the decoder positions that a passage takes, without its mark.

    Args:
        template: The fixed parts of the prompt.
        passage: The passage.

    Returns:
        The number of positions.
    """
    return len(_body(template, passage))


def _body(template: PromptTemplate, passage: PromptPassage) -> list[int]:
    if passage.latents is None:
        return plain_ids(template.inert, passage.text)
    return template.memory_span(len(passage.latents))
