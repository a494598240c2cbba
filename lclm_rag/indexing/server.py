"""The passage index in a collection on a Qdrant server, shared by all processes.

It shows the newest version of the store. `state.json` says which version that is. It is written only after
the server has taken every point, so an interrupted update is made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache

from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.indexing.changes import Changes, entries_of
from lclm_rag.indexing.versions import bm25_settings, check_embedder, indexed_store
from lclm_rag.retrieval import Bm25Settings, Embedder, PassageIndex
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore, newest_version

__all__ = ["PutPoints", "ServerPoints", "SharedIndex", "state_version"]


@dataclass(frozen=True)
class ServerPoints:
    """Passages to be put on a Qdrant server, by this process or a worker on another machine.

    Attributes:
        store: The path or URL of the store.
        version: The version of the store that shows the passages.
        rows: The passages' rows, by the names of their fragments.
        url: The server's URL.
        collection: The collection's name.
        bm25: The BM25 settings of the index.
        embedder: The name of the sentence-transformers model that makes dense vectors; None for BM25 alone.
    """

    store: str
    version: int
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    url: str
    collection: str
    bm25: Bm25Settings
    embedder: str | None

    def upsert(self) -> None:
        """Read the passages from the store, and put them on the server."""
        from lclm_rag.retrieval.server import ServerIndex

        embedder = _embedder(self.embedder) if self.embedder else None
        index = ServerIndex.connect(self.url, self.collection, bm25=self.bm25, embedder=embedder)
        store = _store(self.store, self.version)
        for name, rows in self.rows:
            index.upsert(entries_of(map(store.fragment(name).passage, rows)))
        index.close()


PutPoints = Callable[[ServerPoints], None]
"""Puts points on the server, from this process or from several machines; returns when the server has them."""


@lru_cache(maxsize=1)
def _embedder(name: str) -> Embedder:
    from lclm_rag.retrieval import SentenceTransformerEmbedder

    return SentenceTransformerEmbedder(name)


@lru_cache(maxsize=1)
def _store(location: str, version: int) -> LatentStore:
    return LatentStore.open_for_worker(location, version)


@dataclass(frozen=True)
class _State:
    """The content of `state.json`.

    Attributes:
        version: The number of the store's version that the collection shows; None while it is first filled.
        manifest: The digest of that version's manifest; None while the collection is first filled.
        bm25: The BM25 settings of the index.
        embedder: The name of the model that made the dense vectors; None for BM25 alone.
    """

    version: int | None
    manifest: str | None
    bm25: Bm25Settings
    embedder: str | None


class SharedIndex:
    """A collection on a Qdrant server, which shows the newest version to all processes.

    `index` is the index; after `follow` it may be another object.

    Args:
        folder: The folder of the knowledge base's index, where `state.json` is.
        store: The store, at the version to show.
        embedder: Makes dense vectors; None for BM25 alone.
        qdrant_url: The server's URL.
        collection: The collection's name.
        put_points: Puts points on the server.

    Raises:
        KnowledgeBaseError: If the collection exists but is not of this knowledge base, which has no readable
            `state.json` then; or if the index was made with another embedder.
        PassageIndexError: If the server cannot be reached or refuses a request.
    """

    def __init__(
        self,
        folder: Folder,
        store: LatentStore,
        embedder: Embedder | None,
        qdrant_url: str,
        collection: str,
        put_points: PutPoints,
    ) -> None:
        self._folder = folder
        self._embedder = embedder
        self._url = qdrant_url
        self._collection = collection
        self._store = store
        self.put_points = put_points
        self._name = embedder.name if embedder else None
        self.index: PassageIndex
        folder.make()
        if _read_state(folder) is None:
            _refuse_foreign_collection(qdrant_url, collection)
        self._show(store)

    def follow(self, store: LatentStore) -> None:
        """Bring the collection to another version of the store."""
        before, self._store = self._store, store
        if before.version != store.version:
            self.index.close()
            self._show(store)

    def _show(self, store: LatentStore) -> None:
        """Connect to the collection, and bring it to this version of the store or leave it at a later one.

        A later version was written by other processes, and is not taken back. Which version the collection
        shows is read from `state.json` each time, because other processes may have changed it.
        """
        state = _read_state(self._folder)
        indexed = None
        if state is not None:
            indexed = indexed_store(store, state.version, state.manifest)
        if state is not None and indexed is None and newest_version(store.folder) > store.version:
            # Another process has brought the collection to a version that is later than this one.
            self._connect(state)
            return
        behind = indexed is not None and indexed.version < store.version
        if state is None or indexed is None or (behind and not len(indexed)):
            self._build(store)
            return
        self._connect(state)
        if behind:
            # Points before the state: interrupted in between, the same changes are made again, which has the
            # same result.
            self._apply(Changes.between(indexed, store), store)
            self._write_state(store)

    def optimize(self) -> None:
        """Do nothing: the server optimizes by itself."""

    def publish(self) -> None:
        """Do nothing: all processes use the same collection."""

    def close(self) -> None:
        """Close the connection to the server."""
        self.index.close()

    def _build(self, store: LatentStore) -> None:
        from lclm_rag.retrieval.server import drop_collection

        drop_collection(self._url, self._collection)
        self._bm25 = bm25_settings(store)
        # 1. A state without a version, before the collection is made: if this is interrupted, the next
        #    process knows the collection as this knowledge base's, and builds it again.
        # 2. The collection, and all points.
        # 3. The version, last: it says that every point is there.
        self._connect(self._write_state(None))
        self._apply(Changes.between(None, store), store)
        self._write_state(store)

    def _apply(self, changes: Changes, store: LatentStore) -> None:
        # Deletions first: a changed document's new passages have the keys of its old ones, and deleting
        # afterwards would remove them.
        changes.delete(self.index)
        folder = store.folder
        points = ServerPoints(
            store=str(folder if folder.local is None else folder.local.resolve()),
            version=store.version,
            rows=tuple((fragment.name, tuple(rows)) for fragment, rows in changes.new),
            url=self._url,
            collection=self._collection,
            bm25=self._bm25,
            embedder=self._name,
        )
        self.put_points(points)

    def _connect(self, state: _State) -> None:
        from lclm_rag.retrieval.server import ServerIndex

        check_embedder(state.embedder, self._embedder, self._folder)
        self._bm25 = state.bm25
        self.index = ServerIndex.connect(
            self._url, self._collection, bm25=state.bm25, embedder=self._embedder
        )

    def _write_state(self, store: LatentStore | None) -> _State:
        version = None if store is None else store.version
        manifest = None if store is None else store.manifest.digest
        state = _State(version, manifest, self._bm25, self._name)
        self._folder.replace("state.json", seal(asdict(state)))
        return state


def _refuse_foreign_collection(qdrant_url: str, collection: str) -> None:
    from lclm_rag.retrieval.server import collection_exists

    if collection_exists(qdrant_url, collection):
        raise KnowledgeBaseError(
            f"The collection {collection!r} at {qdrant_url} is there already, and not of this "
            "knowledge base; choose another name, or delete it."
        )


def state_version(folder: Folder) -> int:
    """The version that a server's collection shows; 0 if there is none.

    Args:
        folder: The folder of the knowledge base's index, where `state.json` is.
    """
    state = _read_state(folder)
    return 0 if state is None else state.version or 0


def _read_state(folder: Folder) -> _State | None:
    try:
        raw = unseal(folder.read("state.json"))
        return _State(raw["version"], raw["manifest"], Bm25Settings(**raw["bm25"]), raw["embedder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # An unreadable state is taken for none: the index is derived, and can be built again.
