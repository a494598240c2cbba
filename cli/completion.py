"""completion: let a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lclm_rag.cli.formatting import say

__all__ = ["completion"]

_INSTALL = {
    "bash": "lclm-rag completion bash >> ~/.bashrc",
    "zsh": "lclm-rag completion zsh >> ~/.zshrc",
    "fish": "lclm-rag completion fish > ~/.config/fish/completions/lclm-rag.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_INSTALL)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script with which a SHELL completes commands, options and their values.

    Install it once, and start a new shell; or, for this shell alone, eval it.

    \b
    Examples:
      lclm-rag completion bash >> ~/.bashrc
      lclm-rag completion zsh >> ~/.zshrc
      lclm-rag completion fish > ~/.config/fish/completions/lclm-rag.fish
      eval "$(lclm-rag completion bash)"
    """
    made = get_completion_class(shell)
    assert made is not None  # click has all of them.
    script = made(context.find_root().command, {}, "lclm-rag", "_LCLM_RAG_COMPLETE").source()
    # At the end: zsh wants its own mark in the first line.
    say(f"{script.strip()}\n# To install this completion for lclm-rag: {_INSTALL[shell]}")
