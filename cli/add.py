"""add: add a corpus to a knowledge base."""

from __future__ import annotations

from typing import Any

import click

from lclm_rag.cli.corpus import corpus_options, update_from

__all__ = ["add"]


@click.command()
@corpus_options
def add(kb: str, corpus: tuple[str, ...], **options: Any) -> int:
    """Add a CORPUS to a knowledge base, replacing documents that have the same id.

    Unchanged documents only cost a hash. In changed documents, passages whose text is the same are not
    compressed again. CORPUS is the same as for lclm-rag build.

    \b
    Example:
      lclm-rag add notes/2026/ --kb kb/
    """
    return update_from(kb, corpus, delete_others=False, **options)
