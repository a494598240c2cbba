"""vacuum: free the disk space that earlier versions and killed runs take."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lclm_rag.cli.formatting import megabytes, say, say_json
from lclm_rag.cli.options import as_json, kb_option, wait_option

if TYPE_CHECKING:
    from lclm_rag.store import Vacuumed

__all__ = ["print_vacuumed", "vacuum"]

_LISTED = 20


@click.command()
@kb_option
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many of the newest versions to keep.",
)
@wait_option
@as_json
def vacuum(kb: str, keep: int, wait: float, as_json: bool) -> None:
    """Free the disk space that earlier versions and killed runs take.

    Versions that a process has open are kept. What a killed build had compressed is removed, too: to continue
    that build, run it again first.

    \b
    Example:
      lclm-rag vacuum --kb kb/ --keep 3
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
        vacuumed = knowledge_base.vacuum(keep=keep)
    if as_json:
        say_json(asdict(vacuumed))
    else:
        print_vacuumed(kb, vacuumed)


def print_vacuumed(kb: str, vacuumed: Vacuumed) -> None:
    """Print how many versions were removed, the disk space freed, and which versions are kept."""
    kept = ", ".join(map(str, vacuumed.kept[-_LISTED:]))
    say(
        f"{kb}: {len(vacuumed.removed)} versions removed, {megabytes(vacuumed.bytes)} MB freed; kept: "
        f"{kept}."
    )
    if "://" in kb and len(vacuumed.kept) > 1:
        say("In an object store versions are kept for a day after they are superseded.")
