"""convert: store the latents in another codec."""

from __future__ import annotations

from typing import Any

import click

from lclm_rag.cli.formatting import megabytes, say, say_json
from lclm_rag.cli.options import CODECS, as_json, kb_option, wait_option

__all__ = ["convert"]


@click.command()
@kb_option
@click.option(
    "--codec",
    type=click.Choice(CODECS),
    help="How latents are stored; needed unless the store is of format 4.",
)
@wait_option
@as_json
def convert(kb: str, codec: Any, wait: float, as_json: bool) -> None:
    """Store the latents in another codec, without the encoder.

    Without --codec, it takes over a store of format 4, whose latents stay as they are.

    This makes one new version; earlier versions keep their codec until lclm-rag vacuum removes them. What a
    smaller codec has lost does not come back with a larger one.

    \b
    Example:
      lclm-rag convert --kb kb/ --codec int8
    """
    from lclm_rag.cli.progress import counting_bar
    from lclm_rag.config import is_knowledge_base
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.storage import open_folder
    from lclm_rag.store.upgrade import upgrade

    folder = open_folder(kb)
    upgraded = is_knowledge_base(folder) and upgrade(folder / "store", wait=wait)
    if codec is None:
        if not upgraded:
            raise click.UsageError(
                "Missing option '--codec': the store has the newest format already."
            )
        with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
            new = knowledge_base.store.manifest
        if as_json:
            say_json({"version": new.version, "codec": new.layout.codec, "bytes": new.bytes})
        else:
            say(f"{kb}: taken over from format 4, as version {new.version}.")
        return
    with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
        old = knowledge_base.store.manifest
        with counting_bar("converting") as on_row:
            knowledge_base.convert(codec, on_row=on_row)
        new = knowledge_base.store.manifest
    if as_json:
        say_json({"version": new.version, "codec": codec, "bytes": new.bytes})
    else:
        say(
            f"{kb}: {old.layout.codec} became {codec}, {megabytes(old.bytes)} MB became "
            f"{megabytes(new.bytes)} MB. Version {old.version} is kept until lclm-rag vacuum removes it."
        )
