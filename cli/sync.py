"""sync: make a knowledge base hold what a corpus holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.corpus import add_corpus, corpus_options

if TYPE_CHECKING:
    pass

__all__ = ["sync"]


@click.command()
@corpus_options
def sync(
    corpus: tuple[str, ...],
    kb: str,
    wait: float,
    device: str,
    dtype: str,
    token_budget: int | None,
    compiled: bool,
    **reading: Any,
) -> int:
    """Make a knowledge base hold what a CORPUS holds: new, changed and deleted files.

    As add, and every document that is not in the CORPUS is deleted; all in one version. Where a record is
    skipped (--on-error skip) nothing is deleted, because it may be that one.

    \b
    Example:
      lclm-rag sync notes/ --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(
        kb,
        device=device,
        dtype=dtype,
        compressor_options={"token_budget": token_budget, "compile": compiled},
        wait=wait,
    ) as knowledge_base:
        return add_corpus(knowledge_base, corpus, delete_others=True, **reading)
