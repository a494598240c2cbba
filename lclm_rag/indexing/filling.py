"""Filling a new collection on a Qdrant server, and putting it in place when it holds everything.

A note in the folder of the knowledge base says which collection is being filled, and which fragments it has:
whoever fills it next goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from lclm_rag.checksummed_json import digest
from lclm_rag.config import Settings
from lclm_rag.errors import PassageIndexError
from lclm_rag.indexing.changes import Changes
from lclm_rag.indexing.collection import ReadCollection, open_empty
from lclm_rag.indexing.key_hashes import are_among, key_hashes, shown_hashes
from lclm_rag.indexing.points import OnPut, PutPoints, ServerPoints, put_rows
from lclm_rag.indexing.state import (
    FILLING,
    UPDATING,
    State,
    Work,
    home_of,
    read_work,
    write_state,
    write_work,
)
from lclm_rag.indexing.versions import bm25_settings, indexed_store
from lclm_rag.retrieval import Bm25Settings, Embedder
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore
from lclm_rag.store.locks import write_lock

if TYPE_CHECKING:
    from lclm_rag.retrieval.server import ServerIndex

__all__ = ["FilledCollection", "OnProgress", "unique"]

OnProgress = Callable[[int, int], None]
"""Called with the number of passages that the index has so far, and with that of all."""

_WAIT_FOR_WRITER = 600.0  # seconds
_NOTE_EVERY = 5.0  # seconds between notes of what is filled, which is done again after a kill

_log = logging.getLogger(__name__)


class FilledCollection(ReadCollection):
    """The collection of a knowledge base on a Qdrant server, and how a new one is filled.

    Args:
        folder: The folder of the knowledge base's index, where its state is.
        store: The store, at the version to show.
        embedder: Makes dense vectors; None for BM25 alone.
        settings: The knowledge base's settings, which name the server and the collection.
        put_points: Puts points on the server from other machines; None puts them from this process.
        on_progress: Called while a collection is filled.
        on_filled: Called when a new collection holds everything, before it is noted that it does.
    """

    def __init__(
        self,
        folder: Folder,
        store: LatentStore,
        embedder: Embedder | None,
        settings: Settings,
        put_points: PutPoints | None = None,
        on_progress: OnProgress = lambda done, total: None,
        on_filled: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(folder, store, embedder, settings)
        self.put_points = put_points
        self._on_progress = on_progress
        self._on_filled = on_filled

    def _take(self, collection: str, store: LatentStore) -> None:
        """Begin to fill an empty collection that was made beforehand."""
        from lclm_rag.retrieval.collections import Mark

        bm25 = bm25_settings(store, self._settings.language)
        index = open_empty(self._url, collection, bm25, self._embedder, self._setup, create=True)
        # Before anything else, so that no other knowledge base takes it.
        index.put_mark(Mark(self._owner, None, None))
        index.close()
        write_work(
            self._folder,
            FILLING,
            Work(
                collection,
                (),
                len(store),
                bm25,
                self._name,
                self._home,
                made_with=self._made_with(),
            ),
        )

    def _fill(self, store: LatentStore) -> Work:
        """Fill a new collection with a version of the store.

        Returns:
            The collection and its settings; no name stands for it yet.
        """
        # 1. A note, before the collection is made: if this is interrupted, the next writer goes on in the
        #    same collection, and readers can tell how far it is.
        filling = self._own_filling()
        if filling is not None and (filling.embedder, filling.made_with) != (
            self._name,
            self._made_with(),
        ):
            _log.warning(
                "The collection %r at %s was begun with other settings and stays as it is; delete it.",
                filling.collection,
                self._url,
            )
            filling = None
        if filling is None:
            own = f"{self._collection}-{self._owner[:8]}-{unique()}"
            filling = Work(
                own,
                (),
                len(store),
                bm25_settings(store, self._settings.language),
                self._name,
                self._home,
                made_with=self._made_with(),
            )
        here = (store.version, store.manifest.digest)
        versions = tuple(dict.fromkeys([*filling.versions, here]))
        done = filling.done if self._still_there(filling, store) else ()
        filling = replace(filling, versions=versions, passages=len(store), done=done)
        self._folder.make()
        write_work(self._folder, FILLING, filling)
        # 2. The collection, and all points; and none that an interrupted fill of another version left.
        index = self._open(filling.collection, filling.bm25, create=True)
        changes = Changes.between(None, store)
        filled = _Filled(self._folder, filling, changes, self._on_progress)
        left = [(f, rows) for f, rows in changes.new if f.name not in filled.names]
        try:
            self._apply(index, [replace(changes, new=left)], store, filling.bm25, filled.put)
        except BaseException:
            # What made this fail must reach the caller, not that the note failed, too.
            with suppress(OSError):
                filled.note()
            raise
        filled.note()
        if len(versions) > 1:
            self._delete_others(index, store)
        index.close()
        return filling

    def _made_with(self) -> str:
        """What a collection that is filled further must have been begun with."""
        settings = self._settings
        return digest({"options": settings.qdrant_options, "keys": settings.filter_keys})[:16]

    def _still_there(self, filling: Work, store: LatentStore) -> bool:
        """Whether the collection has what an interrupted fill put there, of versions that the store has.

        Of a fragment, a later version shows no row that an earlier one did not show.
        """
        from lclm_rag.retrieval.collections import collection_exists

        if not filling.done or any(indexed_store(store, *v) is None for v in filling.versions):
            return False
        return collection_exists(self._url, filling.collection)

    def _put_in_place(self, store: LatentStore, filling: Work, name: str, number: int) -> None:
        """Let a name stand for a collection that holds everything, and write the state."""
        from lclm_rag.retrieval.collections import Mark, put_alias

        here = (store.version, store.manifest.digest)
        index = self._open(filling.collection, filling.bm25)
        if (count := index.count()) != len(store):
            write_work(self._folder, FILLING, replace(filling, done=()))
            raise PassageIndexError(
                f"The new collection {filling.collection!r} at {self._url} has {count:,} of {len(store):,} "
                "passages after all of them were put there: run the same again, which puts them again."
            )
        index.put_mark(Mark(self._owner, *here))
        index.close()
        # The name when every point is there, and then the state, which says so.
        if name != filling.collection:
            put_alias(self._url, name, filling.collection)
        self._on_filled()
        self._home = home_of(
            self._folder
        )  # That of the settings, which may have been written just now.
        state = State(*here, filling.bm25, self._name, name, self._home, number)
        write_state(self._folder, state)
        self._folder.remove(FILLING)
        self._folder.remove(UPDATING)
        self.index = self._connect(state)

    def _apply(
        self,
        index: ServerIndex,
        changes: list[Changes],
        store: LatentStore,
        bm25: Bm25Settings,
        on_put: OnPut = lambda name: None,
    ) -> None:
        # Deletions first: a changed document's new passages have the keys of its old ones, and deleting
        # afterwards would remove them.
        rows: dict[str, np.ndarray] = {}
        for change in changes:
            change.delete(index)
            for fragment, new in change.new:
                there = rows.get(fragment.name)
                rows[fragment.name] = new if there is None else np.union1d(there, new)
        if self.put_points is None:
            for name, numbers in rows.items():
                put_rows(index, store, name, numbers)
                on_put(name)
            return
        if not rows:
            return
        folder = store.folder
        points = ServerPoints(
            store=str(folder if folder.local is None else folder.local.resolve()),
            version=store.version,
            rows=list(rows.items()),
            url=self._url,
            collection=index.collection,
            bm25=bm25,
            embedder=self._name,
            setup=self._setup,
        )
        self.put_points(points, on_put)

    def _delete_others(self, index: ServerIndex, store: LatentStore) -> None:
        """Delete from a collection what is not in a version of the store."""
        from lclm_rag.retrieval.collections import collection_pages

        shown = shown_hashes(store)
        for page in collection_pages(self._url, index.collection):
            is_other = ~are_among(shown, key_hashes(page))
            if is_other.any():
                index.delete(compress(page, is_other))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one who changes the index. An object store has no lock."""
        self._folder.make()
        if self._folder.local is None:
            yield
            return
        with write_lock(self._folder.local, _WAIT_FOR_WRITER):
            yield

    def _own_filling(self) -> Work | None:
        """What this knowledge base began to fill, and not the one of which it is a copy."""
        filling = read_work(self._folder, FILLING)
        return filling if filling is not None and filling.home.is_same(self._home) else None


class _Filled:
    """How far a collection is filled, noted now and then.

    Args:
        folder: The folder of the knowledge base's index.
        filling: The note.
        changes: All that is to be put there.
        on_progress: Called with the number of passages that are there, and that of all.
    """

    def __init__(
        self, folder: Folder, filling: Work, changes: Changes, on_progress: OnProgress
    ) -> None:
        self._folder, self._filling, self._on_progress = folder, filling, on_progress
        self._rows = {fragment.name: len(rows) for fragment, rows in changes.new}
        self.names = [name for name in filling.done if name in self._rows]
        self._count = sum(self._rows[name] for name in self.names)
        self._noted = time.monotonic()
        on_progress(self._count, filling.passages)

    def put(self, name: str) -> None:
        """The server has all rows of a fragment."""
        self.names.append(name)
        self._count += self._rows[name]
        self._on_progress(self._count, self._filling.passages)
        if time.monotonic() - self._noted >= _NOTE_EVERY:
            self.note()

    def note(self) -> None:
        """Note the fragments of which the server has all rows."""
        write_work(self._folder, FILLING, replace(self._filling, done=tuple(self.names)))
        self._noted = time.monotonic()


def unique() -> str:
    """What no other collection has in its name."""
    return f"{time.time_ns():x}"
