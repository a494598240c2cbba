"""Blocks: what an objective makes of an example, and what a batch is packed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lclm_rag.prompting.template import PromptTemplate

__all__ = ["Block", "BlockBuilder"]


@dataclass(frozen=True)
class Block:
    """One sequence of decoder positions, and what is learned in it.

    Attributes:
        token_ids: Decoder token ids, with placeholders (`<|memory|>`) where latents go.
        learned: For each position, whether its token is learned, from all positions before it. The first
            position, memory spans and what a user says are not learned.
        memories: Encoder token ids of each memory span, in their order.
        objective: The name of the objective that made it; losses are reported by it.
        teacher: For distillation: the same sequence with its memories as text. It learns as many tokens, in
            the same order; the decoder's own distribution over them is the target. None learns the tokens.
    """

    token_ids: tuple[int, ...]
    learned: tuple[bool, ...]
    memories: tuple[tuple[int, ...], ...]
    objective: str
    teacher: Block | None = None

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.learned):
            raise ValueError("A block says of each of its tokens whether it is learned.")
        if self.learned and self.learned[0]:
            raise ValueError("The first token of a block has nothing before it to be learned from.")
        if self.teacher is not None and sum(self.teacher.learned) != sum(self.learned):
            raise ValueError("A block and its teacher must learn as many tokens.")

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass
class BlockBuilder:
    """Builds a block from left to right.

    Attributes:
        template: The template of the decoder's prompts.
        ratio: Encoder tokens that one latent stands for.
        objective: The name of the objective.
    """

    template: PromptTemplate
    ratio: int
    objective: str
    _token_ids: list[int] = field(default_factory=list)
    _learned: list[bool] = field(default_factory=list)
    _memories: list[tuple[int, ...]] = field(default_factory=list)

    def given(self, token_ids: Sequence[int]) -> BlockBuilder:
        """Append tokens that are not learned."""
        return self._append(token_ids, False)

    def said(self, token_ids: Sequence[int]) -> BlockBuilder:
        """Append tokens that are learned."""
        return self._append(token_ids, True)

    def memory(self, token_ids: Sequence[int]) -> BlockBuilder:
        """Append a memory span.

        Args:
            token_ids: Encoder token ids of what it stands for; at least one.
        """
        if not token_ids:
            raise ValueError("A memory stands for at least one token.")
        self._memories.append(tuple(token_ids))
        return self.given(self.template.memory_span(-(-len(token_ids) // self.ratio)))

    def block(self, teacher: Block | None = None) -> Block:
        """The block so far.

        Args:
            teacher: As in `Block`.
        """
        return Block(
            tuple(self._token_ids),
            tuple(self._learned),
            tuple(self._memories),
            self.objective,
            teacher,
        )

    def _append(self, token_ids: Sequence[int], learned: bool) -> BlockBuilder:
        self._token_ids += token_ids
        self._learned += [learned] * len(token_ids)
        return self
