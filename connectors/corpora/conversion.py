"""Converts HTML, PDF and DOCX to Markdown, through markitdown: the process that `converting` starts.

Parsers of hostile or broken files take memory and time without end, or crash; here they cost one file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from lclm_rag.connectors.corpora.visible import visible_docx, visible_html

__all__ = ["memory_taken", "serve"]

_DEPTH = 5_000
"""How deeply the elements of a page may be nested, about; Python's own limit is soon reached."""

_SPARE_MEMORY = 32 << 20
"""Bytes above the limit that a process may take until its parent sees it."""

_KEPT_MEMORY = 256 << 20
"""Bytes that may stay taken after a file; beyond that, the process is replaced."""


def serve() -> None:
    """Convert the files that come on standard input, one after another, until it ends.

    A request is a line of JSON (`suffix`; the limits `memory`, in bytes, and `seconds`;
    `size`) and `size` bytes. The reply is such a line, too: `problem` ("" for none), `kind` of the problem
    ("missing", "memory" or "broken"), `title`, `last` (whether this process ends now) and `size`; then comes
    the Markdown. The first line says whether the converters could be imported.
    """
    requests = sys.stdin.buffer
    # Nothing that a parser prints may come between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.setrecursionlimit(_DEPTH)
    try:
        import markitdown.converters  # noqa: F401
    except ImportError as error:
        _reply(replies, problem=str(error), kind="missing", last=True)
        return
    _reply(replies)
    at_start = memory_taken()
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["size"])
        _limit(request["memory"], request["seconds"])
        try:
            reply = _converted(data, request["suffix"])
        except MemoryError:  # Even the words for an error may be too much.
            reply = {"kind": "memory"}
        del data
        _limit(None, None)
        last = reply.get("kind") == "memory" or memory_taken() - at_start > _KEPT_MEMORY
        _reply(replies, **reply, last=last)
        if last:
            return


def _reply(replies: BinaryIO, markdown: str = "", **values: Any) -> None:
    # Fonts of a PDF may name halves of surrogate pairs, some of which make a pair.
    utf16 = markdown.encode("utf-16-le", "surrogatepass")
    data = utf16.decode("utf-16-le", "replace").encode()
    head = {"problem": "", "kind": "", "title": "", "last": False, **values, "size": len(data)}
    replies.write(json.dumps(head).encode() + b"\n" + data)
    replies.flush()


def _converted(data: bytes, suffix: str) -> dict[str, Any]:
    from markitdown import MissingDependencyException

    try:
        markdown, title = _convert(data, suffix)
        return {"markdown": markdown, "title": " ".join((title or "").split())}
    except MissingDependencyException as error:
        return {"problem": str(error), "kind": "missing"}
    except RecursionError:
        return {"problem": "its elements are nested too deeply", "kind": "broken"}
    except Exception as error:  # The parsers may raise anything on a broken file.
        # libxml2 has no MemoryError, but says so.
        if isinstance(error, MemoryError) or "memory allocation" in str(error).lower():
            return {"kind": "memory"}
        return {"problem": str(error) or type(error).__name__, "kind": "broken"}


def _convert(data: bytes, suffix: str) -> tuple[str, str | None]:
    """The Markdown, and the title that HTML may have apart from its text."""
    from markitdown import StreamInfo
    from markitdown.converters import DocxConverter, HtmlConverter, PdfConverter

    # The converters are called directly, because MarkItDown would guess format and charset by a model.
    info = StreamInfo(extension=suffix, charset="utf-8")
    if suffix == ".pdf":
        result = PdfConverter().convert(io.BytesIO(data), info)
    elif suffix == ".docx":
        result = DocxConverter().convert(io.BytesIO(visible_docx(data)), info, strict=True)
    else:
        shown = visible_html(data.decode()).encode("utf-8", "replace")
        result = HtmlConverter().convert(io.BytesIO(shown), info, strict=True)
    return result.markdown, result.title


def memory_taken(process: int | str = "self") -> int:
    """Bytes of memory of its own that a process has asked for; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[5])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _limit(memory: int | None, seconds: float | None) -> None:
    """Limit what this process takes from now on, as far as the system can; None for no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return

    def limit(what: int, taken: float, most: float | None) -> None:
        hard = resource.getrlimit(what)[1]
        soft = hard if most is None else int(taken + most)
        if hard != resource.RLIM_INFINITY:
            soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
        # The parent watches the time as well, and its memory is the system's concern.
        with contextlib.suppress(ValueError, OSError, OverflowError):
            resource.setrlimit(what, (soft, hard))

    # The processor's time counts if the parent is gone; while it is there, it ends this process first.
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, used.ru_utime + used.ru_stime + 1, seconds)
    if taken := memory_taken():
        # The parent ends this process at the limit; this is for one whose parent is gone, and for what is too
        # large at once. Not the address space: where the stack cannot grow, a process crashes.
        limit(resource.RLIMIT_DATA, taken, None if memory is None else 1.5 * memory + _SPARE_MEMORY)
