"""Checks of plain values that come from outside: texts that can be written down, numbers that are numbers."""

from __future__ import annotations

import math

__all__ = ["check_number", "check_unicode", "check_wait", "check_whole", "not_unicode"]

_AT_ONCE = 1 << 20
_ESCAPED_BYTES = range(0xDC80, 0xDD00)
"""What Python puts in place of bytes that are not UTF-8, in arguments, file names and on standard input."""


def not_unicode(text: str) -> str | None:
    """What a text has that cannot be written as UTF-8, such as half a surrogate pair.

    Args:
        text: The text.

    Returns:
        The part of a sentence that says what and where; None if there is nothing.
    """
    if text.isascii():
        return None
    # In pieces, because a text may take up a good part of the memory and should not be copied whole.
    for start in range(0, len(text), _AT_ONCE):
        try:
            text[start : start + _AT_ONCE].encode()
        except UnicodeEncodeError as error:
            place = start + error.start
            code = ord(text[place])
            if code in _ESCAPED_BYTES:
                return f"the byte 0x{code - 0xDC00:02x}, which is not UTF-8, at character {place}"
            return f"half a character (U+{code:04X}, one of a surrogate pair) at character {place}"
    return None


def check_unicode(text: str, what: str) -> None:
    """Check that a text can be written as UTF-8.

    Args:
        text: The text.
        what: What it is, as the beginning of a sentence: "The question".

    Raises:
        ValueError: When it cannot.
    """
    if (problem := not_unicode(text)) is not None:
        raise ValueError(f"{what} has {problem}; give text in UTF-8.")


def check_whole(value: object, what: str, least: int, most: int = 2**63 - 1) -> None:
    """Check that a value is a whole number within bounds.

    Args:
        value: The value.
        what: What it is called.
        least: The least that it may be.
        most: The most that it may be.

    Raises:
        ValueError: When it is not.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{what} must be a whole number, not {_shown(value)}.")
    number = value.__index__()
    if number < least:
        raise ValueError(f"{what} must be at least {least}, not {_shown(number)}.")
    if number > most:
        raise ValueError(f"{what} must be at most {most:,}, not {_shown(number)}.")


def check_number(
    value: object, what: str, least: float = -math.inf, most: float = math.inf
) -> None:
    """Check that a value is a finite number within bounds.

    Args:
        value: The value.
        what: What it is called.
        least: The least that it may be.
        most: The most that it may be; infinity itself is refused.

    Raises:
        ValueError: When it is not.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool | str) or not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number, not {_shown(value)}.")
    if number < least:
        raise ValueError(f"{what} must be at least {least:g}, not {_shown(value)}.")
    if number > most:
        raise ValueError(f"{what} must be at most {most:g}, not {_shown(value)}.")


def check_wait(seconds: object) -> None:
    """Check that a value says how many seconds to wait; infinity means for ever.

    Raises:
        ValueError: When it does not.
    """
    if seconds != math.inf:
        check_number(seconds, "wait", 0)


def _shown(value: object) -> str:
    """A value for an error message, whatever its size: Python refuses to write very large numbers."""
    if not isinstance(value, int) or isinstance(value, bool):
        return f"{value!r:.40}"
    return f"{value:,}" if abs(value) < 10**30 else f"a number of {value.bit_length():,} bits"
