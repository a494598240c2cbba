"""Reading a collection on a Qdrant server: whether it is what the knowledge base's folder says.

A reader makes, fills and changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lclm_rag.config import Settings
from lclm_rag.errors import KnowledgeBaseError, PassageIndexError
from lclm_rag.indexing.nothing import NothingIndexed
from lclm_rag.indexing.ownership import copied, foreign
from lclm_rag.indexing.state import FILLING, UPDATING, State, home_of, read_state, read_work
from lclm_rag.indexing.versions import check_embedder
from lclm_rag.retrieval import Bm25Settings, Embedder, PassageIndex
from lclm_rag.retrieval.collection_setup import ON_DISK_FROM, CollectionSetup
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore

if TYPE_CHECKING:
    from lclm_rag.retrieval.server import ServerIndex

__all__ = [
    "ReadCollection",
    "check_server",
    "is_empty",
    "open_empty",
    "require_empty",
    "require_reachable",
    "setup_of",
]

_WAIT = 5.0  # seconds for which a reader waits for the first fill
_OFF = 0.01  # the share of the passages by which the collection's count may differ

_log = logging.getLogger(__name__)


class ReadCollection:
    """The collection of a knowledge base on a Qdrant server, to read it.

    Args:
        folder: The folder of the knowledge base's index, where its state is.
        store: The store, at the version to show.
        embedder: Makes dense vectors; None for BM25 alone.
        settings: The knowledge base's settings, which name the server and the collection.
    """

    def __init__(
        self, folder: Folder, store: LatentStore, embedder: Embedder | None, settings: Settings
    ) -> None:
        self._folder = folder
        self._embedder = embedder
        self._settings = settings
        self._url = str(settings.qdrant_url)
        self._collection = str(settings.collection)
        self._owner = settings.id
        self._store = store
        self._home = home_of(folder)
        self._name = embedder.name if embedder else None
        self._setup = setup_of(settings, len(store))
        self.index: PassageIndex = NothingIndexed()

    def read(self, store: LatentStore) -> None:
        """Connect to the collection as it is, after checking that it is what the state says.

        Raises:
            KnowledgeBaseError: If the index was made with another embedder.
            PassageIndexError: If the state cannot be read, the collection is lost, of another knowledge base
                or still being filled, or the server cannot be reached.
        """
        state = read_state(self._folder)
        if state is None:
            if not len(store):
                return
            state = self._wait_for_the_first()
        self.index = index = self._connect(state)
        try:
            self._check(index, state, store)
        except BaseException:
            index.close()
            raise
        if state.version < store.version:
            _log.warning(
                "The passage index of %s shows version %s, and version %s is not in it yet: its writer is at "
                "it, or was interrupted. The next lclm-rag add, delete or sync brings it up to date, and so "
                "does lclm-rag verify --repair.",
                store.folder,
                state.version,
                store.version,
            )

    def _wait_for_the_first(self) -> State:
        """The first state. PassageIndexError if there is none soon: the collection is being filled."""
        from lclm_rag.retrieval.collections import count_points

        until = time.monotonic() + _WAIT
        while (state := read_state(self._folder)) is None:
            filling = read_work(self._folder, FILLING)
            if filling is None and read_state(self._folder) is None:
                raise PassageIndexError(
                    f"There is no passage index of {self._store.folder} at {self._url} yet: the next "
                    "lclm-rag add or sync makes it, and so does lclm-rag verify --repair."
                )
            if filling is not None and time.monotonic() > until:
                done = count_points(self._url, filling.collection)
                raise PassageIndexError(
                    f"The passage index of {self._store.folder} is being filled, {done:,} of "
                    f"{filling.passages:,} passages: try again later. If no process is filling it any more, "
                    "the next lclm-rag add or sync goes on, and so does lclm-rag verify --repair."
                )
            time.sleep(0.1)
        return state

    def _check(self, index: ServerIndex, state: State, store: LatentStore) -> None:
        """Check that a collection is this knowledge base's, and shows a version that the store has.

        Raises:
            PassageIndexError: If it does not.
        """
        where = self._where(state)
        if sentence := foreign(index.mark, self._owner, state, store, where):
            raise PassageIndexError(sentence)
        if state.version == store.version:
            self._check_count(index, state, len(store))

    def _where(self, state: State) -> str:
        return f"The collection {state.collection or self._collection!r} at {self._url}"

    def _check_count(self, index: ServerIndex, state: State, passages: int) -> None:
        count = index.count()
        if abs(count - passages) <= _OFF * passages:
            return
        # While a writer is at it, the count is between that of two versions.
        if read_work(self._folder, UPDATING) is None and read_state(self._folder) == state:
            raise PassageIndexError(
                f"{self._where(state)} has {count:,} passages, and version {state.version} has "
                f"{passages:,}: points were lost, or others put there. lclm-rag verify --repair makes it "
                "anew from the store."
            )

    def _connect(self, state: State) -> ServerIndex:
        check_embedder(state.embedder, self._embedder, self._folder)
        if len(self._store) and not state.bm25.suit(self._settings.language):
            _log.warning(
                "The collection %r at %s splits texts into words as an earlier lclm-rag did, or for another "
                "language, and has no dates to compare; lclm-rag reindex makes it anew.",
                state.collection or self._collection,
                self._url,
            )
        return self._open(state.collection or self._collection, state.bm25)

    def _open(self, collection: str, bm25: Bm25Settings, *, create: bool = False) -> ServerIndex:
        from lclm_rag.retrieval.server import ServerIndex

        return ServerIndex.connect(
            self._url,
            collection,
            bm25=bm25,
            embedder=self._embedder,
            create=create,
            setup=self._setup,
        )


def check_server(
    folder: Folder, settings: Settings, embedder: Callable[[], Embedder | None]
) -> None:
    """Check that a writer's server can be reached and has room for its index, before it does anything else.

    Args:
        folder: The folder of the knowledge base's index.
        settings: The knowledge base's settings, with a server.
        embedder: Loads the embedder; called only if a collection was made beforehand.

    Raises:
        KnowledgeBaseError: If the collection is there, and is not this knowledge base's or does not fit.
        PassageIndexError: If the server cannot be reached or does not let this process in, or the collection
            is lost or is that of which this knowledge base is a copy.
    """
    from lclm_rag.retrieval.collections import collection_behind, read_mark

    url, name = str(settings.qdrant_url), str(settings.collection)
    state = read_state(folder)
    if state is not None:
        searched = state.collection or name
        read_mark(url, searched)
        if sentence := copied(folder, state, f"The collection {searched!r} at {url}"):
            raise PassageIndexError(sentence)
        return
    filling = read_work(folder, FILLING)
    there = collection_behind(url, name)
    if there is not None and (filling is None or filling.collection != there):
        require_empty(url, name, settings.id)
        open_empty(url, there, Bm25Settings(), embedder(), setup_of(settings, 0)).close()


def require_reachable(url: str) -> None:
    """Check that a server answers; PassageIndexError if it does not, or does not let this process in."""
    from lclm_rag.retrieval.collections import collection_exists

    collection_exists(url, "lclm-rag")


def open_empty(
    url: str,
    collection: str,
    bm25: Bm25Settings,
    embedder: Embedder | None,
    setup: CollectionSetup,
    *,
    create: bool = False,
) -> ServerIndex:
    """Open an empty collection that was made beforehand.

    Args:
        url: The server's URL.
        collection: The collection's name.
        bm25: How words become sparse vectors.
        embedder: Makes dense vectors; None for BM25 alone.
        setup: What its points will hold.
        create: Whether to make what it lacks of payload indexes.

    Raises:
        KnowledgeBaseError: If its vectors are not those of a passage index with this embedder.
        PassageIndexError: If the server cannot be reached.
    """
    from lclm_rag.retrieval.server import ServerIndex

    try:
        return ServerIndex.connect(
            url, collection, bm25=bm25, embedder=embedder, create=create, setup=setup
        )
    except PassageIndexError as error:
        if error.__cause__ is not None:  # The server said so.
            raise
        raise KnowledgeBaseError(
            f"{error} It is empty: delete it, or make it with sparse vectors called bm25, with the modifier "
            "idf, and dense vectors called dense, compared by Cosine and as wide as the embedder's; without "
            "an embedder there are none."
        ) from error


def is_empty(url: str, collection: str) -> bool:
    """Whether a collection has no points, and is no knowledge base's as far as it says.

    Raises:
        PassageIndexError: If the server cannot be reached.
    """
    from lclm_rag.retrieval.collections import count_points, read_mark

    return read_mark(url, collection) is None and not count_points(url, collection)


def require_empty(url: str, collection: str, owner: str) -> None:
    """Check that a collection may be filled by a knowledge base that has none yet.

    Args:
        url: The server's URL.
        collection: The collection's name, or an alias of it.
        owner: The knowledge base's id.

    Raises:
        KnowledgeBaseError: If it has points, or is another knowledge base's.
        PassageIndexError: If the server cannot be reached.
    """
    from lclm_rag.retrieval.collections import count_points, read_mark

    mark = read_mark(url, collection)
    if count_points(url, collection) or (mark is not None and mark.id != owner):
        raise KnowledgeBaseError(
            f"The collection {collection!r} at {url} is there already, and not of this knowledge base, or it "
            "was lost from its records: delete it, or let lclm-rag verify --repair make one under another "
            "name."
        )


def setup_of(settings: Settings, passages: int) -> CollectionSetup:
    """How the collection of a knowledge base is made.

    Args:
        settings: The knowledge base's settings.
        passages: The number of its passages.
    """
    keys = settings.filter_keys
    return CollectionSetup(
        settings.qdrant_options or {},
        None if keys is None else tuple(keys),
        passages >= ON_DISK_FROM,
    )
