"""search: find passages, without a decoder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.formatting import one_line, say, say_json, say_why_none
from lclm_rag.cli.options import (
    as_json,
    kb_option,
    parsed_filter,
    ranking_options,
    retrieval_options,
    version_option,
)

if TYPE_CHECKING:
    from lclm_rag.types import Hit

__all__ = ["search"]


@click.command()
@click.argument("question")
@kb_option
@version_option
@retrieval_options
@ranking_options
@as_json
def search(
    question: str,
    kb: str,
    version: int | None,
    top_k: int,
    filters: tuple[str, ...],
    as_json: bool,
    **ranking: Any,
) -> int:
    """Find the passages that fit a QUESTION best; - reads it from standard input. Loads no decoder.

    With --json, each passage is one line. If none is found, the exit code is 3.

    \b
    Examples:
      lclm-rag search --kb kb/ "Who is the mayor of Velun?"
      lclm-rag search --kb kb/ "What changed?" --filter "year>=2024" --top-k 20 --json
      lclm-rag search --kb kb/ "What changed?" --rerank cross-encoder/ms-marco-MiniLM-L6-v2
      lclm-rag search --kb kb/ "What changed?" --neighbours 1
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    asked = sys.stdin.read().strip() if question == "-" else question
    with KnowledgeBase.open(kb, version=version) as knowledge_base:
        condition = parsed_filter(filters)
        hits = knowledge_base.retrieve(asked, top_k, condition, **ranking)
        if not hits:
            say_why_none(knowledge_base, condition)
    for hit in hits:
        if as_json:
            say_json(hit.to_dict())
        else:
            say("\n".join(_lines(hit)))
    return 0 if hits else EXIT_IN_PART


def _lines(hit: Hit) -> list[str]:
    beside = f"  with {', '.join(map(one_line, hit.neighbours))}" if hit.neighbours else ""
    text = [f"    {line}" for line in hit.text.strip().split("\n")]
    return [f"{hit.score:.4g}  {one_line(hit.key)}{beside}", *text, ""]
