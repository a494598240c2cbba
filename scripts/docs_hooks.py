"""What mkdocs calls while it builds: the page of commands is made from their `--help`."""

from __future__ import annotations

from typing import Any

import click

from lclm_rag.cli import cli

WIDTH = 100


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Append to the page `cli.md` every command as a person at a shell sees it.

    Args:
        markdown: The page as it is written.
        page: The page, of mkdocs.
        **_: The rest of what mkdocs passes.

    Returns:
        The page as it is rendered.
    """
    if page.file.src_uri != "cli.md":
        return markdown
    parts = [markdown, _section("lclm-rag", cli)]
    for name, command in cli.commands.items():
        parts.append(_section(f"lclm-rag {name}", command))
        if isinstance(command, click.Group):
            below = command.commands.items()
            parts += [_section(f"lclm-rag {name} {part}", each) for part, each in below]
    return "\n\n".join(parts)


def _section(name: str, command: click.Command) -> str:
    settings = {**cli.context_settings, "terminal_width": WIDTH}
    with click.Context(command, info_name=name, **settings) as context:
        return f"## {name}\n\n```text\n{command.get_help(context)}\n```"
