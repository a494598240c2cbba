"""The parts of error messages: paths, names, kinds of values, and what a library reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal

from lclm_rag.errors import CorpusError
from lclm_rag.printable import first_line as whole_first_line
from lclm_rag.storage import Location

__all__ = [
    "first_line",
    "is_unicode",
    "kind_of_value",
    "name_list",
    "not_utf8",
    "printable",
    "unreadable",
]

_NAMES_SHOWN = 12


def unreadable(path: Location, error: OSError, after: str = "") -> CorpusError:
    """The error for a file that cannot be read.

    Args:
        path: The file.
        error: The reason.
        after: What was read before, such as " after line 12".
    """
    reason = error.strerror or first_line(error)
    return CorpusError(
        f"{printable(path)}: cannot be read{after} ({reason}); check the file and its rights."
    )


def first_line(error: BaseException | str) -> str:
    """The first line of an error or its message, without a full stop, to stand in a sentence."""
    return whole_first_line(error).rstrip(".")


def not_utf8(error: UnicodeDecodeError) -> str:
    """The part of a message that says at which byte a text is not UTF-8."""
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start}, from 0)"


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; texts from JSON and file names may not."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: Location | str) -> str:
    """The path as text that can always be printed, whatever bytes are in the file name."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def name_list(names: Iterable[str]) -> str:
    """The names as "'a', 'b' and 'c'"; a long list is cut."""
    quoted = [repr(name) for name in names]
    if not quoted:
        return "nothing"
    if len(quoted) > _NAMES_SHOWN:
        quoted[_NAMES_SHOWN:] = [f"{len(quoted) - _NAMES_SHOWN} more"]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def kind_of_value(value: object) -> str:
    """The kind of a value in the words of a user: "a text", "a whole number"."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float() | Decimal():
            return "a decimal number"
        case str():
            return "a text"
        case date() | time():
            return "a time"
        case timedelta():
            return "a duration"
        case Mapping():
            return "an object"
        case list():
            return "a list"
    return f"a {type(value).__name__}"
