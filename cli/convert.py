"""convert: store the latents in another codec."""

from __future__ import annotations

from typing import Any

import click

from lclm_rag.cli.formatting import megabytes, say, say_json
from lclm_rag.cli.options import CODECS, as_json, kb_option, wait_option

__all__ = ["convert"]


@click.command()
@kb_option
@click.option("--codec", type=click.Choice(CODECS), required=True, help="How latents are stored.")
@wait_option
@as_json
def convert(kb: str, codec: Any, wait: float, as_json: bool) -> None:
    """Store the latents in another codec, without the encoder.

    This makes one new version; earlier versions keep their codec until lclm-rag vacuum removes them. What a
    smaller codec has lost does not come back with a larger one.

    \b
    Example:
      lclm-rag convert --kb kb/ --codec int8
    """
    from lclm_rag.cli.progress import counting_bar
    from lclm_rag.knowledge_base import KnowledgeBase

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
