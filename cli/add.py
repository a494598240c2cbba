"""add: add a corpus to a knowledge base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.corpus import add_corpus, corpus_options

if TYPE_CHECKING:
    pass

__all__ = ["add"]


@click.command()
@corpus_options
def add(
    corpus: tuple[str, ...],
    kb: str,
    wait: float,
    device: str,
    dtype: str,
    token_budget: int | None,
    compiled: bool,
    **reading: Any,
) -> int:
    """Add a CORPUS to a knowledge base; documents of the same id are replaced.

    Unchanged documents cost a hash. Of changed ones, passages whose text is the same are not compressed
    again. CORPUS is as for lclm-rag build.

    \b
    Example:
      lclm-rag add notes/2026/ --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(
        kb,
        device=device,
        dtype=dtype,
        compressor_options={"token_budget": token_budget, "compile": compiled},
        wait=wait,
    ) as knowledge_base:
        return add_corpus(knowledge_base, corpus, **reading)
