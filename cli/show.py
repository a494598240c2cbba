"""show: print passages verbatim."""

from __future__ import annotations

import click

from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import (
    as_json,
    kb_option,
    version_option,
)

__all__ = ["show"]


@click.command()
@click.argument("document_id")
@click.argument("ordinal", type=click.IntRange(min=0))
@kb_option
@version_option
@click.option(
    "--before", type=click.IntRange(min=0), default=0, help="Also show passages before it."
)
@click.option("--after", type=click.IntRange(min=0), default=0, help="Also show passages after it.")
@as_json
def show(
    document_id: str,
    ordinal: int,
    kb: str,
    version: int | None,
    before: int,
    after: int,
    as_json: bool,
) -> None:
    """Print a passage verbatim: passage ORDINAL of DOCUMENT_ID, counted from 0.

    An answer's source velun#2 is passage 2 of the document velun.

    \b
    Examples:
      lclm-rag show --kb kb/ velun 2
      lclm-rag show --kb kb/ velun 2 --before 1 --after 1 --json
    """
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.types import PassageKey

    with KnowledgeBase.open(kb, version=version) as knowledge_base:
        passages = knowledge_base.read_passages(PassageKey(document_id, ordinal), before, after)
    if not as_json:
        say("".join(passage.text for passage in passages))
        return
    found = [
        {
            "document_id": p.key.document_id,
            "ordinal": p.key.ordinal,
            "span": [p.start, p.end],
            "text": p.text,
            "metadata": dict(p.metadata),
        }
        for p in passages
    ]
    say_json(found)
