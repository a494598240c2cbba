"""keys: the API keys of lclm-rag serve."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import as_json, parsed_filter

__all__ = ["keys"]

_file = click.option(
    "--file",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file of keys, which lclm-rag serve --api-keys reads.",
)
_name = click.option("--name", required=True, help="Whose key it is; the log shows this name.")


@click.group()
def keys() -> None:
    """Make and remove the API keys of lclm-rag serve.

    The file holds hashes of the keys, never the keys, and only its owner can read it. A running service reads
    it again when it changes.

    \b
    Examples:
      lclm-rag keys add --file keys.json --name alice
      lclm-rag keys add --file keys.json --name bob --kb manuals --filter team=legal
      lclm-rag keys list --file keys.json
      lclm-rag keys remove --file keys.json --name alice
    """


@keys.command("add")
@_file
@_name
@click.option(
    "--kb",
    "bases",
    multiple=True,
    metavar="NAME",
    help="A knowledge base that may be asked, by the name under which it is served. May be repeated.  "
    "[default: all]",
)
@click.option("--write", is_flag=True, help="The holder may change documents, too.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="EXPR",
    help="Only passages that match can be found: lang=en, lang!=en, year>=2020, lang=en,de. If repeated, all "
    "must match.",
)
def add_command(
    path: Path, name: str, bases: tuple[str, ...], write: bool, filters: tuple[str, ...]
) -> None:
    """Make a key, and print it: it is shown only now.

    \b
    Examples:
      lclm-rag keys add --file keys.json --name alice --write
      lclm-rag keys add --file keys.json --name bob --kb manuals --filter team=legal --filter "year>=2020"
    """
    from lclm_rag.serving.keys import add_key, check_name

    for option, given in (("--name", (name,)), ("--kb", bases)):
        for each in given:
            try:
                check_name(each)
            except ValueError as error:
                raise click.BadParameter(str(error), param_hint=option) from error
    parsed_filter(filters)
    if write and filters:
        raise click.UsageError(
            "--write and --filter exclude each other: the key could replace documents that it must not see."
        )
    say(add_key(path, name, bases=bases, write=write, filters=filters))
    say(f"The key of {name} is shown only now; {path} holds its hash.", err=True)


@keys.command("list")
@_file
@as_json
def list_command(path: Path, as_json: bool) -> None:
    """List who has a key, and for what.

    \b
    Example:
      lclm-rag keys list --file keys.json
    """
    from lclm_rag.serving.keys import listed_keys

    listed = listed_keys(path)
    if as_json:
        say_json(listed)
        return
    for key in listed:
        bases, filters = key["bases"], key["filters"]
        what = "all knowledge bases" if bases is None else ", ".join(bases) or "nothing"
        rights = "asks and writes" if key["write"] else "asks"
        words = filters if isinstance(filters, str) else " and ".join(_conditions(filters))
        say(f"{key['name']}  {rights} {what}{f', where {words}' if words else ''}")


def _conditions(filters: dict[str, object] | list[str] | None) -> list[str]:
    """The conditions of a key, as a person reads them."""
    if isinstance(filters, dict):
        return [f"{name}={json.dumps(value)}" for name, value in filters.items()]
    return list(filters or ())


@keys.command("remove")
@_file
@_name
def remove_command(path: Path, name: str) -> None:
    """Remove a key. A running service refuses it within a second.

    \b
    Example:
      lclm-rag keys remove --file keys.json --name alice
    """
    from lclm_rag.serving.keys import remove_key

    remove_key(path, name)
    say(f"Removed the key of {name}.")
