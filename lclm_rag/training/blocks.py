"""Blocks: what an objective makes of an example, and what a batch is packed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

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
        tails: The lengths of the last parts, if each of these sees itself and all that is before the first of
            them, but not the others: as if each were a block of its own with the same beginning, which is
            computed once. Empty for a plain sequence.
        teacher: For distillation: the same sequence with its memories as text. It learns as many tokens, in
            the same order; the decoder's own distribution over them is the target. None learns the tokens.
    """

    token_ids: tuple[int, ...]
    learned: tuple[bool, ...]
    memories: tuple[tuple[int, ...], ...]
    objective: str
    tails: tuple[int, ...] = ()
    teacher: Block | None = None

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.learned):
            raise ValueError("A block says of each of its tokens whether it is learned.")
        if self.learned and self.learned[0]:
            raise ValueError("The first token of a block has nothing before it to be learned from.")
        if self.tails and (sum(self.tails) >= len(self.token_ids) or min(self.tails) < 1):
            raise ValueError(
                "The tails of a block need something before them, and at least a token."
            )
        if any(self.learned[start] for start in self.starts[1:]):
            raise ValueError("The first token of a tail is not learned: it is given.")
        if self.teacher is not None and sum(self.teacher.learned) != sum(self.learned):
            raise ValueError("A block and its teacher must learn as many tokens.")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def starts(self) -> list[int]:
        """Where the block begins, and each of its tails."""
        context = len(self.token_ids) - sum(self.tails)
        return [0, *accumulate(self.tails[:-1], initial=context)] if self.tails else [0]


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
    _tails: list[int] = field(default_factory=list)

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

    def tail(self) -> BlockBuilder:
        """Begin a tail, which sees what was appended before the first one, and itself."""
        self._tails.append(len(self._token_ids))
        return self

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
            tuple(end - start for start, end in pairwise([*self._tails, len(self._token_ids)])),
            teacher,
        )

    def _append(self, token_ids: Sequence[int], learned: bool) -> BlockBuilder:
        self._token_ids += token_ids
        self._learned += [learned] * len(token_ids)
        return self
