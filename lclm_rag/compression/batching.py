"""Batches of items of similar length, within a budget of padded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["batches_by_size"]


def batches_by_size(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group items into batches, largest first.

    Items of similar size share a batch, so there is little padding.

    Args:
        sizes: The size of each item.
        budget: Largest padded size of a batch. A larger item forms a batch by itself.

    Yields:
        Indexes into `sizes`, one list for each batch.
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
