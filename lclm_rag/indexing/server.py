"""The passage index in a collection on a Qdrant server, shared by all processes.

It shows the newest version of the store. A state in the knowledge base's folder says which version that is
(`lclm_rag.indexing.state`). It is written only after the server has taken every point, so an interrupted
update is made again.

Only whoever has committed a version writes: a reader makes, fills and changes nothing. A collection is filled
under a name of its own, and only when it holds everything does the name that readers search, an alias, stand
for it. Nothing is dropped unless `lclm-rag verify --repair` has put another collection in its place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from lclm_rag.errors import KnowledgeBaseError, PassageIndexError, StoreError
from lclm_rag.indexing.changes import Changes, entries_of
from lclm_rag.indexing.nothing import NothingIndexed
from lclm_rag.indexing.ownership import copied, foreign
from lclm_rag.indexing.state import (
    FILLING,
    UPDATING,
    State,
    Work,
    home_of,
    read_state,
    read_work,
    remove_states,
    write_state,
    write_work,
)
from lclm_rag.indexing.versions import bm25_settings, check_embedder, indexed_store
from lclm_rag.retrieval import Bm25Settings, Embedder, PassageIndex
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore
from lclm_rag.store.locks import write_lock

if TYPE_CHECKING:
    from lclm_rag.retrieval.server import Mark, ServerIndex

__all__ = ["PutPoints", "ServerPoints", "SharedIndex", "Task"]

Task = Literal["read", "write", "rebuild"]

_WAIT = 5.0  # seconds for which a reader waits for the first fill
_WAIT_FOR_WRITER = 600.0  # seconds
_OFF = 0.01  # the share of the passages by which the collection's count may differ

_log = logging.getLogger(__name__)


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


class SharedIndex:
    """A collection on a Qdrant server, which shows the newest version to all processes.

    `index` is the index; after `follow` it may be another object.

    Args:
        folder: The folder of the knowledge base's index, where its state is.
        store: The store, at the version to show.
        embedder: Makes dense vectors; None for BM25 alone.
        qdrant_url: The server's URL.
        collection: The name to search, of the settings.
        owner: The knowledge base's id.
        put_points: Puts points on the server.
        task: "read" the collection as it is, "write" to bring it to the store's version, or "rebuild" to
            put a new collection in its place.

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
        qdrant_url: str,
        collection: str,
        owner: str,
        put_points: PutPoints,
        task: Task = "read",
    ) -> None:
        self._folder = folder
        self._embedder = embedder
        self._url = qdrant_url
        self._collection = collection
        self._owner = owner
        self._store = store
        self._home = home_of(folder)
        self.put_points = put_points
        self._name = embedder.name if embedder else None
        self.index: PassageIndex = NothingIndexed()
        {"read": self._read, "write": self._bring_to, "rebuild": self._rebuild}[task](store)

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

    # --- reading --------------------------------------------------------------------------------------

    def _read(self, store: LatentStore) -> None:
        """Connect to the collection as it is, after checking that it is what the state says."""
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
        from lclm_rag.retrieval.server import count_points

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
                self._read(store)
                return
            self._require_ours(state)
            self._update(state, store)

    def _first_fill(self, store: LatentStore) -> None:
        from lclm_rag.retrieval.server import collection_behind

        filling = self._own_filling()
        there = collection_behind(self._url, self._collection)
        # The name may stand for what this knowledge base filled: then only the state is missing.
        if there is not None and (filling is None or there != filling.collection):
            raise KnowledgeBaseError(
                f"The collection {self._collection!r} at {self._url} is there already, and not of this "
                "knowledge base, or it was lost from its records: delete it, or let lclm-rag verify --repair "
                "make one under another name."
            )
        filling = self._fill(store)
        if (other := read_state(self._folder)) is None:
            self._put_in_place(store, filling, self._collection, 0)
            return
        # Another writer was first, which only an object store allows; the two may have filled the same
        # collection. It is treated as one that was half brought to this version.
        write_work(self._folder, UPDATING, filling)
        is_later = other.version > store.version
        self._update(other, LatentStore.open(store.folder, other.version) if is_later else store)

    def _rebuild(self, store: LatentStore) -> None:
        """Fill a new collection from the store, and put it in the place of the one that is searched.

        The old one is deleted afterwards if it is certainly of this knowledge base alone. Otherwise it stays,
        and the new one gets another name.
        """
        from lclm_rag.retrieval.server import collection_behind, drop_collection

        with self._alone():
            state = self._readable_state()
            name = self._collection if state is None else state.collection or self._collection
            old = collection_behind(self._url, name)
            if old is not None and not self._may_replace(old, state, store):
                _log.warning(
                    "The collection %r at %s may be that of another knowledge base, or of one of which this "
                    "is a copy. It stays; delete it if nobody needs it. This knowledge base gets one of its "
                    "own.",
                    name,
                    self._url,
                )
                name, old = f"{self._collection}-{_unique()}", None
            filling = self._fill(store)
            if old == name:
                # From before there were aliases: it has the very name, and is in the way.
                drop_collection(self._url, old)
            # The states of lost versions are higher than this one's, and would count.
            remove_states(self._folder, down_to=store.version)
            number = state.number + 1 if state is not None and state.version == store.version else 0
            self._put_in_place(store, filling, name, number)
            if old is not None and old not in (name, filling.collection):
                drop_collection(self._url, old)

    def _may_replace(self, collection: str, state: State | None, store: LatentStore) -> bool:
        """Whether a collection is certainly of this knowledge base, and not also of a copy of it."""
        from lclm_rag.retrieval.server import read_mark

        if state is None:
            # Its own fill was interrupted just before the state was written.
            filling = self._own_filling()
            return filling is not None and filling.collection == collection
        if state.home is None or not state.home.is_same(self._home):
            return False
        return foreign(read_mark(self._url, collection), self._owner, state, store, "") is None

    def _fill(self, store: LatentStore) -> Work:
        """Fill a new collection with a version of the store.

        Returns:
            The collection and its settings; no name stands for it yet.
        """
        # 1. A note, before the collection is made: if this is interrupted, the next writer goes on in the
        #    same collection, and readers can tell how far it is.
        filling = self._own_filling()
        here = (store.version, store.manifest.digest)
        if filling is None or filling.embedder != self._name:
            own = f"{self._collection}-{self._owner[:8]}-{_unique()}"
            filling = Work(own, (), len(store), bm25_settings(store), self._name, self._home)
        filling = replace(filling, versions=(here,), passages=len(store))
        self._folder.make()
        write_work(self._folder, FILLING, filling)
        # 2. The collection, and all points; and none that an interrupted fill of another version left.
        index = self._open(filling.collection, filling.bm25, create=True)
        self._apply(index, [Changes.between(None, store)], store, filling.bm25)
        _delete_others(index, store)
        index.close()
        return filling

    def _put_in_place(self, store: LatentStore, filling: Work, name: str, number: int) -> None:
        """Let a name stand for a collection that holds everything, and write the state."""
        from lclm_rag.retrieval.server import put_alias

        here = (store.version, store.manifest.digest)
        state = State(*here, filling.bm25, self._name, name, self._home, number)
        index = self._open(filling.collection, filling.bm25)
        index.put_mark(self._mark(state))
        index.close()
        # The name when every point is there, and then the state, which says so.
        put_alias(self._url, name, filling.collection)
        write_state(self._folder, state)
        self._folder.remove(FILLING)
        self._folder.remove(UPDATING)
        self.index = self._connect(state)

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
            bm25 = bm25_settings(store)
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
            _delete_others(index, store)
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

    def _apply(
        self,
        index: ServerIndex,
        changes: list[Changes],
        store: LatentStore,
        bm25: Bm25Settings,
    ) -> None:
        # Deletions first: a changed document's new passages have the keys of its old ones, and deleting
        # afterwards would remove them.
        rows: dict[str, set[int]] = {}
        for change in changes:
            change.delete(index)
            for fragment, new in change.new:
                rows.setdefault(fragment.name, set()).update(new)
        folder = store.folder
        points = ServerPoints(
            store=str(folder if folder.local is None else folder.local.resolve()),
            version=store.version,
            rows=tuple((name, tuple(sorted(new))) for name, new in rows.items()),
            url=self._url,
            collection=index.collection,
            bm25=bm25,
            embedder=self._name,
        )
        self.put_points(points)

    # --- whose collection it is -----------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one who changes the index. An object store has no lock."""
        self._folder.make()
        if self._folder.local is None:
            yield
            return
        with write_lock(self._folder.local, _WAIT_FOR_WRITER):
            yield

    def _readable_state(self) -> State | None:
        """The state; None also if it is damaged."""
        try:
            return read_state(self._folder)
        except PassageIndexError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return None

    def _own_filling(self) -> Work | None:
        """What this knowledge base began to fill, and not the one of which it is a copy."""
        filling = read_work(self._folder, FILLING)
        return filling if filling is not None and filling.home.is_same(self._home) else None

    def _require_ours(self, state: State) -> None:
        if sentence := copied(self._folder, state, self._where(state)):
            raise PassageIndexError(f"{sentence} What was committed stands.")

    def _mark(self, state: State) -> Mark:
        from lclm_rag.retrieval.server import Mark

        return Mark(self._owner, state.version, state.manifest)

    def _own_index(self, state: State) -> ServerIndex:
        """The collection behind the name that is searched."""
        from lclm_rag.retrieval.server import collection_behind

        name = state.collection or self._collection
        check_embedder(state.embedder, self._embedder, self._folder)
        return self._open(collection_behind(self._url, name) or name, state.bm25)

    def _connect(self, state: State) -> ServerIndex:
        check_embedder(state.embedder, self._embedder, self._folder)
        return self._open(state.collection or self._collection, state.bm25)

    def _open(self, collection: str, bm25: Bm25Settings, *, create: bool = False) -> ServerIndex:
        from lclm_rag.retrieval.server import ServerIndex

        return ServerIndex.connect(
            self._url, collection, bm25=bm25, embedder=self._embedder, create=create
        )


def _delete_others(index: PassageIndex, store: LatentStore) -> None:
    """Delete from an index what is not in a version of the store."""
    shown = Changes.between(None, store).new
    keys = {fragment.key(row) for fragment, rows in shown for row in rows}
    if others := [key for key in index.keys(None) if key not in keys]:
        index.delete(others)


def _unique() -> str:
    return f"{time.time_ns():x}"
