"""One question, and how it is to be answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from lclm_rag.decoding import Sampling
from lclm_rag.prompting import Context
from lclm_rag.querying.expansion import Expand, check_expand
from lclm_rag.retrieval import Filter, as_filter
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["Query"]


@dataclass(frozen=True)
class Query:
    """What `KnowledgeBase.query` takes, checked."""

    question: str
    top_k: int
    filters: Filter | None
    context: Context
    expand: Expand
    sampling: Sampling

    @classmethod
    def of(
        cls,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Query:
        """Raises ValueError where one of them is not possible."""
        if context not in get_args(Context):
            raise ValueError(f"Unknown context {context!r}; use {', '.join(get_args(Context))}.")
        if not question.strip():
            raise ValueError("The question is empty.")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}.")
        check_expand(expand)
        # Only latents can be expanded.
        expand = expand if context == "latents" else "never"
        return cls(question, top_k, as_filter(filters), context, expand, sampling or Sampling())
