"""delete: remove documents."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lclm_rag.cli.formatting import say, say_json, visible
from lclm_rag.cli.options import (
    as_json,
    filter_option,
    kb_option,
    parsed_filter,
    wait_option,
)
from lclm_rag.errors import KnowledgeBaseError

if TYPE_CHECKING:
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["delete"]


@click.command()
@click.argument("document_ids", nargs=-1, metavar="[ID]...")
@kb_option
@filter_option
@click.option("--yes", is_flag=True, help="Delete what --filter matches without asking.")
@wait_option
@as_json
def delete(
    document_ids: tuple[str, ...],
    kb: str,
    filters: tuple[str, ...],
    yes: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Delete documents by id or by a metadata filter.

    If one of the ids does not exist, nothing is deleted. With --filter the command says how many documents
    match and asks for confirmation; without a terminal, --yes must be given.

    \b
    Examples:
      lclm-rag delete notes/old.md --kb kb/
      lclm-rag delete --filter "year<2020" --kb kb/
      lclm-rag delete --filter "year<2020" --yes --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    if bool(document_ids) == bool(filters):
        raise click.UsageError("Give either ids or --filter.")
    with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
        before = knowledge_base.store.count_documents()
        if filters:
            document_ids = _chosen(knowledge_base, filters, yes)
        passages = knowledge_base.delete(document_ids)
        store = knowledge_base.store
    gone = before - store.count_documents()
    if as_json:
        say_json({"documents": gone, "passages": passages, "version": store.version})
    else:
        say(f"{kb}: {gone} documents ({passages} passages) deleted.")


def _chosen(knowledge_base: KnowledgeBase, filters: tuple[str, ...], yes: bool) -> tuple[str, ...]:
    """The ids of the matching documents, once the user has confirmed their deletion."""
    condition = parsed_filter(filters)
    assert condition is not None
    found = knowledge_base.matching_documents(condition)
    there = knowledge_base.store.count_documents()
    if not found:
        raise KnowledgeBaseError(f"No document of {knowledge_base.folder} matches the filter.")
    matching = f"{len(found):,} of {there:,} documents match"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{matching}: give --yes to delete them without being asked.")
        if not click.confirm(visible(f"{matching}. Delete them?"), err=True):
            raise KnowledgeBaseError("Nothing was deleted.")
    return tuple(found)
