"""The passage index in a collection on a Qdrant server, shared by all processes.

It shows the newest version of the store. A state in the knowledge base's folder says which version that is
(`lclm_rag.indexing.state`). It is written only after the server has taken every point, so an interrupted
update is made again.

Only whoever has committed a version writes: a reader makes, fills and changes nothing. A collection is filled
under a name of its own, and only when it holds everything does the name that readers search, an alias, stand
for it. Nothing is dropped unless `lclm-rag verify --repair` or `lclm-rag reindex` has put another collection
in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from lclm_rag.config import Settings
from lclm_rag.errors import PassageIndexError, StoreError
from lclm_rag.indexing.changes import Changes
from lclm_rag.indexing.collection import is_empty, require_empty
from lclm_rag.indexing.filling import FilledCollection, OnProgress, unique
from lclm_rag.indexing.nothing import NothingIndexed
from lclm_rag.indexing.ownership import copied, foreign
from lclm_rag.indexing.points import PutPoints
from lclm_rag.indexing.state import (
    UPDATING,
    State,
    Work,
    read_state,
    read_work,
    remove_states,
    write_state,
    write_work,
)
from lclm_rag.indexing.versions import bm25_settings, check_embedder, indexed_store
from lclm_rag.retrieval import Bm25Settings, Embedder
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore, newest_version

if TYPE_CHECKING:
    from lclm_rag.retrieval.collections import Mark
    from lclm_rag.retrieval.server import ServerIndex

__all__ = ["SharedIndex", "Task"]

Task = Literal["read", "write", "rebuild", "move"]

_log = logging.getLogger(__name__)


class SharedIndex(FilledCollection):
    """A collection on a Qdrant server, which shows the newest version to all processes.

    `index` is the index; after `follow` it may be another object.

    Args:
        folder: The folder of the knowledge base's index, where its state is.
        store: The store, at the version to show.
        embedder: Makes dense vectors; None for BM25 alone.
        settings: The knowledge base's settings, which name the server and the collection.
        put_points: Puts points on the server from other machines; None puts them from this process.
        task: "read" the collection as it is, "write" to bring it to the store's version, or "rebuild" to
            put a new collection in its place, or "move" to make one on a server where there is none yet.
        on_progress: Called while a collection is filled.
        on_filled: Called when a new collection holds everything, before it is noted that it does.

    Raises:
        KnowledgeBaseError: If the collection is not of this knowledge base; or if the index was made with
            another embedder.
        LockedError: If another process changes the index, and is not done after ten minutes.
        PassageIndexError: If the state cannot be read, the collection is lost or still being filled, or the
            server cannot be reached or refuses a request.
    """

    def __init__(
        self,
        folder: Folder,
        store: LatentStore,
        embedder: Embedder | None,
        settings: Settings,
        put_points: PutPoints | None = None,
        task: Task = "read",
        on_progress: OnProgress = lambda done, total: None,
        on_filled: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(folder, store, embedder, settings, put_points, on_progress, on_filled)
        if task == "read":
            self.read(store)
        elif task == "write":
            self._bring_to(store)
        else:
            self._rebuild(store, is_moved=task == "move")

    def follow(self, store: LatentStore) -> None:
        """Bring the collection to another version of the store.

        A collection that shows a later version is left there.

        Args:
            store: The store at that version.

        Raises:
            KnowledgeBaseError: See the class.
            LockedError: See the class.
            PassageIndexError: See the class.
        """
        self._store = store
        self.index.close()
        self._bring_to(store)

    def optimize(self) -> None:
        """Do nothing: the server optimizes by itself."""

    def publish(self) -> None:
        """Do nothing: all processes use the same collection."""

    def close(self) -> None:
        """Close the connection to the server."""
        self.index.close()

    # --- writing --------------------------------------------------------------------------------------

    def _bring_to(self, store: LatentStore) -> None:
        """Bring the collection to a version of the store, or leave it at a later one."""
        with self._alone():
            state = read_state(self._folder)
            if state is None:
                self.index = NothingIndexed()
                if len(store):
                    self._first_fill(store)
                return
            if state.version >= store.version and read_work(self._folder, UPDATING) is None:
                self.read(store)
                return
            self._require_ours(state)
            self._update(state, store)

    def _first_fill(self, store: LatentStore) -> None:
        from lclm_rag.retrieval.collections import collection_behind

        filling = self._own_filling()
        there = collection_behind(self._url, self._collection)
        # The name may stand for what this knowledge base filled: then only the state is missing.
        if there is not None and (filling is None or there != filling.collection):
            require_empty(self._url, self._collection, self._owner)
            self._take(there, store)
        filling = self._fill(store)
        if (other := read_state(self._folder)) is None:
            self._put_in_place(store, filling, self._collection, 0)
            return
        # Another writer was first, which only an object store allows; the two may have filled the same
        # collection. It is treated as one that was half brought to this version.
        write_work(self._folder, UPDATING, filling)
        is_later = other.version > store.version
        self._update(other, LatentStore.open(store.folder, other.version) if is_later else store)

    def _rebuild(self, store: LatentStore, *, is_moved: bool) -> None:
        """Fill a new collection from the store, and put it in the place of the one that is searched.

        The old one is deleted afterwards if it is certainly of this knowledge base alone. Otherwise it stays,
        and the new one gets another name.
        """
        from lclm_rag.retrieval.collections import (
            collection_behind,
            collection_options,
            drop_collection,
        )

        with self._alone():
            state = self._readable_state()
            name = self._collection
            if state is not None and not is_moved:
                name = state.collection or name
            old = collection_behind(self._url, name)
            if old is not None and is_moved and is_empty(self._url, old):
                self._take(old, store)
                old = None
            elif old is not None and not self._may_replace(old, state, store, is_moved=is_moved):
                _log.warning(
                    "The collection %r at %s may be that of another knowledge base, or of one of which this "
                    "is a copy. It stays; delete it if nobody needs it. This knowledge base gets one of its "
                    "own.",
                    name,
                    self._url,
                )
                name, old = f"{self._collection}-{unique()}", None
            elif old is not None and self._settings.qdrant_options is None:
                # It may have been made beforehand, by options that are noted nowhere else.
                self._setup = replace(self._setup, options=collection_options(self._url, old))
            filling = self._fill(store)
            # Of an object store, where there is no lock.
            while newest_version(store.folder) > store.version:
                store = LatentStore.open(store.folder)
                filling = self._fill(store)
            if old == name and old != filling.collection:
                # From before there were aliases: it has the very name, and is in the way.
                drop_collection(self._url, old)
            # The states of lost versions are higher than this one's, and would count.
            remove_states(self._folder, down_to=store.version)
            number = state.number + 1 if state is not None and state.version == store.version else 0
            self._put_in_place(store, filling, name, number)
            if old is not None and old not in (name, filling.collection):
                drop_collection(self._url, old)

    def _may_replace(
        self, collection: str, state: State | None, store: LatentStore, *, is_moved: bool
    ) -> bool:
        """Whether a collection is certainly of this knowledge base, and not also of a copy of it."""
        from lclm_rag.retrieval.collections import read_mark

        if is_moved:
            # Of what is on another server, the state says nothing: it may have come along, or be someone's.
            filling, mark = self._own_filling(), read_mark(self._url, collection)
            if filling is not None and filling.collection == collection:
                return True
            is_copy = state is not None and copied(self._folder, state, "") is not None
            return mark is not None and mark.id == self._owner and not is_copy
        if state is None:
            # Its own fill was interrupted just before the state was written.
            filling = self._own_filling()
            return filling is not None and filling.collection == collection
        if state.home is None or not state.home.is_same(self._home):
            return False
        return foreign(read_mark(self._url, collection), self._owner, state, store, "") is None

    def _update(self, state: State, store: LatentStore) -> None:
        """Bring the collection that is searched to a version of the store."""
        # 1. What the collection may hold now: the version of the state, and parts of those to which
        #    interrupted writers were bringing it.
        interrupted = read_work(self._folder, UPDATING)
        held = [(state.version, state.manifest), *(interrupted.versions if interrupted else ())]
        here = (store.version, store.manifest.digest)
        index = self._own_index(state)
        self.index = index
        self._check(index, state, store)
        stores = [indexed_store(store, *version) for version in held]
        if interrupted is None and stores[0] is not None:
            self._check_count(index, state, len(stores[0]))
        bm25 = state.bm25
        if stores[0] is not None and not len(stores[0]):
            # BM25's average length could not be measured; now it can.
            bm25 = bm25_settings(store, self._settings.language)
            index.close()
            self.index = index = self._open(index.collection, bm25)
        # 2. A note of what is begun, before it is.
        versions = tuple(dict.fromkeys([*held[1:], here]))
        write_work(
            self._folder,
            UPDATING,
            Work(index.collection, versions, len(store), bm25, self._name, self._home),
        )
        # 3. The points. If a version that it may hold is gone, all of them, and then whatever is not in this
        #    one is deleted: slow, but the collection stays, and can be searched meanwhile.
        try:
            changes = [Changes.between(held_store, store) for held_store in stores if held_store]
        except (StoreError, OSError):
            changes = []
        is_known = len(changes) == len(held)
        if not is_known:
            changes = [Changes.between(None, store)]
        self._apply(index, changes, store, bm25)
        if not is_known:
            self._delete_others(index, store)
        store = self._catch_up(index, state, store, bm25)
        # 4. The state, last: it says that every point is there.
        new = replace(
            state,
            version=store.version,
            manifest=store.manifest.digest,
            bm25=bm25,
            collection=state.collection or self._collection,
            home=self._home,
            number=state.number if store.version == state.version else 0,
        )
        index.put_mark(self._mark(new))
        write_state(self._folder, new)
        self._folder.remove(UPDATING)
        # By its name, as readers do: the collection behind it may become another.
        index.close()
        self.index = self._connect(new)

    def _catch_up(
        self, index: ServerIndex, before: State, store: LatentStore, bm25: Bm25Settings
    ) -> LatentStore:
        """Make the difference to what another writer did meanwhile, which only object stores allow.

        Its points and this one's came in any order: what differs between the two versions is made again, as
        the later version has it.

        Returns:
            The version that the collection shows now.
        """
        now = read_state(self._folder)
        if now is None or now.version == before.version:
            return store
        other = indexed_store(store, now.version, now.manifest)
        if other is None:
            raise PassageIndexError(
                f"Another writer brought the passage index of {store.folder} to version {now.version}, which "
                "cannot be read; run lclm-rag verify --repair."
            )
        older, newer = sorted((store, other), key=lambda version: version.version)
        self._apply(index, [Changes.between(older, newer)], newer, bm25)
        return newer

    # --- whose collection it is -----------------------------------------------------------------------

    def _readable_state(self) -> State | None:
        """The state; None also if it is damaged."""
        try:
            return read_state(self._folder)
        except PassageIndexError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return None

    def _require_ours(self, state: State) -> None:
        if sentence := copied(self._folder, state, self._where(state)):
            raise PassageIndexError(f"{sentence} What was committed stands.")

    def _mark(self, state: State) -> Mark:
        from lclm_rag.retrieval.collections import Mark

        return Mark(self._owner, state.version, state.manifest)

    def _own_index(self, state: State) -> ServerIndex:
        """The collection behind the name that is searched."""
        from lclm_rag.retrieval.collections import collection_behind

        name = state.collection or self._collection
        check_embedder(state.embedder, self._embedder, self._folder)
        return self._open(collection_behind(self._url, name) or name, state.bm25)
