"""reindex: make the passage index anew, where it is or elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import as_json, collection_options, kb_option, wait_option

__all__ = ["reindex"]


@click.command()
@kb_option
@click.option("--qdrant-url", help="Put it on this Qdrant server.  [default: where it is]")
@click.option("--collection", help="Name of the collection on that server.")
@click.option("--embedded", is_flag=True, help="Take it from the server into the folder.")
@collection_options
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Put the passages on the server from this process, or from a Ray cluster.",
)
@click.option(
    "--index-writers",
    type=click.IntRange(min=1),
    help="On Ray: the most processes that put passages there at once.  [default: 8]",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="Address of the Ray cluster.  [default: RAY_ADDRESS, or Ray on this machine]",
)
@wait_option
@as_json
def reindex(
    kb: str,
    engine: str,
    index_writers: int | None,
    ray_address: str | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Make the passage index anew from the store; nothing is compressed again.

    It is made beside the old one, which is searched until the new one is whole. If this is killed, run the
    same command again to continue from there. A server at another URL that has the collection already,
    because it moved, is only noted.

    \b
    Examples:
      lclm-rag reindex --kb kb/ --qdrant-url http://localhost:6333
      lclm-rag reindex --kb s3://bucket/kb --engine ray --qdrant-options options.toml
      lclm-rag reindex --kb kb/ --filter-keys lang,year
      lclm-rag reindex --kb kb/ --embedded
    """
    from lclm_rag.cli.progress import counting_bar
    from lclm_rag.reindex import reindex as make_anew

    on_ray = None
    if engine == "ray":
        from lclm_rag.ingestion.ray import RayEngine

        on_ray = RayEngine(address=ray_address, index_writers=index_writers or 8)
    elif index_writers or ray_address:
        raise click.UsageError("--index-writers and --ray-address are for --engine ray.")
    with counting_bar("indexing") as on_progress:
        done = make_anew(kb, engine=on_ray, on_progress=on_progress, **choices)
    if as_json:
        say_json(asdict(done))
        return
    where = "embedded in the folder" if done.passage_index is None else f"at {done.passage_index}"
    how = "" if done.filled else ", which had it already"
    say(f"{kb}: {done.passages:,} passages in the passage index {where}{how}.")
    if done.left:
        say(f"Left as it is: {done.left}. Delete it when nobody searches it any more.", err=True)
