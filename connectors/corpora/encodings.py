"""Bytes as text: UTF-8, and UTF-16 or UTF-32 where a byte order mark says so. Nothing is ever guessed."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, BinaryIO, cast

from lclm_rag.connectors.corpora.messages import not_utf8
from lclm_rag.errors import CorpusError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["decoded", "has_nul", "marked_encoding", "utf8_stream"]

# UTF-32 comes first: in little-endian order its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_HEAD = 1 << 12
_AT_ONCE = 1 << 18


def marked_encoding(data: bytes) -> str | None:
    """The encoding that a byte order mark at the start names; None if there is none."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def decoded(data: bytes, where: str) -> str:
    """Decode a file.

    Args:
        data: All its bytes.
        where: The file, for error messages.

    Raises:
        CorpusError: When it is not text in the encoding that its mark names, which is UTF-8 without a mark.
    """
    encoding = marked_encoding(data) or "utf-8"
    try:
        # Not "utf-8-sig", whose errors do not count the mark.
        text = data.decode(encoding.removesuffix("-sig")).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        problem = not_utf8(error) if encoding.startswith("utf-8") else f"not {encoding.upper()}"
        raise CorpusError(f"{where}: {problem}; convert the file to UTF-8.") from error
    if "\0" in text:
        raise has_nul(where)
    return text


def has_nul(where: str) -> CorpusError:
    """The error for bytes that are not text: a text has no NUL in it."""
    return CorpusError(
        f"{where}: NUL characters, as in a binary file, or in UTF-16 and UTF-32 without a byte order mark; "
        "convert it to UTF-8 or leave it out."
    )


def utf8_stream(stream: BinaryIO, where: str) -> BinaryIO:
    """The stream as UTF-8, whatever encoding its byte order mark names.

    Args:
        stream: The stream, at its start.
        where: The stream, for error messages.

    Returns:
        The stream itself if it has no mark of UTF-16 or UTF-32, with its mark of UTF-8 if it has one. Bytes
        that are not valid are left for the reader to find; reading raises OSError if what is marked as UTF-16
        or UTF-32 is something else.

    Raises:
        CorpusError: When the stream begins as UTF-16 and UTF-32 do, without a mark.
        OSError: When the stream cannot be read.
    """
    if not isinstance(stream, io.BufferedReader):
        stream = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream)))
    head = cast(io.BufferedReader, stream).peek(_HEAD)[:_HEAD]
    encoding = marked_encoding(head)
    if encoding in ("utf-16", "utf-32"):
        return cast(BinaryIO, io.BufferedReader(_AsUtf8(stream, encoding), _AT_ONCE))
    # In UTF-16 and UTF-32 most NULs are at even places, or most at odd ones. Others are left to the reader,
    # which knows the line.
    if abs(head[::2].count(0) - head[1::2].count(0)) * 5 >= len(head) > 0:
        raise has_nul(where)
    return stream


class _AsUtf8(io.RawIOBase):
    """UTF-8 in place of UTF-16 or UTF-32. Half a surrogate pair becomes bytes that are not UTF-8."""

    def __init__(self, source: BinaryIO, encoding: str) -> None:
        self._source = source
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._source.close()
        super().close()

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            data = self._source.read(_AT_ONCE)
            try:
                text = self._decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise OSError(f"it is not {self._encoding.upper()}: {error.reason}") from error
            self._ready = text.encode("utf-8", "surrogatepass")
            if not data:
                break
        piece, self._ready = self._ready[: len(view)], self._ready[len(view) :]
        view[: len(piece)] = piece
        return len(piece)
