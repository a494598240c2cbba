"""How sure a mean of scores is, and a difference between two series of them.

- Shares of right answers: the interval of Wilson (1927, https://doi.org/10.1080/01621459.1927.10502953),
  which has a width also where none or all are right.
- Other means, and differences question by question: the percentile bootstrap (Efron and Tibshirani 1993,
  chapter 13) over groups of questions. Questions about one document tend to be right or wrong together, so
  documents are drawn, not questions.
- Which of two is right more often: McNemar's test (1947, https://doi.org/10.1007/BF02295996), exact.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

__all__ = [
    "Difference",
    "bootstrap_interval",
    "mcnemar",
    "mean_interval",
    "paired_difference",
    "wilson_interval",
]

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
        p: How likely a split as uneven as `better` against `worse` is by chance: the two-sided p of
            McNemar's exact test (for scores between 0 and 1, of the sign test). It takes questions for
            independent.
        of: The number of questions.
    """

    mean: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    of: int


def wilson_interval(right: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a share, by Wilson's score method: 0 of 40 is 0 to 0.088.

    Args:
        right: How many are right, from 0 to `of`.
        of: How many there are, at least 1.
        confidence: The interval's confidence level, between 0 and 1.

    Returns:
        The lower and the upper end of the interval.

    Raises:
        ValueError: When an argument is out of range.
    """
    if not 0 <= right <= of or of < 1 or not 0 < confidence < 1:
        raise ValueError(
            "A share is one of 0 to n right, n at least 1; its confidence lies between 0 and 1."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrunk = right / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / shrunk
    half = z / shrunk * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    # At 0 and n the end is exact; rounding would leave it a little off.
    low = 0.0 if right == 0 else middle - half
    return low, 1.0 if right == of else middle + half


def mcnemar(better: int, worse: int) -> float:
    """The two-sided p of McNemar's exact test.

    Args:
        better: How many questions only the one gets right.
        worse: How many questions only the other gets right.

    Returns:
        The probability that a fair coin, tossed `better + worse` times, splits at least as unevenly; 1
        without a toss.

    Raises:
        ValueError: When a count is negative.
    """
    if better < 0 or worse < 0:
        raise ValueError("McNemar's test takes two counts.")
    tosses = better + worse
    tail = sum(math.comb(tosses, heads) for heads in range(min(better, worse) + 1))
    # Whole numbers: as a float, 2**-tosses is 0 beyond a thousand tosses.
    return min(1.0, 2 * tail / (1 << tosses))


def bootstrap_interval(
    values: Sequence[float],
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """The confidence interval of the mean, by the percentile bootstrap.

    Args:
        values: The scores, at least one, all finite.
        seed: The same seed gives the same interval.
        resamples: How many samples to draw, at least 1.
        confidence: The interval's confidence level, between 0 and 1.
        groups: The group of each value, such as the document that a question is about; groups are drawn, each
            with all of its values. None: each value is drawn by itself.

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
    sums, counts = _by_group(sample, groups)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _RESAMPLED_AT_ONCE // len(sums))
    for start in range(0, resamples, rows):
        part = means[start : start + rows]
        drawn = rng.integers(0, len(sums), size=(len(part), len(sums)))
        part[:] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_interval(
    values: Sequence[float], seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """The 95% interval of a mean of scores from 0 to 1: Wilson's if each is 0 or 1, else the bootstrap's.

    Args:
        values: The scores, at least one.
        seed: Seed of the bootstrap.
        groups: As for `bootstrap_interval`.

    Raises:
        ValueError: As `bootstrap_interval` raises it.
    """
    if values and all(value in (0, 1) for value in values):
        return wilson_interval(round(sum(values)), len(values))
    return bootstrap_interval(values, seed, groups=groups)


def paired_difference(
    a: Sequence[float], b: Sequence[float], seed: int, groups: Sequence[Hashable] | None = None
) -> Difference:
    """Scores `a` minus scores `b`, question by question, with the 95% interval of the mean.

    If no question differs, nothing can be drawn; the interval then ends where Wilson's of 0 in so many groups
    does, on both sides.

    Args:
        a: A score for each question.
        b: The scores to compare with, for the same questions in the same order.
        seed: Seed of the bootstrap.
        groups: As for `bootstrap_interval`.

    Raises:
        ValueError: When `a` and `b` have different lengths or are empty.
    """
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} and {len(b)} scores cannot be paired; score the same questions."
        )
    differences = np.subtract(a, b, dtype=np.float64)
    low, high = bootstrap_interval(differences.tolist(), seed, groups=groups)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    if not better and not worse:
        _, high = wilson_interval(0, len(set(groups)) if groups else len(differences))
        low = -high
    return Difference(
        mean=float(differences.mean()),
        low=low,
        high=high,
        better=better,
        worse=worse,
        p=mcnemar(better, worse),
        of=len(differences),
    )


def _by_group(
    sample: np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the number of the values of each group."""
    if groups is None:
        return sample, np.ones(len(sample))
    if len(groups) != len(sample):
        raise ValueError(f"{len(sample)} values need as many groups, not {len(groups)}.")
    numbers: dict[Hashable, int] = {}
    of_each = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(of_each, weights=sample), np.bincount(of_each).astype(np.float64)
