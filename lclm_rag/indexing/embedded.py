"""The embedded passage index: each process has its own, which starts from a published snapshot."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lclm_rag.errors import PassageIndexError, StoreError
from lclm_rag.indexing.changes import Changes
from lclm_rag.indexing.private import PrivateFolder
from lclm_rag.indexing.snapshot import Snapshot
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.indexing.versions import bm25_settings, check_embedder, indexed_store
from lclm_rag.retrieval import Bm25Settings, EdgeIndex, Embedder
from lclm_rag.retrieval.edge import OPTIMIZE_FROM
from lclm_rag.retrieval.language import AUTO
from lclm_rag.storage import Folder, disk_full_as
from lclm_rag.store import LatentStore, newest_version

__all__ = ["EmbeddedIndex"]

# The index is published after this many changes, and when the knowledge base is closed. A process that opens
# it in between makes the changes again, in its own index.
_PUBLISH_CHANGES = 1_000
_PUBLISH_SHARE = 0.05

_TRIES = 20
_SPACE_BYTES = 16 * 2**20
_SPACE_PER_PASSAGE = 8 * 2**10

_log = logging.getLogger(__name__)


class EmbeddedIndex:
    """This process's own index, at a version of the store.

    `index` is the index; after a call of any other method it may be another object.

    Args:
        folder: The folder of the knowledge base's index.
        store: The store, at the version to show.
        embedder: Makes dense vectors; None for BM25 alone.
        owner: The knowledge base's id.
        language: The language of its settings.

    Raises:
        KnowledgeBaseError: If the index was made with another embedder.
        PassageIndexError: If the disk is too full, or snapshots keep changing while they are opened.
        DamagedError: If a row of the store that has to be indexed is damaged.
    """

    def __init__(
        self,
        folder: Folder,
        store: LatentStore,
        embedder: Embedder | None,
        owner: str = "",
        language: str = AUTO,
    ) -> None:
        self._store = store
        self._snapshots = SnapshotFolder(folder, owner)
        self._embedder = embedder
        self._language = language
        with disk_full_as(lambda: _no_room(folder)):
            self._own = PrivateFolder(self._snapshots.private)
        self._linked = False
        self._unpublished = 0
        self._bm25 = Bm25Settings()
        self.index: EdgeIndex
        try:
            with disk_full_as(lambda: _no_room(folder)):
                changed = self._start_from_snapshot(store)
                if changed is None:
                    changed = self._build(store)
            self._settle(changed)
        except BaseException:
            self._own.close()
            raise

    def follow(self, store: LatentStore) -> None:
        """Bring the index to another version of the store.

        Args:
            store: The store at that version.

        Raises:
            PassageIndexError: If the disk is too full.
            DamagedError: If a row of the store that has to be indexed is damaged.
        """
        before, self._store = self._store, store
        if before.version == store.version:
            return
        try:
            with disk_full_as(lambda: _no_room(self._snapshots.folder)):
                if not len(before):  # BM25's average length could not be measured; now it can.
                    self.index.close()
                    changed = self._build(store)
                else:
                    changed = self._sync(store, before)
        except BaseException:
            self._own.close()
            raise
        self._settle(changed)

    def optimize(self) -> None:
        """Make searches faster, here and in processes that start from the snapshot; may take minutes."""
        with disk_full_as(lambda: _no_room(self._snapshots.folder)):
            self._make_writable()
            _require_space(self._own.path, len(self._store))
            self.index.optimize()
        self._publish(self._store)

    def publish(self) -> None:
        """Publish changes that other processes would have to make again, if this is the newest version."""
        if not self._unpublished:
            return
        try:
            is_newest = newest_version(self._store.folder) == self._store.version
        except (StoreError, OSError) as error:
            # The knowledge base was moved or removed while it was open.
            _log.warning("The passage index was not published. %s", error)
            return
        if is_newest:
            self._publish(self._store)

    def close(self) -> None:
        """Publish unpublished changes, close the index, and remove this process's folder."""
        try:
            self.publish()
        finally:
            try:
                self.index.close()
            except PassageIndexError:
                # With the knowledge base, the private folder may have been moved: then nothing is lost.
                if self._own.path.is_dir():
                    raise
            finally:
                self._own.close()

    def _settle(self, changed: int) -> None:
        """Optimize or publish the index if enough has changed.

        The index is optimized if it is large and most of it is new. At a million passages (BM25 alone) this
        takes a quarter of the time that adding them took. Opening the index then takes a third of the memory
        and of the time (`benchmarks/index_scale.py`).

        Args:
            changed: The number of passages that were added or deleted at once.
        """
        if changed >= OPTIMIZE_FROM and changed * 2 > len(self._store):
            self.optimize()
        elif self._unpublished > max(_PUBLISH_CHANGES, _PUBLISH_SHARE * len(self._store)):
            self._publish(self._store)

    def _start_from_snapshot(self, store: LatentStore) -> int | None:
        """Start from the nearest snapshot.

        Returns:
            The number of passages that had to be added or deleted; None if no snapshot can be used.
        """
        for _ in range(_TRIES):
            nearest = self._nearest(store)
            if nearest is None:
                return None
            snapshot, indexed = nearest
            check_embedder(snapshot.embedder, self._embedder, self._snapshots.folder)
            if not snapshot.bm25.suit(self._language):
                _log.warning(
                    "The passage index in %s splits texts into words as an earlier lclm-rag did, or for "
                    "another language. It is built anew.",
                    self._snapshots.folder,
                )
                return None
            try:
                # Before the engine sees the files: of incomplete ones it may make an index that lacks
                # passages, without an error.
                if snapshot.misfits():
                    raise FileNotFoundError
                self._own.link(snapshot)
                self._linked = True
                self._bm25 = snapshot.bm25
                self.index = EdgeIndex.open(
                    self._own.path / "edge", bm25=snapshot.bm25, embedder=self._embedder
                )
            except FileNotFoundError:
                if snapshot.path.exists():
                    _log.warning("%s is damaged. It is built anew.", snapshot.path)
                    return None
                continue  # It was removed because a newer one was published; try that one.
            except PassageIndexError as error:
                _log.warning("%s It is built anew.", error)
                return None
            return self._sync(store, indexed)
        raise PassageIndexError(
            f"The snapshots in {self._snapshots.published} keep changing; try again."
        )

    def _nearest(self, store: LatentStore) -> tuple[Snapshot, LatentStore] | None:
        """The nearest usable snapshot, and the store at its version.

        Returns:
            None if there is no snapshot of a version of this store that holds passages.
        """
        for snapshot in self._snapshots.nearest(store.version):
            indexed = indexed_store(store, snapshot.version, snapshot.manifest)
            if indexed is None:
                _log.warning(
                    "%s is not of a version of this store, and is not used.", snapshot.path
                )
            elif len(indexed):
                return snapshot, indexed
        if damaged := self._snapshots.unreadable():
            _log.warning("%s is damaged. It is built anew.", damaged[-1])
        return None

    def _build(self, store: LatentStore) -> int:
        """Build the index from nothing; return the number of passages."""
        _require_space(self._own.path, len(store))
        shutil.rmtree(self._own.path / "edge", ignore_errors=True)
        self._linked = False
        self._bm25 = bm25_settings(store, self._language)
        self.index = EdgeIndex.create(
            self._own.path / "edge", bm25=self._bm25, embedder=self._embedder
        )
        changes = Changes.between(None, store)
        changes.apply(self.index)
        self._unpublished = changes.count
        return changes.count

    def _sync(self, store: LatentStore, indexed: LatentStore) -> int:
        """Bring the index from one version to another; return the number of passages changed.

        If this is interrupted, it can be run again: every step has the same result when it is repeated.
        """
        try:
            changes = Changes.between(indexed, store)
        except (StoreError, OSError):
            # The version that the index was made from can no longer be read.
            self.index.close()
            return self._build(store)
        if changes.count:
            _require_space(self._own.path, changes.count)
            self._make_writable()
            changes.apply(self.index)
        # A newer version counts as a change even if the index is the same: a snapshot of it is one that
        # others can start from.
        self._unpublished += changes.count + (indexed.version != store.version)
        return changes.count

    def _make_writable(self) -> None:
        """Replace a view of a snapshot by a copy: through links, changes would reach the snapshot itself."""
        if not self._linked:
            return
        # 1. Copy while the index is open: if the disk is full, it can still be searched.
        self._own.copy_links()
        # 2. Close it: the engine must not have the folder open while it is exchanged.
        self.index.close()
        # 3. Exchange the folder, which is only renaming, and open the copy.
        self._own.take_copy()
        self._linked = False
        self.index = EdgeIndex.open(
            self._own.path / "edge", bm25=self._bm25, embedder=self._embedder
        )

    def _publish(self, store: LatentStore) -> None:
        name = self._embedder.name if self._embedder else None
        try:
            # Flushed first, because only a flushed index is whole on disk; then copied and published.
            self._make_writable()
            self.index.flush()
            _require_space(self._own.path, 0)
            self._snapshots.publish(
                self._own, store.version, store.manifest.digest, self._bm25, name
            )
        except (OSError, PassageIndexError) as error:
            _log.warning(
                "The passage index of version %s could not be published (%s): whoever opens the knowledge "
                "base makes it again, until there is room.",
                store.version,
                error,
            )
        else:
            self._unpublished = 0


def _no_room(folder: Folder) -> PassageIndexError:
    return PassageIndexError(
        f"The disk is full: the passage index in {folder} cannot be brought up to date. What is "
        "committed stands; the index follows when the knowledge base is opened with enough room."
    )


def _require_space(path: Path, passages: int) -> None:
    """PassageIndexError if the disk has too little room for this many more passages.

    Checked before writing: the engine maps its files, so a full disk would end the process in the middle of
    a write.
    """
    needed = _SPACE_BYTES + passages * _SPACE_PER_PASSAGE
    free = shutil.disk_usage(path).free
    if free < needed:
        raise PassageIndexError(
            f"The passage index needs about {needed / 1e6:,.0f} MB of disk in {path.parent}, and "
            f"{free / 1e6:,.0f} MB are free. What is committed stands; the index follows when the knowledge "
            "base is opened with enough room."
        )
