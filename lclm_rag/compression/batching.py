"""Batches of similar length, by a budget of padded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["batches_by_size"]


def batches_by_size(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indexes of `sizes`, largest first, in batches whose padded size is at most `budget`.

    Neighbours in size share a batch, so little is padding. An item larger than the budget is a batch of
    its own.
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True)
    batch: list[int] = []
    for index in order:
        if batch and sizes[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
