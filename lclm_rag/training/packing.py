"""Blocks → a batch without padding: blocks in one row, memories in another, none seeing its neighbors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from lclm_rag.checkpoint import ModelConfig
from lclm_rag.compression.attention import Seen
from lclm_rag.compression.windows import Windows, cut_windows, places
from lclm_rag.training.blocks import Block

__all__ = ["Batch", "Row", "group_by_budget", "pack"]


@dataclass(frozen=True)
class Row:
    """Blocks one after another, as the decoder reads them.

    Attributes:
        token_ids: int64 [positions].
        positions: int64 [positions], each position's place in its block; those of a tail go on where what it
            sees ends.
        lengths: The number of positions of each sequence: a block, or what is before its tails, or a tail.
        seen: What each sequence sees if blocks have tails; None if each sees itself.
        learned: int64 [learned]: where the learned tokens are.
        holes: int64 [latents]: where latents take the place of token embeddings.
        windows: What the encoder reads for these latents; None if there are none.
        latents: The number of latents of each memory.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    lengths: list[int]
    seen: Seen | None
    learned: torch.Tensor
    holes: torch.Tensor
    windows: Windows | None
    latents: list[int]


@dataclass(frozen=True)
class Batch:
    """What one pass of the model computes.

    Attributes:
        row: The blocks.
        objectives: For each learned token, the objective of its block, as an index into `names`: int64.
        names: The names of the objectives.
        teacher: The teachers of the blocks that have one; None if none has.
        taught: int64 [learned tokens of the teachers]: which learned tokens of `row` they teach.
    """

    row: Row
    objectives: torch.Tensor
    names: tuple[str, ...]
    teacher: Row | None
    taught: torch.Tensor


def pack(
    blocks: Sequence[Block], config: ModelConfig, placeholder: int, marker_id: int | None = None
) -> Batch:
    """Pack blocks into a batch.

    Args:
        blocks: The blocks; at least one.
        config: The checkpoint's windows, overlap and ratio.
        placeholder: The token at each position that a latent takes.
        marker_id: The token that `eos` pooling appends for each latent; None for other poolings.

    Returns:
        The batch, on the CPU.
    """
    names = tuple(dict.fromkeys(block.objective for block in blocks))
    objectives = [
        index for block in blocks for index in [names.index(block.objective)] * sum(block.learned)
    ]
    taught: list[int] = []
    start = 0
    for block in blocks:
        count = sum(block.learned)
        if block.teacher is not None:
            taught += range(start, start + count)
        start += count
    teachers = [block.teacher for block in blocks if block.teacher is not None]
    return Batch(
        row=_row(blocks, config, placeholder, marker_id),
        objectives=torch.tensor(objectives, dtype=torch.int64),
        names=names,
        teacher=_row(teachers, config, placeholder, marker_id) if teachers else None,
        taught=torch.tensor(taught, dtype=torch.int64),
    )


def group_by_budget(blocks: Sequence[Block], budget: int) -> list[list[Block]]:
    """Share out blocks among batches of at most `budget` decoder positions, in their order.

    Args:
        blocks: The blocks.
        budget: Most positions in a batch; a longer block is a batch of its own.

    Returns:
        The blocks of each batch.
    """
    groups: list[list[Block]] = []
    room = 0
    for block in blocks:
        if not groups or len(block) > room:
            groups.append([])
            room = budget
        groups[-1].append(block)
        room -= len(block)
    return groups


def _sequences(
    blocks: Sequence[Block],
) -> tuple[list[int], np.ndarray[Any, np.dtype[np.int64]], Seen | None]:
    """The length of each sequence, each position's place, and what each sequence sees."""
    lengths: list[int] = []
    before: list[int] = []
    keys: list[range] = []
    start = 0
    for block in blocks:
        context = len(block) - sum(block.tails)
        lengths += [context, *block.tails]
        before += [0, *[context] * len(block.tails)]
        keys.append(range(start, start + context))
        for first, length in zip(block.starts[1:], block.tails, strict=True):
            keys += [
                range(start, start + context),
                range(start + first, start + first + length),
            ]
        start += len(block)
    shifts = np.repeat(np.array(before, np.int64), lengths)
    positions = places(np.array(lengths, np.int64)) + shifts
    if not any(before):
        return lengths, positions, None
    seen = Seen(
        torch.tensor([*chain.from_iterable(keys)]),
        [length + context for length, context in zip(lengths, before, strict=True)],
    )
    return lengths, positions, seen


def _row(
    blocks: Sequence[Block], config: ModelConfig, placeholder: int, marker_id: int | None
) -> Row:
    token_ids = torch.tensor(list(chain.from_iterable(b.token_ids for b in blocks)))
    learned = torch.tensor(list(chain.from_iterable(b.learned for b in blocks)))
    lengths, places_, seen = _sequences(blocks)
    memories = [memory for block in blocks for memory in block.memories]
    holes = (token_ids == placeholder).nonzero()[:, 0]
    counts = [-(-len(memory) // config.compression_ratio) for memory in memories]
    if len(holes) != sum(counts):
        raise ValueError(
            f"The blocks have room for {len(holes)} latents, and memories that make {sum(counts)}."
        )
    return Row(
        token_ids=token_ids,
        positions=torch.from_numpy(places_),
        lengths=lengths,
        seen=seen,
        learned=learned.nonzero()[:, 0],
        holes=holes,
        windows=cut_windows(memories, config, marker_id) if memories else None,
        latents=counts,
    )
