"""Open the passage index of a knowledge base at a version of its store, and keep it there.

The index is derived: what is not there, or not of this version, is made of the store.
"""

from __future__ import annotations

from typing import Protocol

from lclm_rag.indexing.embedded import EmbeddedIndex
from lclm_rag.indexing.server import PutPoints, ServerPoints, SharedIndex
from lclm_rag.retrieval import Embedder, PassageIndex
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore

__all__ = ["IndexSession", "open_index"]


class IndexSession(Protocol):
    """An index that shows a version of the store. `index` may be another object after `follow`."""

    @property
    def index(self) -> PassageIndex: ...

    def follow(self, store: LatentStore) -> None:
        """Go to another version of the store."""

    def optimize(self) -> None:
        """Make searches faster; may take minutes."""

    def publish(self) -> None:
        """Let other processes have what they would have to make again."""

    def close(self) -> None: ...


def open_index(
    folder: Folder,
    store: LatentStore,
    *,
    embedder: Embedder | None,
    qdrant_url: str | None,
    collection: str | None,
    put_points: PutPoints = ServerPoints.upsert,
) -> IndexSession:
    """The passage index at the store's version: built where there is none, updated where it is behind.

    put_points: how points come to a Qdrant server.
    """
    if qdrant_url is None:
        return EmbeddedIndex(folder, store, embedder)
    return SharedIndex(folder, store, embedder, qdrant_url, str(collection), put_points)
