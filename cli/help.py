"""help: what --help says, for people who ask with a word."""

from __future__ import annotations

import click

from lclm_rag.cli.formatting import say

__all__ = ["help_"]


@click.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def help_(context: click.Context, command: tuple[str, ...]) -> None:
    """Show the help of a COMMAND, as COMMAND --help does.

    \b
    Examples:
      lclm-rag help query
      lclm-rag help train run
    """
    asked = context.find_root()
    for number, name in enumerate(command):
        group = asked.command
        found = group.get_command(asked, name) if isinstance(group, click.Group) else None
        if found is None:
            whole = " ".join(command[: number + 1])
            above = " ".join(["lclm-rag", *command[:number]])
            raise click.UsageError(
                f"There is no command {whole!r}; {above} --help lists what there is."
            )
        asked = click.Context(found, info_name=name, parent=asked)
    say(asked.get_help())
