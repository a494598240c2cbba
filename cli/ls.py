"""ls: list documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.formatting import one_line, say, say_json, say_why_none
from lclm_rag.cli.options import as_json, filter_option, kb_option, parsed_filter, version_option

if TYPE_CHECKING:
    from lclm_rag.types import StoredDocument

__all__ = ["ls"]


@click.command()
@kb_option
@version_option
@filter_option
@click.option(
    "--fields",
    is_flag=True,
    help="List the metadata keys that --filter can name, in place of the documents.",
)
@as_json
def ls(kb: str, version: int | None, filters: tuple[str, ...], fields: bool, as_json: bool) -> int:
    """List documents: id, passages, characters, source tokens, latents, metadata. Loads no model.

    With --json, each document (or key) is one line. If no document matches the filter, the exit code is 3.

    \b
    Examples:
      lclm-rag ls --kb kb/
      lclm-rag ls --kb kb/ --filter lang=en --json
      lclm-rag ls --kb kb/ --fields
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    if fields and filters:
        raise click.UsageError("--fields lists the keys of all documents; leave --filter out.")
    condition = parsed_filter(filters)
    with KnowledgeBase.open(kb, version=version) as knowledge_base:
        if fields:
            for found in knowledge_base.metadata_fields():
                if as_json:
                    say_json(vars(found))
                else:
                    kinds = ", ".join(found.kinds)
                    say(f"{found.documents:>9,}  {one_line(found.name)}  {kinds}")
            return 0
        count = 0
        for count, document in enumerate(knowledge_base.documents(condition), start=1):
            if as_json:
                say_json(document.to_dict())
            else:
                if count == 1:
                    say(" passages  characters    tokens  latents  document")
                say(_line(document))
        if not count and condition is not None:
            say_why_none(knowledge_base, condition)
            return EXIT_IN_PART
    return 0


def _line(document: StoredDocument) -> str:
    d = document
    metadata = json.dumps(dict(d.metadata), ensure_ascii=False) if d.metadata else ""
    counts = f"{d.passages:>9,}  {d.characters:>10,}  {d.tokens:>8,}  {d.latents:>7,}"
    return f"{counts}  {one_line(d.id)}  {metadata}".rstrip()
