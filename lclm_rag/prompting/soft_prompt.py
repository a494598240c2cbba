"""The soft prompt, which is all that a decoder sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lclm_rag.checkpoint import Space
from lclm_rag.types import PassageKey

if TYPE_CHECKING:
    import torch

__all__ = ["SoftPrompt", "Span"]


@dataclass(frozen=True)
class Span:
    """Where the latents of one passage are: positions [start, start + length).

    Attributes:
        start: The first position.
        length: The number of positions.
        key: The passage; None if the latents do not come from a store.
    """

    start: int
    length: int
    key: PassageKey | None = None


@dataclass(frozen=True)
class SoftPrompt:
    """Token ids, with placeholder ids where latents go, and those latents.

    Attributes:
        token_ids: Token ids of the decoder's tokenizer, one per position.
        latents: One tensor [span.length, width of `space`] per span, in the order of `spans`.
        spans: Where the latents go; in order, without overlap.
        space: "decoder", which every decoder takes, or "encoder", for decoders that have the adapter.
        cache_salt: Prompts with different salts never share cached prefixes; "" is no salt. One salt for each
            knowledge base keeps them apart from each other, and from other clients of a server: the key of
            vLLM's cache does not say which positions of a prompt are embeddings (vllm #56655). A server takes
            at most 128 characters, without `@`, slashes and NUL.

    Raises:
        ValueError: When spans and latents do not match, or a span overlaps another or ends after the prompt.
    """

    token_ids: list[int]
    latents: tuple[torch.Tensor, ...] = ()
    spans: tuple[Span, ...] = ()
    space: Space = "decoder"
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.spans):
            raise ValueError(
                f"{len(self.spans)} spans need as many latents, not {len(self.latents)}."
            )
        end = 0
        for span, latents in zip(self.spans, self.latents, strict=True):
            if latents.shape[0] != span.length or latents.ndim != 2:
                raise ValueError(
                    f"Span at {span.start} has {span.length} positions, its latents have shape "
                    f"{tuple(latents.shape)}."
                )
            if span.start < end or span.start + span.length > len(self.token_ids):
                raise ValueError(
                    f"Span at {span.start} overlaps another or ends behind the prompt."
                )
            end = span.start + span.length

    @property
    def positions(self) -> int:
        """Decoder positions that the prompt takes."""
        return len(self.token_ids)

    @property
    def latent_count(self) -> int:
        """How many of the positions are latents."""
        return sum(span.length for span in self.spans)
