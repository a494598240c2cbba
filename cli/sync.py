"""sync: make a knowledge base hold what a corpus holds."""

from __future__ import annotations

from typing import Any

import click

from lclm_rag.cli.corpus import corpus_options, update_from

__all__ = ["sync"]


@click.command()
@corpus_options
def sync(kb: str, corpus: tuple[str, ...], **options: Any) -> int:
    """Make a knowledge base hold what a CORPUS holds: new, changed and deleted files.

    This does what lclm-rag add does, and also deletes every document that is not in the CORPUS, all in one
    version. If a record is skipped (--on-error skip) nothing is deleted, as the missing document may be that
    record.

    \b
    Example:
      lclm-rag sync notes/ --kb kb/
    """
    return update_from(kb, corpus, delete_others=True, **options)
