"""Prompts that contain `<|memory_start|>text<|memory_end|>` themselves, as in the paper's own code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lclm_rag.checkpoint import MEMORY_END, MEMORY_START, Checkpoint, Space
from lclm_rag.checks import check_unicode
from lclm_rag.prompting.soft_prompt import SoftPrompt, Span
from lclm_rag.prompting.template import PromptTemplate

if TYPE_CHECKING:
    import torch

__all__ = ["MarkupPrompt", "memory_regions", "parse_markup", "without_marks", "without_memories"]

_MEMORY = re.compile(re.escape(MEMORY_START) + "(.*?)" + re.escape(MEMORY_END), re.DOTALL)


def memory_regions(rendered: str) -> list[str]:
    """The texts between memory marks."""
    return [match.group(1) for match in _MEMORY.finditer(rendered)]


def without_marks(rendered: str) -> str:
    """The prompt with its memory regions as plain text."""
    return rendered.replace(MEMORY_START, "").replace(MEMORY_END, "")


def without_memories(rendered: str) -> str:
    """The prompt with its memory regions removed."""
    return _MEMORY.sub("", rendered)


@dataclass(frozen=True)
class MarkupPrompt:
    """A prompt cut into plain stretches and memory regions.

    Attributes:
        token_ids: Token ids, with placeholders where latents go.
        memories: Encoder token ids of each memory region.
        spans: Where the latents of each region go.
    """

    token_ids: list[int]
    memories: list[list[int]]
    spans: tuple[Span, ...]

    def with_latents(self, latents: Sequence[torch.Tensor], space: Space) -> SoftPrompt:
        """Fill the memory regions with their latents.

        Args:
            latents: The latents of each region, [n_latents, width of `space`].
            space: The space of the latents.

        Returns:
            The soft prompt.
        """
        return SoftPrompt(self.token_ids, tuple(latents), self.spans, space)


def parse_markup(rendered: str, checkpoint: Checkpoint, template: PromptTemplate) -> MarkupPrompt:
    """Cut the memory regions out of a prompt that the chat template has already rendered.

    Special tokens are recognized everywhere, as in the paper's code: here the caller writes the markup.

    Args:
        rendered: The rendered prompt.
        checkpoint: The checkpoint whose encoder reads the regions.
        template: The template of the decoder's prompts.

    Returns:
        The prompt, ready for the latents.

    Raises:
        ValueError: When a region is empty, its marks do not pair up, or the prompt is not valid Unicode.
    """
    check_unicode(rendered, "The prompt")
    regions, rest = memory_regions(rendered), without_memories(rendered)
    if MEMORY_START in rest or MEMORY_END in rest:
        raise ValueError(f"The prompt has a {MEMORY_START} or {MEMORY_END} without its partner.")
    for region in regions:
        if not region.strip():
            raise ValueError(f"The prompt has nothing between {MEMORY_START} and {MEMORY_END}.")
    memories = [
        checkpoint.encoder_markup_tokenizer.encode(region, add_special_tokens=False).ids
        for region in regions
    ]
    counts = iter([-(-len(ids) // checkpoint.config.compression_ratio) for ids in memories])
    token_ids: list[int] = []
    spans: list[Span] = []
    for index, piece in enumerate(_MEMORY.split(rendered)):
        if index % 2 == 0:
            token_ids += template.markup.encode(piece, add_special_tokens=False).ids
            continue
        count = next(counts)
        spans.append(Span(len(token_ids) + 1, count))
        token_ids += template.memory_span(count)
    return MarkupPrompt(token_ids, memories, tuple(spans))
