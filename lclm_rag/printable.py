"""Text from outside without what a terminal or a browser would obey."""

from __future__ import annotations

import re

__all__ = ["UNSAFE", "first_line", "one_line", "visible"]

# Control characters but tab and line feed; half surrogates; marks of direction; and invisible characters, but
# not those that scripts and emoji need (zero-width joiner and non-joiner, soft hyphen, Arabic number signs).
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Replace what a terminal would obey or hide by escapes that can be read, such as `\x1b`.

    These are control characters (ESC, BEL, a lone carriage return, C1), marks that change the direction of
    text, and invisible characters. Line feeds and tabs stay.

    Args:
        text: Any text.

    Returns:
        The text, safe to print.
    """
    return UNSAFE.sub(lambda found: _escape(found[0]), text.replace("\r\n", "\n"))


def one_line(value: object) -> str:
    r"""Like `visible`, for a name in the middle of a line: line feeds and tabs are replaced, too.

    Args:
        value: A text, or something with one, such as the key of a passage.

    Returns:
        One line, safe to print.
    """
    return visible(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def first_line(error: BaseException | str) -> str:
    """The first line of an error or its message: messages of libraries may have several lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
