"""Markdown headings of a text: where they begin, and the path of headings above a position."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right

__all__ = ["Headings"]

_HEADING_OR_FENCE = re.compile(r"^ {0,3}(#{1,6}(?=[ \t\r\n]|$)|`{3,}|~{3,})", re.MULTILINE)
_LONGEST_TITLE = 500
"""In characters. A longer line that begins with # is hardly a heading; only this much of it is used."""


class Headings:
    """The ATX headings (`# Title`) of one text, without those in fenced code.

    The rules are those of CommonMark 0.31, sections 4.2 and 4.5. Only the positions of headings are kept, 8
    bytes each.

    Args:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = _heading_starts(text) if "#" in text else array("q")
        self._read = 0
        self._path: list[tuple[int, str]] = []

    def last_between(self, after: int, until: int) -> int | None:
        """Find the last heading that begins in a range.

        Args:
            after: The heading must begin later than this position.
            until: The heading must not begin later than this position.

        Returns:
            The position at which the heading begins; None if there is none in the range.
        """
        index = bisect_right(self._starts, until) - 1
        return self._starts[index] if index >= 0 and self._starts[index] > after else None

    def left_alone(self, start: int, end: int) -> int | None:
        """Find a heading that stands at the end of a passage without any text below it.

        Args:
            start: Where the passage begins. A heading that begins here does not count.
            end: Where the passage ends (exclusive).

        Returns:
            The position at which the heading begins; None if there is none.
        """
        index = bisect_left(self._starts, end) - 1
        if index < 0 or self._starts[index] <= start:
            return None
        begin = self._starts[index]
        line_end = self._text.find("\n", begin, end)
        if line_end >= 0 and self._text[line_end:end].strip():
            return None
        return begin

    def path(self, position: int) -> list[str]:
        """Find the headings above a passage.

        A heading with which the passage itself begins is not among them.

        Args:
            position: Where the passage begins. It must not decrease from call to call.

        Returns:
            The titles of the headings, outermost first.
        """
        next_heading = bisect_left(self._starts, position)
        for start in self._starts[self._read : next_heading]:
            level, title = self._heading(start)
            self._path = [*(above for above in self._path if above[0] < level), (level, title)]
        self._read = next_heading
        path = self._path
        if next_heading < len(self._starts):
            start = self._starts[next_heading]
            if not self._text[position : min(start, position + 1000)].strip():
                level, _ = self._heading(start)
                path = [above for above in path if above[0] < level]
        return [title for _, title in path if title]

    def _heading(self, start: int) -> tuple[int, str]:
        """Level and title of the heading that begins at `start`."""
        line = self._text[start : start + _LONGEST_TITLE].partition("\n")[0].strip()
        title = line.lstrip("#")
        level = len(line) - len(title)
        unclosed = title.rstrip("#")
        if unclosed != title and unclosed[-1:] in ("", " ", "\t"):
            title = unclosed
        return level, " ".join(title.split())


def _heading_starts(text: str) -> array[int]:
    starts = array("q")
    fence = ""
    for match in _HEADING_OR_FENCE.finditer(text):
        mark = match[1]
        if mark[0] == "#":
            if not fence:
                starts.append(match.start())
            continue
        end = text.find("\n", match.end())
        info = text[match.end() : end if end >= 0 else len(text)]
        if not fence:
            # Backticks further on in the line: code within a line, not a fence.
            fence = "" if mark[0] == "`" and "`" in info else mark
        elif mark.startswith(fence) and not info.strip():
            fence = ""
    return starts
