"""The limits on what one file of a corpus may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["DEFAULT_LIMITS", "MIB", "ReadingLimits", "size"]

MIB = 1 << 20
_MOST = 1 << 50


@dataclass(frozen=True)
class ReadingLimits:
    """What one file of a corpus may cost. A file that goes beyond a limit is a bad file, and never cut.

    A few megabytes can unpack to more than the memory holds, by accident or by intent.

    Attributes:
        line: Bytes of a line of JSONL, or of a row of CSV; they count after unpacking.
        file: Bytes of a text, HTML, PDF or DOCX file, which is in memory as a whole.
        unpacked: Bytes of XML that a DOCX file unpacks to.
        seconds: How long the conversion of one HTML, PDF or DOCX file may take.
        memory: Bytes of memory that this conversion may take, on Linux; elsewhere there is no such limit.

    Raises:
        ValueError: When a limit is not a positive number, or larger than 2**50.
    """

    line: int = 64 * MIB
    file: int = 512 * MIB
    unpacked: int = 64 * MIB
    seconds: float = 600.0
    memory: int = 2048 * MIB

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = (int, float) if field.name == "seconds" else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value <= _MOST:
                what = "positive number" if field.name == "seconds" else "positive whole number"
                raise ValueError(
                    f"The limit {field.name!r} of a corpus must be a {what} up to {_MOST:,}, not {value!r}."
                )


DEFAULT_LIMITS = ReadingLimits()


def size(bytes: int) -> str:
    """A limit in the unit of the command line's options: "64 MiB"."""
    return f"{bytes / MIB:g} MiB" if bytes >= MIB // 10 else f"{bytes:,} bytes"
