"""What the authors of the published checkpoints measured, to see whether these are asked rightly."""

from __future__ import annotations

import tomllib
from importlib import resources

__all__ = ["published_scores"]


def published_scores(set_name: str) -> dict[str, float]:
    """The authors' scores of the 16× checkpoint from latents, by category.

    Args:
        set_name: The name of a set of questions, such as "ruler" or "lclm-eval/ruler".

    Returns:
        The scores, in percent; empty if the authors give none for this set.
    """
    file = resources.files("lclm_rag.evaluation.datasets") / "published.toml"
    found: dict[str, dict[str, float]] = tomllib.loads(file.read_text("utf-8"))
    return found.get(set_name.rpartition("/")[2], {})
