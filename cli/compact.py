"""compact: merge fragments and free the disk space of deleted passages."""

from __future__ import annotations

import click

from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import as_json, kb_option, wait_option
from lclm_rag.cli.vacuum import print_vacuumed

__all__ = ["compact"]


@click.command()
@kb_option
@click.option(
    "--keep-versions",
    is_flag=True,
    help="Keep earlier versions, and the disk space that they take, until a later vacuum.",
)
@wait_option
@as_json
def compact(kb: str, keep_versions: bool, wait: float, as_json: bool) -> None:
    """Merge small fragments, drop deleted passages, and free their disk space.

    Fragments are rewritten if they are small, or if a tenth of their passages is deleted. Questions can be
    asked meanwhile. Afterwards, versions that no process has open are removed, as by lclm-rag vacuum.

    \b
    Example:
      lclm-rag compact --kb kb/
    """
    from lclm_rag.cli.progress import counting_bar
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
        before = knowledge_base.store.manifest.fragments
        with counting_bar("compacting") as on_row:
            knowledge_base.compact(on_row=on_row)
        vacuumed = None if keep_versions else knowledge_base.vacuum()
        manifest = knowledge_base.store.manifest
    if as_json:
        freed = vacuumed.bytes if vacuumed else 0
        facts = {"version": manifest.version, "fragments": manifest.fragments, "freed": freed}
        say_json(facts)
    else:
        say(f"{kb}: {before} fragments became {manifest.fragments}, version {manifest.version}.")
        if vacuumed:
            print_vacuumed(kb, vacuumed)
