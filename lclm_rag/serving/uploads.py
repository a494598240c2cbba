"""What clients upload: received into a folder of its own, and read as documents.

A client's name for a file is never a path: it only says what kind of file it is, and names documents.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal
from unicodedata import category

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from lclm_rag.connectors.corpora import ReadingLimits, read_corpus
from lclm_rag.connectors.corpora.files import SUFFIXES, kind_of
from lclm_rag.connectors.corpora.limits import DEFAULT_LIMITS
from lclm_rag.errors import CorpusError
from lclm_rag.serving.errors import RequestError
from lclm_rag.storage import COMPRESSIONS, open_unpacked
from lclm_rag.types import Document

__all__ = ["Reading", "Upload", "json_documents", "receive"]

_AT_ONCE = 2**20
_NAME_LENGTH = 512
_PARAMETERS = {
    "--text-column": "text_column",
    "--id-column": "id_column",
    "--metadata-columns": "metadata_columns",
    "--numbers": "number_columns",
}
"""What the options of the command line are called here."""

_DOCX_UNPACKED = 64 * 2**20
"""Bytes that a DOCX may unpack to, which are all in memory when it is read."""

_AROUND_A_FILE = 2**16
"""Bytes that multipart/form-data may have besides the file."""


@dataclass(frozen=True)
class Reading:
    """How records of a file become documents; see `read_corpus`.

    Attributes:
        text_column: The field with the text.
        id_column: The field with the id.
        metadata_columns: The fields to keep as metadata; None for all scalars.
        number_columns: The fields whose texts become numbers.
        on_error: Whether a bad record fails the upload or is left out.
        limits: What the file may cost.
    """

    text_column: str = "text"
    id_column: str = "id"
    metadata_columns: list[str] | None = None
    number_columns: list[str] | None = None
    on_error: Literal["fail", "skip"] = "fail"
    limits: ReadingLimits = DEFAULT_LIMITS


@dataclass(frozen=True)
class Upload:
    """An upload that has been received.

    Attributes:
        folder: A folder of its own.
        path: The file in it, under a name that is made up.
        name: What the client calls it; None for documents as JSON.
        most: Bytes that an upload may have, also when it is unpacked, and characters of its texts.
    """

    folder: Path
    path: Path
    name: str | None
    most: int

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def documents(self, reading: Reading, skipped: list[str]) -> Iterator[Document]:
        """Read its documents.

        Args:
            reading: How records become documents.
            skipped: Takes a sentence for each record that is left out.

        Yields:
            The documents.

        Raises:
            RequestError: When it cannot be read, or unpacks to more than is allowed.
            CorpusError: When a record cannot be read; the message has the client's name for the file.
        """
        if self.name is None:
            yield from json_documents(self.path)
            return
        path, characters = self._unpacked(), 0
        try:
            for document in read_corpus(
                path,
                text_column=reading.text_column,
                id_column=reading.id_column,
                metadata_columns=reading.metadata_columns,
                number_columns=reading.number_columns,
                limits=reading.limits,
                on_error=reading.on_error,
                on_skip=lambda sentence: skipped.append(self._in_words(sentence, path)),
                on_ignore=lambda sentence: None,
            ):
                characters += len(document.text)
                if characters > self.most:
                    raise self._too_large("has", self.most, "characters")
                yield _renamed(document, path.name, self.name)
        except CorpusError as error:
            raise CorpusError(self._in_words(str(error), path)) from error
        except ImportError as error:
            raise ImportError(self._in_words(str(error), path)) from error

    def _unpacked(self) -> Path:
        """The file, unpacked if it is packed: a small one may unpack to more than the disk holds."""
        try:
            if self.path.suffix == ".docx":
                with zipfile.ZipFile(self.path) as packed:
                    most = max(self.most, _DOCX_UNPACKED)
                    if sum(part.file_size for part in packed.infolist()) > most:
                        raise self._too_large("unpacks to", most, "bytes")
            if self.path.suffix not in COMPRESSIONS:
                return self.path
            path, size = self.path.with_suffix(""), 0
            with open_unpacked(self.path) as packed_bytes, path.open("wb") as file:
                while piece := packed_bytes.read(_AT_ONCE):
                    size += len(piece)
                    if size > self.most:
                        raise self._too_large("unpacks to", self.most, "bytes")
                    file.write(piece)
        except zipfile.BadZipFile:
            return self.path  # Reading it says what is wrong.
        except OSError as error:
            raise RequestError(400, f"{self.name}: cannot be unpacked; is it complete?") from error
        return path

    def _too_large(self, has: str, most: int, what: str) -> RequestError:
        return RequestError(
            413, f"{self.name} {has} more than {most:,} {what}; upload it in parts."
        )

    def _in_words(self, sentence: str, path: Path) -> str:
        """A sentence about the file, with the client's name for it."""
        name = self.name or ""
        sentence = sentence.replace(str(path), name).replace(path.name, name)
        for option, parameter in _PARAMETERS.items():
            sentence = sentence.replace(option, parameter)
        return sentence


async def receive(request: Request, filename: str | None, most: int) -> Upload:
    """Receive documents as JSON, or a file as it is or as multipart/form-data.

    Args:
        request: The request.
        filename: The client's name for a file that comes as it is; None for JSON or multipart/form-data.
        most: Bytes that it may have.

    Returns:
        The upload. The caller discards it.

    Raises:
        RequestError: When it is too large, of no kind that can be read, or cut off.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    allowed = most + _AROUND_A_FILE if form else most
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > allowed:
        raise _too_large(most)
    if filename is not None:
        filename = _checked_name(filename)
    elif not form and kind not in ("", "application/json"):
        raise RequestError(
            415,
            "Send documents as application/json, or say what the file is called: ?filename=report.pdf.",
            param="filename",
        )
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="lclm-rag-upload-"))
    try:
        body = _limited(request, allowed, most)
        if form:
            return await _from_form(request, body, filename, folder, most)
        path = folder / _made_up(filename)
        file = await asyncio.to_thread(path.open, "wb")
        try:
            await _write(body, file)
        finally:
            await asyncio.to_thread(file.close)
        return Upload(folder, path, filename, most)
    except BaseException as error:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if isinstance(error, ClientDisconnect):
            raise RequestError(400, "The upload was cut off; send it again.") from error
        raise


def json_documents(path: Path) -> list[Document]:
    """Read one document or a list of documents: {"id", "text", "metadata"}.

    Args:
        path: The file.

    Raises:
        RequestError: When it holds something else.
    """
    try:
        body = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The body is not valid JSON ({error}).") from error
    documents: list[Document] = []
    ids: set[str] = set()
    for number, item in enumerate(body if isinstance(body, list) else [body], start=1):
        try:
            document = _document(item)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"Document {number}: {error}") from error
        if document.id in ids:
            raise RequestError(400, f"Document {number}: the id {document.id!r} occurs twice.")
        ids.add(document.id)
        documents.append(document)
    if not documents:
        raise RequestError(400, 'There are no documents; send {"id": …, "text": …} or a list.')
    return documents


def _document(item: Any) -> Document:
    if not isinstance(item, dict) or not {"id", "text"} <= item.keys() <= {
        "id",
        "text",
        "metadata",
    }:
        raise ValueError(
            'a document is {"id": …, "text": …, "metadata": {…}}; metadata may be missing.'
        )
    metadata = item.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError('metadata is an object, such as {"lang": "en"}.')
    try:
        json.dumps(item, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # JSON of Python has NaN, and half surrogate pairs.
        raise ValueError("it holds NaN, an infinite number or half a character.") from error
    return Document(item["id"], item["text"], metadata)


def _renamed(document: Document, made_up: str, name: str) -> Document:
    """The document with the client's name where the name that was made up stands."""
    own = document.id.startswith(made_up)
    source = document.metadata.get("source") == made_up
    if not own and not source:
        return document
    return replace(
        document,
        id=name + document.id.removeprefix(made_up) if own else document.id,
        metadata={**document.metadata, **({"source": name} if source else {})},
    )


def _checked_name(name: str) -> str:
    """A client's name for a file, without the parts that lead out of a folder: it begins ids of documents.

    Raises:
        RequestError: When it is no name, or that of a kind of file that cannot be read.
    """
    kept = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
    if not kept or len(kept) > _NAME_LENGTH or any(category(c) in ("Cc", "Cs") for c in kept):
        raise RequestError(
            400,
            f"A file's name has 1 to {_NAME_LENGTH} characters and no control characters, such as "
            "report.pdf.",
            param="filename",
        )
    if kind_of(kept) is None:
        raise RequestError(
            415,
            f"{kept!r} is of no kind that can be read; its name must end in {', '.join(SUFFIXES)}; "
            ".jsonl, .ndjson, .csv and .tsv also with .gz or .zst.",
            param="filename",
        )
    return kept


def _made_up(name: str | None) -> str:
    """A name that nobody chose, with the endings that say what kind of file it is."""
    endings: list[str] = []
    if name is not None:
        rest = Path(name.lower())
        if rest.suffix in COMPRESSIONS:
            endings, rest = [rest.suffix], Path(rest.stem)
        endings.insert(0, rest.suffix)
    return f"upload-{uuid.uuid4().hex}{''.join(endings)}"


async def _limited(request: Request, allowed: int, most: int) -> AsyncGenerator[bytes]:
    """The body, as long as it is not too large."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > allowed:
            raise _too_large(most)
        yield piece


async def _write(body: AsyncGenerator[bytes], file: BinaryIO) -> None:
    pieces: list[bytes] = []
    async for piece in body:
        pieces.append(piece)
        if sum(map(len, pieces)) >= _AT_ONCE:
            await asyncio.to_thread(file.write, b"".join(pieces))
            pieces.clear()
    await asyncio.to_thread(file.write, b"".join(pieces))


async def _from_form(
    request: Request, body: AsyncGenerator[bytes], name: str | None, folder: Path, most: int
) -> Upload:
    try:
        form = await MultiPartParser(request.headers, body, max_files=1, max_fields=16).parse()
    except (MultiPartException, HTTPException) as error:
        raise RequestError(400, f"The form cannot be read: {error}") from error
    try:
        file = next((part for part in form.values() if isinstance(part, UploadFile)), None)
        if file is None:
            raise RequestError(400, "The form has no file; send one, with its name.", param="file")
        name = name or _checked_name(file.filename or "")
        if (file.size or 0) > most:
            raise _too_large(most)
        path = folder / _made_up(name)
        await asyncio.to_thread(_copy, file.file, path)
        return Upload(folder, path, name, most)
    finally:
        await form.close()


def _copy(source: BinaryIO, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)


def _too_large(most: int) -> RequestError:
    return RequestError(
        413,
        f"The upload has more than {most:,} bytes; send it in parts.",
        headers={"Connection": "close"},
    )
