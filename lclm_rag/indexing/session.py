"""Sessions: the passage index of a knowledge base, opened and kept at a version of its store.

The index is derived from the store: what is missing, or of another version, is made from it. An embedded
index is each process's own, so whoever opens it does that; a collection on a server is shared, so only a
writer does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lclm_rag.config import Settings
from lclm_rag.indexing.embedded import EmbeddedIndex
from lclm_rag.indexing.filling import OnProgress
from lclm_rag.indexing.points import PutPoints
from lclm_rag.indexing.server import SharedIndex, Task
from lclm_rag.retrieval import Embedder, PassageIndex
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore

__all__ = ["IndexSession", "open_index"]


class IndexSession(Protocol):
    """An open index that shows a version of the store."""

    @property
    def index(self) -> PassageIndex:
        """The index; after a call of any other method it may be another object."""
        ...

    def follow(self, store: LatentStore) -> None:
        """Bring the index to another version of the store."""

    def optimize(self) -> None:
        """Make searches faster; may take minutes."""

    def publish(self) -> None:
        """Publish changes that other processes would otherwise have to make again."""

    def close(self) -> None:
        """Publish unpublished changes, and close the index."""


def open_index(
    folder: Folder,
    store: LatentStore,
    settings: Settings,
    *,
    embedder: Embedder | None,
    put_points: PutPoints | None = None,
    task: Task = "read",
    on_progress: OnProgress = lambda done, total: None,
    on_filled: Callable[[], None] = lambda: None,
) -> IndexSession:
    """Open the passage index at the store's version.

    An embedded index is built if there is none, and updated if it is behind.

    Args:
        folder: The folder of the knowledge base's index.
        store: The store, at the version to show.
        settings: The knowledge base's settings: whether its index is embedded, or on which server.
        embedder: Makes dense vectors; None for BM25 alone.
        put_points: Puts points on the server from other machines; None puts them from this process.
        task: What to do with a collection on a server: "read" it as it is, "write" to build or update it, or
            "rebuild" to put a new one in its place, or "move" to make one on another server.
        on_progress: Called while a collection is filled.
        on_filled: Called when a new collection holds everything, before it is noted that it does.

    Raises:
        KnowledgeBaseError: If the index was made with another embedder, or the collection on the server
            exists but is not of this knowledge base.
        LockedError: If another process changes the collection, and is not done after ten minutes.
        PassageIndexError: If the disk is too full, the server cannot be reached or refuses a request, the
            collection is lost or not filled yet, or snapshots keep changing while they are opened.
        DamagedError: If a row of the store that has to be indexed is damaged.
    """
    if settings.qdrant_url is None:
        return EmbeddedIndex(folder, store, embedder, settings.id, settings.language)
    return SharedIndex(folder, store, embedder, settings, put_points, task, on_progress, on_filled)
