"""What is printed: numbers for people, and text from outside without what a terminal would obey."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import click

__all__ = ["megabytes", "one_line", "say", "say_json", "visible"]

# Control characters but tab and line feed; half surrogates; marks of direction; and invisible characters, but
# not those that scripts and emoji need (zero-width joiner and non-joiner, soft hyphen, Arabic number signs).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def megabytes(size: int) -> str:
    """A number of bytes in megabytes, with one decimal and without the unit."""
    return f"{size / 1e6:,.1f}"


def visible(text: str) -> str:
    r"""Replace what a terminal would obey or hide by escapes that can be read, such as `\x1b`.

    These are control characters (ESC, BEL, a lone carriage return, C1), marks that change the direction of
    text, and invisible characters. Line feeds and tabs stay.

    Args:
        text: Any text.

    Returns:
        The text, safe to print.
    """
    return _UNSAFE.sub(lambda found: _escape(found[0]), text.replace("\r\n", "\n"))


def one_line(value: object) -> str:
    r"""Like `visible`, for a name in the middle of a line: line feeds and tabs are replaced, too.

    Args:
        value: A text, or something with one, such as the key of a passage.

    Returns:
        One line, safe to print.
    """
    return visible(str(value)).replace("\n", "\\n").replace("\t", "\\t")


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


def say_json(value: Any) -> None:
    r"""Print a value as one line of JSON.

    Strings are exact: what `visible` would replace is written as JSON's own escapes, such as `\u001b`.

    Args:
        value: The value.
    """
    line = json.dumps(value, ensure_ascii=False)
    click.echo(_UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], line))


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
