"""Confidence intervals for the mean of many scores.

The intervals are percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13) of the mean, and of
the mean of paired differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Difference", "bootstrap_interval", "paired_difference"]

_RESAMPLED_AT_ONCE = 1 << 22
"""Values to draw at once: 32 MiB of indices."""


@dataclass(frozen=True)
class Difference:
    """The difference between two series of scores over the same questions.

    Attributes:
        mean: The mean of the differences.
        low: The lower end of the mean's interval.
        high: The upper end of the mean's interval.
        better: The number of questions whose score is higher.
        worse: The number of questions whose score is lower.
    """

    mean: float
    low: float
    high: float
    better: int
    worse: int


def bootstrap_interval(
    values: Sequence[float], seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """The confidence interval of the mean, by the percentile bootstrap.

    Args:
        values: The scores, at least one, all finite.
        seed: The same seed gives the same interval.
        resamples: How many samples to draw, at least 1.
        confidence: The interval's confidence level, between 0 and 1.

    Returns:
        The lower and the upper end of the interval.

    Raises:
        ValueError: When there are no values, one of them is not finite, or an argument is out of range.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise ValueError("An interval is taken of one or more numbers.")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError("An interval needs a confidence between 0 and 1, and resamples.")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _RESAMPLED_AT_ONCE // len(sample))
    for start in range(0, resamples, rows):
        part = means[start : start + rows]
        drawn = rng.integers(0, len(sample), size=(len(part), len(sample)))
        part[:] = sample[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int) -> Difference:
    """Scores `a` minus scores `b`, question by question, with the 95% interval of the mean.

    Args:
        a: A score for each question.
        b: The scores to compare with, for the same questions in the same order.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: When `a` and `b` have different lengths or are empty.
    """
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} and {len(b)} scores cannot be paired; score the same questions."
        )
    differences = np.subtract(a, b, dtype=np.float64)
    low, high = bootstrap_interval(differences.tolist(), seed)
    return Difference(
        mean=float(differences.mean()),
        low=low,
        high=high,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
    )
