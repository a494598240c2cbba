"""What an index was made from: a version of the store, an embedder, and BM25 settings."""

from __future__ import annotations

import itertools

from lclm_rag.errors import KnowledgeBaseError, StoreError
from lclm_rag.retrieval import Bm25Settings, Embedder, average_length, detect_language
from lclm_rag.retrieval.language import AUTO
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore

__all__ = ["bm25_settings", "check_embedder", "indexed_store", "language_of"]

_AVERAGED = 10_000
"""The number of passages on which BM25's average length is measured."""


def indexed_store(
    store: LatentStore, version: int | None, manifest: str | None
) -> LatentStore | None:
    """Open the store at the version that an index shows.

    Args:
        store: The store, at any version.
        version: The version's number; None if the index shows none.
        manifest: The digest of the version's manifest.

    Returns:
        The store at that version; None if the version no longer exists, or its number belongs to another
        version now.
    """
    if version is None:
        return None
    opened = store
    if version != store.version:
        try:
            opened = LatentStore.open(store.folder, version)
        except StoreError:
            return None
    return opened if opened.manifest.digest == manifest else None


def bm25_settings(store: LatentStore, language: str = AUTO) -> Bm25Settings:
    """The BM25 settings of an index that is built from this version.

    Args:
        store: The store.
        language: A language, or "auto" for that of the store's first passages.
    """
    sample = [passage.content for passage in itertools.islice(store.texts(), _AVERAGED)]
    if not sample:
        return Bm25Settings()
    if language == AUTO:
        language = detect_language(sample)
    return Bm25Settings(language, average_length(sample, language))


def language_of(store: LatentStore) -> str:
    """The language of the store's first passages, as `detect_language` tells it."""
    return detect_language(passage.content for passage in store.texts())


def check_embedder(made_with: str | None, embedder: Embedder | None, folder: Folder) -> None:
    """Check that an index is used with the embedder that it was made with.

    Args:
        made_with: The name of the embedder that the index was made with; None for BM25 alone.
        embedder: The embedder to use; None for BM25 alone.
        folder: The index's folder, for the message.

    Raises:
        KnowledgeBaseError: If they are not the same.
    """
    named = embedder.name if embedder else None
    if made_with != named:
        raise KnowledgeBaseError(
            f"The passage index in {folder} was made with embedder {made_with}, not with {named}."
        )
