"""Readers: a file of a package → its paragraphs, in order. What is no prose is left to a later filter."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

__all__ = [
    "Reader",
    "read_dictionary",
    "read_docbook",
    "read_game",
    "read_html",
    "read_monsters",
    "read_novels",
    "read_scripture",
]

Reader = Callable[[Path], list[str]]

_SKIPPED = frozenset(
    "script style pre nav title note footnote programlisting screen indexterm sup "
    "subtitle footer header info desc".split()
)
_BLOCKS = frozenset(
    "body div section article h1 h2 h3 h4 h5 h6 hr ul ol dl dt table tr td th blockquote pre "
    "p li dd para page chapter variablelist itemizedlist orderedlist informaltable term".split()
)
_KEPT = frozenset("p li dd para".split())


class _Blocks(HTMLParser):
    """The texts of some elements, up to where another block begins."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._words: list[str] | None = None
        self._skipped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self.flush()
            if not self._skipped and (tag in _KEPT or ("class", "para") in attrs):
                self._words = []
        if tag in _SKIPPED:
            self._skipped.append(tag)
        elif tag == "br" and self._words is not None:
            self._words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipped:
            del self._skipped[self._skipped.index(tag) :]
        if tag in _BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if self._words is not None and not self._skipped:
            self._words.append(data)

    def flush(self) -> None:
        if self._words:
            self.found.append(_plain("".join(self._words)))
        self._words = None


def _plain(text: str) -> str:
    text = re.sub(r"(?<!\w)_([^_\s][^_]*)_(?!\w)", r"\1", text)  # As _italics_ were typed.
    return " ".join(text.replace("¶", " ").split())


def _parsed(text: str) -> list[str]:
    parser = _Blocks()
    parser.feed(text)
    parser.close()
    parser.flush()
    return [each for each in parser.found if each]


def read_html(path: Path) -> list[str]:
    """Read paragraphs and items of lists of HTML, and of the pages of GNOME's help."""
    return _parsed(path.read_text("utf-8", errors="replace"))


def read_docbook(path: Path) -> list[str]:
    """Read the paragraphs of DocBook as KDE writes it, where names of programs are entities."""
    text = path.read_text("utf-8", errors="replace")
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    names = {"kpatience": "KPatience", "kstars": "KStars", "skrooge": "Skrooge", "kde": "KDE"}
    return _parsed(re.sub(r"&(\w+);", lambda m: names.get(m[1], m[0]), text))


def read_dictionary(path: Path) -> list[str]:
    """Read the texts of a dictionary of dictd, without words in braces being marked."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    return [
        re.sub(r"[{}]", "", _plain(each))
        for each in re.split(r"\n\s*\n", text)
        if not re.search(r"\S {3,}\S", each)  # Verses and tables.
    ]


def read_scripture(path: Path) -> list[str]:
    """Read a compressed text of SWORD, by the index of its blocks."""
    index, packed = path.read_bytes(), path.with_suffix(".bzz").read_bytes()
    found = []
    for start, size, _ in struct.iter_unpack("<III", index):
        text = zlib.decompress(packed[start : start + size]).decode("utf-8", errors="replace")
        found += _parsed(f"<p>{re.sub(r'<(?:div|chapter)[^>]*>', '<p>', text)}")
    return found


def read_novels(path: Path) -> list[str]:
    """Read vectors of lines from a data base of R: objects that are compressed, one after another."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(data[at + 4 :])
        at = len(data) - len(unpacker.unused_data)
        lines = []
        for head in re.finditer(rb"\x00\x04\x00\x09(....)", unpacked, re.DOTALL):
            (size,) = struct.unpack(">I", head[1])
            lines.append(unpacked[head.end() : head.end() + size].decode("utf-8", "replace"))
        found += ["\n".join(lines)]
    texts = [_plain(each) for text in found for each in re.split(r"\n\s*\n", text)]
    return [re.sub(r"\s*--\s*", " – ", text) for text in texts]


def read_monsters(path: Path) -> list[str]:
    """Read the descriptions of Dungeon Crawl: entries between lines of percent signs."""
    entries = re.split(r"^%%%%\n", path.read_text("utf-8"), flags=re.MULTILINE)
    found = []
    for entry in entries:
        _, _, text = re.sub(r"^#.*\n", "", entry, flags=re.MULTILINE).partition("\n\n")
        found += [_plain(each) for each in text.split("\n\n") if not re.search(r"{{|[$<]", each)]
    return found


def read_game(path: Path) -> list[str]:
    """Read what is told and said in a scenario of Wesnoth."""
    text = path.read_text("utf-8", errors="replace")
    told = re.findall(r'_ ?"((?:[^"]|"")*)"', text)
    return [_plain(re.sub(r"<[^>]*>", "", each.replace('""', '"'))) for each in told]
