"""versions: list the versions of a knowledge base."""

from __future__ import annotations

from dataclasses import asdict

import click

from lclm_rag.cli.formatting import megabytes, say, say_json
from lclm_rag.cli.options import as_json, kb_option

__all__ = ["versions"]


@click.command()
@kb_option
@as_json
def versions(kb: str, as_json: bool) -> None:
    """List the versions of a knowledge base, oldest first.

    Every add, sync, delete, compact and convert makes a version. lclm-rag query --version N asks an earlier
    one. lclm-rag vacuum removes versions that are no longer needed.

    \b
    Example:
      lclm-rag versions --kb kb/
    """
    from lclm_rag.config import read_settings
    from lclm_rag.storage import open_folder
    from lclm_rag.store import read_versions

    folder = open_folder(kb)
    read_settings(folder)
    found = [
        {
            "version": m.version,
            "created": m.created,
            "operation": m.operation,
            **asdict(m.totals),
            "codec": m.layout.codec,
            "fragments": m.fragments,
            "bytes": m.bytes,
        }
        for m in read_versions(folder / "store")
    ]
    if as_json:
        say_json(found)
        return
    say(f"{'version':>7}  {'made (UTC)':23}  {'by':8}{'documents':>11}{'passages':>12}{'MB':>12}")
    for v in found:
        made = str(v["created"])[:23].replace("T", " ")
        say(
            f"{v['version']:>7}  {made:23}  {v['operation']:8}{v['documents']:>11,}{v['passages']:>12,}"
            f"{megabytes(v['bytes']):>12}"
        )
