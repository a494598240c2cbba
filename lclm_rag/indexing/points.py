"""Passages on their way to a Qdrant server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lclm_rag.indexing.changes import entries_of
from lclm_rag.retrieval import Bm25Settings, PassageIndex
from lclm_rag.retrieval.collection_setup import CollectionSetup
from lclm_rag.retrieval.embedders import SentenceTransformerEmbedder
from lclm_rag.store import LatentStore

if TYPE_CHECKING:
    from lclm_rag.retrieval.server import ServerIndex

__all__ = ["OnPut", "PutPoints", "ServerPoints", "put_rows"]


@dataclass(frozen=True)
class ServerPoints:
    """Passages to be put on a Qdrant server, by workers on other machines.

    Attributes:
        store: The path or URL of the store.
        version: The version of the store that shows the passages.
        rows: The passages' rows (int64, ascending), by the names of their fragments.
        url: The server's URL.
        collection: The collection's name.
        bm25: The BM25 settings of the index.
        embedder: The name of the sentence-transformers model that makes dense vectors; None for BM25 alone.
        setup: What the points hold.
    """

    store: str
    version: int
    rows: Sequence[tuple[str, np.ndarray]]
    url: str
    collection: str
    bm25: Bm25Settings
    embedder: str | None
    setup: CollectionSetup

    def connect(self, device: str = "cpu") -> ServerIndex:
        """Open the collection, with the embedder on a torch device."""
        from lclm_rag.retrieval.server import ServerIndex

        embedder = None
        if self.embedder is not None:
            embedder = SentenceTransformerEmbedder(self.embedder, device)
        return ServerIndex.connect(
            self.url, self.collection, bm25=self.bm25, embedder=embedder, setup=self.setup
        )


OnPut = Callable[[str], None]
"""Called with the name of each fragment of which the server has all rows."""

PutPoints = Callable[[ServerPoints, OnPut], None]
"""Puts points on the server from other machines; returns when the server has them."""


def put_rows(index: PassageIndex, store: LatentStore, fragment: str, rows: np.ndarray) -> None:
    """Put rows of a fragment into an index. Doing so again does no harm."""
    index.upsert(entries_of(store.fragment(fragment), rows))
