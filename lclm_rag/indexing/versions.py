"""What an index was made from: a version of the store, an embedder, BM25's settings."""

from __future__ import annotations

import itertools

from lclm_rag.errors import KnowledgeBaseError, StoreError
from lclm_rag.retrieval import Bm25Settings, Embedder, average_length
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore

__all__ = ["bm25_settings", "check_embedder", "indexed_store"]

_AVERAGED = 10_000
"""BM25's average length is measured on this many passages."""


def indexed_store(
    store: LatentStore, version: int | None, manifest: str | None
) -> LatentStore | None:
    """The store at the version that an index shows; None where that is not there any more, or another one has
    its number. manifest: the version's digest."""
    if version is None:
        return None
    opened = store
    if version != store.version:
        try:
            opened = LatentStore.open(store.folder, version)
        except StoreError:
            return None
    return opened if opened.manifest.digest == manifest else None


def bm25_settings(store: LatentStore) -> Bm25Settings:
    """For an index that is made anew of this version."""
    sample = [passage.content for passage in itertools.islice(store.texts(), _AVERAGED)]
    return Bm25Settings(avg_len=average_length(sample)) if sample else Bm25Settings()


def check_embedder(made_with: str | None, embedder: Embedder | None, folder: Folder) -> None:
    named = embedder.name if embedder else None
    if made_with != named:
        raise KnowledgeBaseError(
            f"The passage index in {folder} was made with embedder {made_with}, not with {named}."
        )
