"""What the components share: a knowledge base, given open or by its folder, and arguments that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lclm_rag.knowledge_base import KnowledgeBase
from lclm_rag.types import DEFAULT_TOP_K

__all__ = ["OverKnowledgeBase", "renamed"]


class OverKnowledgeBase(BaseModel):
    """A component over a knowledge base."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    knowledge_base: KnowledgeBase
    top_k: int = Field(default=DEFAULT_TOP_K, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = renamed(cls.__name__, given, set(cls.model_fields))
        named = given.get("knowledge_base")
        if isinstance(named, str | Path):
            given["knowledge_base"] = KnowledgeBase.open(named)
        return given


def renamed(taker: str, given: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Check the names of arguments; "k", as in other retrievers, is "top_k".

    Args:
        taker: Who takes the arguments, for the message.
        given: The arguments.
        known: The names that are taken.

    Returns:
        The arguments, without "k".

    Raises:
        ValueError: When one is not taken, or both "k" and "top_k" are given.
    """
    given = dict(given)
    if "k" in given:
        if "top_k" in given:
            raise ValueError(f"{taker} takes k or top_k, not both.")
        given["top_k"] = given.pop("k")
    if alien := next((name for name in given if name not in known), None):
        shown = ", ".join(sorted(known - {"name", "tags", "metadata"}))
        raise ValueError(f"{taker} takes {shown}; not {alien!r}.")
    return given
