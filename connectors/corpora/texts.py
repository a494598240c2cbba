"""Reads a file that is one document: text unchanged; HTML, PDF and DOCX as Markdown, through markitdown."""

from __future__ import annotations

import io
import zipfile
from importlib import util
from pathlib import Path

from lclm_rag.connectors.corpora.converting import convert, missing
from lclm_rag.connectors.corpora.encodings import decoded, has_nul, marked_encoding
from lclm_rag.connectors.corpora.files import CorpusFile
from lclm_rag.connectors.corpora.limits import ReadingLimits, size
from lclm_rag.connectors.corpora.messages import (
    is_unicode,
    not_utf8,
    printable,
    unreadable,
)
from lclm_rag.errors import CorpusError
from lclm_rag.storage import Location
from lclm_rag.types import Document

__all__ = ["read_text", "require_converter"]

_AT_ONCE = 1 << 22


def read_text(file: CorpusFile, limits: ReadingLimits) -> Document | CorpusError:
    """Read a file as one document, whose id is the file's name below the corpus's root.

    Metadata is {"source": that name}, and for HTML also {"title": …} if the page has a title.

    Args:
        file: The file, of the kind "text" or "document".
        limits: What it may cost.

    Returns:
        The document, or an error that says why it cannot be read.

    Raises:
        ImportError: When markitdown, or what it needs, is not installed.
    """
    path = file.path
    try:
        data = _bytes(path, limits)
        if file.kind == "document":
            text, title = _converted(data, file, limits)
        else:
            text, title = decoded(data, printable(path)), None
    except OSError as error:
        return unreadable(path, error)
    except CorpusError as error:
        return error
    if not text.strip():
        if file.kind == "document" and data:
            return CorpusError(
                f"{printable(path)}: there is no text in it (a scan, perhaps); leave it out, or give a "
                "version that has text."
            )
        return CorpusError(f"{printable(path)}: the file is empty; remove it or give it text.")
    if not is_unicode(file.name):
        return CorpusError(f"{printable(path)}: the file's name is not UTF-8; rename the file.")
    metadata = {"source": file.name} | ({"title": title} if title else {})
    try:
        return Document(id=file.name, text=text, metadata=metadata)
    except ValueError as error:
        return CorpusError(f"{printable(path)}: {error}")


def require_converter(file: CorpusFile) -> None:
    """Check that what is needed to read the file is installed.

    Raises:
        ImportError: When markitdown is needed and not installed.
    """
    if file.kind == "document" and util.find_spec("markitdown") is None:
        raise ImportError(missing(printable(file.path)))


def _bytes(path: Location, limits: ReadingLimits) -> bytes:
    data = bytearray()
    with path.open("rb") as file:
        while piece := file.read(_AT_ONCE):
            data += piece
            if len(data) > limits.file:
                raise CorpusError(
                    f"{printable(path)}: larger than {size(limits.file)}; split it, or allow larger files "
                    "(--largest-file)."
                )
    return bytes(data)


def _converted(data: bytes, file: CorpusFile, limits: ReadingLimits) -> tuple[str, str | None]:
    """The Markdown, and the title that HTML may have apart from its text."""
    require_converter(file)
    where = printable(file.path)
    if not data:
        return "", None
    suffix = Path(file.name).suffix.lower()
    if suffix == ".docx":
        _check_unpacked(data, where, limits)
    elif suffix != ".pdf":
        data = _page(data, where).encode()
    markdown, title = convert(data, suffix, where, limits)
    # Broken fonts of a PDF give NULs for letters that nobody sees either.
    return markdown.replace("\0", ""), title


def _check_unpacked(data: bytes, where: str, limits: ReadingLimits) -> None:
    """Check what a DOCX says about the size of its parts, of which no more is ever unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            xml = (part for part in parts.infolist() if part.filename.endswith((".xml", ".rels")))
            unpacked = sum(part.file_size for part in xml)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # Converting it says what is wrong.
    if unpacked > limits.unpacked:
        raise CorpusError(
            f"{where}: unpacks to more than {size(limits.unpacked)} of XML; split the document, or allow "
            "more (--largest-unpacked)."
        )


def _page(data: bytes, where: str) -> str:
    """HTML as text: UTF-8 if the bytes are valid UTF-8, else what the page declares.

    The charset is never guessed: a wrong guess would silently replace letters by others.

    Raises:
        CorpusError: When neither fits.
    """
    from bs4.dammit import EncodingDetector

    if marked_encoding(data) is not None:
        return decoded(data, where)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        charset = EncodingDetector.find_declared_encoding(data, is_html=True) or ""
        try:
            text = data.decode(charset if _is_beyond_ascii(charset) else "")
        except (LookupError, UnicodeError):
            raise CorpusError(f"{where}: {not_utf8(error)}; convert the file to UTF-8.") from error
    if "\0" in text:
        raise has_nul(where)
    return text


def _is_beyond_ascii(charset: str) -> bool:
    """Whether an encoding has the bytes of ASCII in common, as it must if a page names it in ASCII."""
    try:
        return "<meta>".encode(charset) == b"<meta>"
    except (LookupError, UnicodeError):
        return False
