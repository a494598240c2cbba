"""What is printed: numbers for people, and text from outside without what a terminal would obey."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.printable import UNSAFE, one_line, visible

if TYPE_CHECKING:
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.retrieval import Filter

__all__ = ["duration", "megabytes", "one_line", "say", "say_json", "say_why_none", "visible"]


def megabytes(size: int) -> str:
    """A number of bytes in megabytes, with one decimal and without the unit."""
    return f"{size / 1e6:,.1f}"


def duration(seconds: float) -> str:
    """A time in the unit in which it is easily read: "<1 s", "40 s", "12 min", "3.5 h"."""
    if seconds < 1:
        return "<1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text. All commands print with this, with `say_json` or on the consoles in `progress`.

    What goes to a terminal or to stderr is made `visible`. If stdout is a pipe or a file, it gets the exact
    text.

    Args:
        text: The text.
        err: Whether it goes to stderr.
        nl: Whether a line feed follows.
    """
    if err or sys.stdout.isatty():
        text = visible(text)
    # Without color=True click would take escape sequences out of what is piped.
    click.echo(text, err=err, nl=nl, color=True)


def say_why_none(knowledge_base: KnowledgeBase, condition: Filter | None) -> None:
    """Say on stderr why nothing was found, unless that was logged: what no passage can meet is.

    Args:
        knowledge_base: The knowledge base, open.
        condition: The filter that was given.
    """
    if not knowledge_base.reader.unmatchable(condition):
        say(knowledge_base.why_no_passages(condition), err=True)


def say_json(value: Any) -> None:
    r"""Print a value as one line of JSON.

    Strings are exact: what `visible` would replace is written as JSON's own escapes, such as `\u001b`.

    Args:
        value: The value.
    """
    line = json.dumps(value, ensure_ascii=False)
    click.echo(UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], line))
