"""Training data: mixtures of sources, which give each step its blocks.

What a step has depends on the seed and the step's number alone: a run that resumes needs no state of a
loader, and processes share out the blocks that one would have.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.errors import CorpusError
from lclm_rag.prompting.template import PromptTemplate
from lclm_rag.training.blocks import Block
from lclm_rag.training.examples import Example, Text
from lclm_rag.training.objectives import OBJECTIVES
from lclm_rag.training.shuffling import Order, key_of
from lclm_rag.training.sources import GROUPS, Source
from lclm_rag.training.texts import stretch

__all__ = ["Mixture", "Part", "Source", "read_mixture"]

_log = logging.getLogger(__name__)

_CYCLE = 4096
"""Draws in which each part of a mixture has its share; the next ones are like them."""
_TRIES = 8


@dataclass(frozen=True)
class Part:
    """A part of a mixture.

    Attributes:
        objective: What is learned, one of `OBJECTIVES`.
        source: Where examples come from; None for objectives that need none.
        weight: Its share of the blocks, beside the weights of other parts.
    """

    objective: str
    source: Source | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"Unknown objective {self.objective!r}; use {', '.join(OBJECTIVES)}.")
        if bool(OBJECTIVES[self.objective].takes) != (self.source is not None):
            needs = "needs a source" if self.source is None else "takes no source"
            raise ValueError(f"The objective {self.objective} {needs}.")
        if not self.weight > 0:
            raise ValueError(f"A weight must be above 0, not {self.weight}.")


@dataclass(frozen=True)
class Mixture:
    """Parts, and how many blocks of them make a step.

    Each part goes through its source in a random order, and begins anew, in another order, when all records
    have come once.

    Attributes:
        checkpoint: The checkpoint that blocks are made for.
        template: The template of its decoder's prompts.
        parts: The parts.
        seed: What order and choice depend on.
        per_step: How many examples are drawn in a step, by all processes together.
        on_error: What happens at a record that no block can be made of: "fail" raises CorpusError, "skip"
            logs a warning and goes on.
        counts: How many examples of each objective were "cut", "refused" as too long, or "bad", in this
            process; by objective and word.
    """

    checkpoint: Checkpoint
    template: PromptTemplate
    parts: tuple[Part, ...]
    seed: int
    per_step: int
    on_error: Literal["fail", "skip"] = "fail"
    counts: Counter[tuple[str, str]] = field(default_factory=Counter, compare=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.parts) <= _CYCLE or self.per_step < 1:
            raise ValueError("A mixture needs at least one part, and one block in a step.")

    def blocks(self, step: int, rank: int, world: int, budget_tokens: int) -> list[Block]:
        """Make the blocks of one step for one process.

        The blocks of all processes, one after another, are those that a single process would have. A text
        whose block is too long is cut: a stretch of it, from a random place on, is learned. Questions and
        chats are refused if they are too long, so the step has a block less. `counts` has the number of both.

        Args:
            step: The step, from 0.
            rank: The process.
            world: How many processes there are.
            budget_tokens: Most decoder positions of a block, and of its teacher.

        Returns:
            The blocks, at most `per_step`.

        Raises:
            CorpusError: When no block can be made of a record, with `on_error="fail"`.
        """
        if not 0 <= rank < world or step < 0:
            raise ValueError(f"There is no process {rank} of {world}, or no step {step}.")
        first, last = (step * self.per_step + self.per_step * r // world for r in (rank, rank + 1))
        made = (self._block(number, budget_tokens) for number in range(first, last))
        return [block for block in made if block is not None]

    def drawn(self, number: int) -> tuple[int, int | None]:
        """Find what is drawn.

        Args:
            number: Which draw, from 0, counted over all steps and processes.

        Returns:
            The index of the part, and that of the record in its source, or None if it has no source.
        """
        cycle, place = divmod(number, _CYCLE)
        index, before = self._cycle[place]
        source = self.parts[index].source
        if source is None:
            return index, None
        epoch, among = divmod(cycle * self._quotas[index] + before, len(source))
        order = _order(source.groups, key_of(self.seed, index, epoch))
        return index, order[among]

    @cached_property
    def _quotas(self) -> list[int]:
        """Draws of each part in a cycle, at least 1."""
        total, room = sum(part.weight for part in self.parts), _CYCLE - len(self.parts)
        exact = [part.weight / total * room for part in self.parts]
        quotas = [int(share) for share in exact]
        by_rest = sorted(range(len(exact)), key=lambda i: (quotas[i] - exact[i], i))
        for i in by_rest[: room - sum(quotas)]:
            quotas[i] += 1
        return [quota + 1 for quota in quotas]

    @cached_property
    def _cycle(self) -> list[tuple[int, int]]:
        """For each draw of a cycle: its part, and how many draws before it are of that part."""
        drawn = [i for i, quota in enumerate(self._quotas) for _ in range(quota)]
        random.Random(key_of(self.seed, "cycle")).shuffle(drawn)
        before: Counter[int] = Counter()
        cycle = []
        for index in drawn:
            cycle.append((index, before[index]))
            before[index] += 1
        return cycle

    def _block(self, number: int, budget: int) -> Block | None:
        index, record = self.drawn(number)
        part = self.parts[index]
        rng = random.Random(key_of(self.seed, "draw", number))
        try:
            if part.source is None or record is None:
                return self._fitting(part.objective, None, rng, budget)
            example = part.source[record]
            try:
                return self._fitting(part.objective, example, rng, budget)
            except ValueError as error:
                raise CorpusError(f"{part.source.place(record)}: {error}") from error
        except CorpusError as error:
            if self.on_error == "fail":
                raise
            _log.warning("%s", error)
            self.counts[part.objective, "bad"] += 1
            return None

    def _fitting(
        self, name: str, example: Example | None, rng: random.Random, budget: int
    ) -> Block | None:
        """The block of an example, cut if it is a text; None if it is refused."""
        objective = OBJECTIVES[name]
        if example is not None and not isinstance(example, objective.takes):
            kinds = " or ".join(kind.__name__ for kind in objective.takes)
            raise ValueError(
                f"The objective {name} takes a {kinds}, and the record is a {type(example).__name__}."
            )
        for tried in range(_TRIES):  # A stretch has more tokens than its share at times.
            block = objective.make(self.checkpoint, self.template, example, rng)
            size = max(len(block), len(block.teacher or ()))
            if size <= budget:
                if tried:
                    self.counts[name, "cut"] += 1
                return block
            if not isinstance(example, Text):
                break
            words = stretch(example.text, budget / size * 0.95, rng)
            if len(words) < 2:
                break
            example = Text(words)
        self.counts[name, "refused"] += 1
        return None


def read_mixture(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    data: Sequence[Mapping[str, Any]],
    seed: int,
    per_step: int,
    on_error: Literal["fail", "skip"] = "fail",
) -> Mixture:
    """Open the data of a recipe's stage.

    Args:
        checkpoint: As for `Mixture`.
        template: As for `Mixture`.
        data: For each part its `objective`, its `source` as `Source.open` takes it, and its `weight`.
        seed: As for `Mixture`.
        per_step: As for `Mixture`.
        on_error: As for `Mixture`.

    Returns:
        The mixture.

    Raises:
        ValueError: When an entry is not valid.
        CorpusError: As for `Source.open`.
    """
    opened: dict[str, Source] = {}
    parts = []
    for entry in data:
        unknown = sorted(entry.keys() - {"objective", "source", "weight"})
        if unknown:
            raise ValueError(f"Unknown entry {unknown[0]!r}; data has objective, source, weight.")
        name = entry.get("source")
        if name is not None and name not in opened:
            opened[name] = Source.open(name)
        # Each part goes its own way through the files, and keeps row groups of its own in memory.
        source = None if name is None else Source(opened[name].name, opened[name].files)
        parts.append(Part(str(entry.get("objective")), source, entry.get("weight", 1.0)))
    return Mixture(checkpoint, template, tuple(parts), seed, per_step, on_error)


@lru_cache(64)
def _order(sizes: tuple[int, ...], key: int) -> Order:
    return Order.of(sizes, key, GROUPS)
