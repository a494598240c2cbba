"""Reads a file that is one document: text unchanged; HTML, PDF and DOCX as Markdown, through markitdown."""

from __future__ import annotations

import io
from importlib import util
from pathlib import Path

from lclm_rag.connectors.corpora.files import CorpusFile
from lclm_rag.connectors.corpora.messages import (
    first_line,
    is_unicode,
    not_utf8,
    printable,
    unreadable,
)
from lclm_rag.errors import CorpusError
from lclm_rag.types import Document

__all__ = ["read_text", "require_converter"]


def read_text(file: CorpusFile) -> Document | CorpusError:
    """Read a file as one document, whose id is the file's name below the corpus's root.

    Metadata is {"source": that name}, and for HTML also {"title": …} if the page has a title.

    Args:
        file: The file, of the kind "text" or "document".

    Returns:
        The document, or an error that says why it cannot be read.

    Raises:
        ImportError: When markitdown, or what it needs, is not installed.
    """
    path = file.path
    try:
        data = path.read_bytes()
        text, title = _converted(data, file) if file.kind == "document" else (_decoded(data), None)
    except OSError as error:
        return unreadable(path, error)
    except UnicodeDecodeError as error:
        return CorpusError(f"{printable(path)}: {not_utf8(error)}; convert the file to UTF-8.")
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
    return Document(id=file.name, text=text, metadata=metadata)


def require_converter(file: CorpusFile) -> None:
    """Check that what is needed to read the file is installed.

    Raises:
        ImportError: When markitdown is needed and not installed.
    """
    if file.kind == "document" and util.find_spec("markitdown") is None:
        raise ImportError(_missing(file))


def _missing(file: CorpusFile) -> str:
    return f"{printable(file.path)}: HTML, PDF and DOCX need markitdown: pip install 'lclm-rag[documents]'"


def _decoded(data: bytes) -> str:
    return data.decode().removeprefix("\ufeff")


def _converted(data: bytes, file: CorpusFile) -> tuple[str, str | None]:
    """The Markdown, and the title that HTML may have apart from its text."""
    try:
        from markitdown import MissingDependencyException, StreamInfo
        from markitdown.converters import DocxConverter, HtmlConverter, PdfConverter
    except ImportError as error:
        raise ImportError(_missing(file)) from error
    if not data:
        return "", None
    suffix = Path(file.name).suffix.lower()
    # Call the converters directly, because MarkItDown would guess format and charset by a model.
    converters = {".pdf": PdfConverter, ".docx": DocxConverter}
    charset = None if suffix in converters else _html_charset(data)
    info = StreamInfo(extension=suffix, charset=charset)
    try:
        result = converters.get(suffix, HtmlConverter)().convert(io.BytesIO(data), info)
    except MissingDependencyException as error:
        raise ImportError(_missing(file)) from error
    except Exception as error:  # The parsers below may raise anything on a broken file.
        raise CorpusError(
            f"{printable(file.path)}: cannot be read as {suffix[1:].upper()} ({first_line(error)}); "
            "mend the file or leave it out."
        ) from error
    return result.markdown, " ".join((result.title or "").split()) or None


def _html_charset(data: bytes) -> str:
    """UTF-8 if the bytes are valid UTF-8, else what the page declares.

    Raises UnicodeDecodeError if neither fits. The charset is never guessed: a wrong guess would silently
    replace letters by others.
    """
    from bs4.dammit import EncodingDetector

    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        _, marked = EncodingDetector.strip_byte_order_mark(data)
        declared = marked or EncodingDetector.find_declared_encoding(data, is_html=True)
        try:
            data.decode(declared or "utf-8")
        except LookupError:
            data.decode()
        return declared or "utf-8"
    return "utf-8-sig"
