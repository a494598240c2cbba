"""`kb.json`: what was chosen when a knowledge base was created."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lclm_rag.checksummed_json import digest, seal, unseal
from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.retrieval.words import WORDS
from lclm_rag.typed_json import from_json

if TYPE_CHECKING:
    from lclm_rag.storage import Folder

__all__ = [
    "SETTINGS",
    "Settings",
    "check_qdrant",
    "check_qdrant_url",
    "is_knowledge_base",
    "read_settings",
    "remove_unfinished_settings",
    "write_settings",
]

SETTINGS = "kb.json"
_MOST_TOKENS = 1 << 24
_LONGEST_NAME = 255
_FORMAT = 6
_READABLE = (3, 4, 5, _FORMAT)
"""Formats up to 5 have no `language`, which was English, and no `words`. Formats 3 and 4 have no `id`.
Format 3 has no `frame` either, and always an `instruction`."""


@dataclass(frozen=True)
class Settings:
    """What was chosen when the knowledge base was created.

    Attributes:
        checkpoint: The checkpoint's folder or hub id, "english" or "bundled".
        passage_tokens: Most encoder tokens in a passage.
        instruction: The instruction in every prompt; None is that of the frame.
        embedder: Name or path of a sentence-transformers model; "given:" and the name of an `Embedder` that
            was passed as an object; None means BM25 alone.
        qdrant_url: URL of the Qdrant server that holds the passage index; None means embedded, in the folder.
        collection: Name of the collection on that server; None if the index is embedded.
        contextual_headers: Whether passages carry title and headings.
        frame: The words around passages and question, as `Frame.to_json` gives them; None is the frame that
            the checkpoint names.
        id: What no other knowledge base is called, but a copy of this one: the passage index carries it. One
            from before there were ids has one that is made of its settings.
        language: The language of BM25's words, one of `lclm_rag.retrieval.LANGUAGES`; "auto" until something
            is added, whose language it then becomes.
        words: The name of what BM25 takes for a word, `lclm_rag.retrieval.WORDS`; see
            `lclm_rag.retrieval.words`. A collection on a server that was made before keeps its own.
        qdrant_options: How the collection is made, as `lclm_rag.retrieval.collection_setup.check_options`
            takes it; None as the server makes it.
        filter_keys: The metadata keys that the collection's points hold, and that filters can name; None for
            all.
        format: Version of the file's format.
    """

    checkpoint: str
    passage_tokens: int
    instruction: str | None
    embedder: str | None
    qdrant_url: str | None
    collection: str | None
    contextual_headers: bool
    frame: str | dict[str, Any] | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    language: str = "auto"
    words: str = WORDS
    qdrant_options: dict[str, Any] | None = None
    filter_keys: list[str] | None = None
    format: int = _FORMAT


def check_qdrant_url(url: str) -> str:
    """Check the URL of a Qdrant server, which is noted in `kb.json` for all who read it.

    Args:
        url: The URL.

    Returns:
        The URL.

    Raises:
        ValueError: When it is not one of a server, or holds a user, a password or a key.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(
            "The URL of a Qdrant server begins with http:// or https:// and names the server, as in "
            "http://localhost:6333; the one that was given does not."
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            f"The URL of the Qdrant server at {host} has more in it than a server, and is kept in kb.json, "
            "where no secret belongs: give a key in the environment variable QDRANT_API_KEY."
        )
    return url


def check_qdrant(
    url: str | None, options: Mapping[str, Any] | None, filter_keys: Sequence[str] | None
) -> None:
    """Check what is asked of a Qdrant server.

    Args:
        url: The server's URL; None for an embedded index.
        options: Options of the collection.
        filter_keys: The metadata keys that filters can name.

    Raises:
        ValueError: When something is wrong, or is asked for without a server.
    """
    if url is None:
        for name, value in (("Options of a collection", options), ("Filter keys", filter_keys)):
            if value is not None:
                raise ValueError(f"{name} are for a Qdrant server; give its URL, too.")
        return
    check_qdrant_url(url)
    if options is not None:
        from lclm_rag.retrieval.collection_setup import check_options

        check_options(options)
    if isinstance(filter_keys, str):
        raise ValueError(f"filter_keys is a list of metadata keys, not {filter_keys!r}.")


def is_knowledge_base(folder: Folder) -> bool:
    """Whether a folder has settings, and so is a knowledge base."""
    try:
        return bool(folder.read(SETTINGS))
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_settings(folder: Folder) -> Settings:
    """Read the settings of a knowledge base.

    Args:
        folder: The knowledge base's folder.

    Returns:
        The settings.

    Raises:
        KnowledgeBaseError: When the folder is not a knowledge base, has another format, or its settings are
            damaged.
    """
    try:
        raw = unseal(folder.read(SETTINGS))
        if type(raw["format"]) is not int:
            raise ValueError("its format is no number")
        if raw["format"] not in _READABLE:
            raise KnowledgeBaseError(
                f"{folder} has format {raw['format']}; this lclm-rag reads format {_FORMAT}. Build it "
                "anew, or use the version of lclm-rag that made it."
            )
        early = {"id": digest(raw)[:32], "language": "english"}
        settings = from_json(Settings, {**early, **raw, "format": _FORMAT})
        _check(settings)
        return settings
    except (FileNotFoundError, NotADirectoryError) as error:
        raise KnowledgeBaseError(
            f"{folder} is not a knowledge base: it has no {SETTINGS}. Make one with lclm-rag build."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise KnowledgeBaseError(
            f"{folder / SETTINGS} is damaged or of an early format: {error}. Restore it from a backup, or "
            "build the knowledge base anew."
        ) from error


def _check(settings: Settings) -> None:
    """ValueError if a setting cannot be, whatever it is used for."""
    if not 0 < settings.passage_tokens <= _MOST_TOKENS:
        raise ValueError(f"passage_tokens is {settings.passage_tokens}")
    for name in ("checkpoint", "embedder", "qdrant_url", "collection", "id"):
        text = getattr(settings, name)
        # No system takes longer names of files, and no hub or server longer ones of models and collections.
        if text is not None and (
            not text or any(len(part.encode()) > _LONGEST_NAME for part in text.split("/"))
        ):
            raise ValueError(f"{name} is empty or too long")


def remove_unfinished_settings(folder: Folder) -> int:
    """Remove what writers of settings have left that were killed; nobody may be writing them now.

    Args:
        folder: The knowledge base's folder, on this machine.

    Returns:
        The bytes freed.
    """
    freed = 0
    for facts in folder.files():
        if facts.name.startswith(f"{SETTINGS}-") and facts.name.endswith(".tmp"):
            folder.remove(facts.name)
            freed += facts.size
    return freed


def write_settings(folder: Folder, settings: Settings) -> None:
    """Write the settings of a knowledge base to its folder, replacing those that are there."""
    folder.replace(SETTINGS, seal(asdict(settings)))
