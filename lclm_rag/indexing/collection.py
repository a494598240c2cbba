"""Reading a collection on a Qdrant server: whether it is what the knowledge base's folder says.

A reader makes, fills and changes nothing.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from lclm_rag.config import Settings
from lclm_rag.errors import PassageIndexError
from lclm_rag.indexing.nothing import NothingIndexed
from lclm_rag.indexing.ownership import foreign
from lclm_rag.indexing.state import FILLING, UPDATING, State, home_of, read_state, read_work
from lclm_rag.indexing.versions import check_embedder
from lclm_rag.retrieval import Bm25Settings, Embedder, PassageIndex
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore

if TYPE_CHECKING:
    from lclm_rag.retrieval.server import ServerIndex

__all__ = ["ReadCollection"]

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
        return self._open(state.collection or self._collection, state.bm25)

    def _open(self, collection: str, bm25: Bm25Settings, *, create: bool = False) -> ServerIndex:
        from lclm_rag.retrieval.server import ServerIndex

        return ServerIndex.connect(
            self._url, collection, bm25=bm25, embedder=self._embedder, create=create
        )
