"""The embedded passage index: each process has its own, made of a published snapshot."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lclm_rag.errors import PassageIndexError, StoreError
from lclm_rag.indexing.changes import Changes
from lclm_rag.indexing.snapshots import PrivateFolder, Snapshot, SnapshotFolder
from lclm_rag.indexing.versions import bm25_settings, check_embedder, indexed_store
from lclm_rag.retrieval import Bm25Settings, EdgeIndex, Embedder
from lclm_rag.retrieval.edge import OPTIMIZE_FROM
from lclm_rag.storage import Folder, disk_full_as
from lclm_rag.store import LatentStore, newest_version

__all__ = ["EmbeddedIndex"]

# So many changes are published at once; fewer when the knowledge base is closed. Whoever opens it in between
# makes them again, privately.
_PUBLISH_CHANGES = 1_000
_PUBLISH_SHARE = 0.05

_TRIES = 20
_SPACE_BYTES = 16 * 2**20
_SPACE_PER_PASSAGE = 8 * 2**10

_log = logging.getLogger(__name__)


class EmbeddedIndex:
    """This process's own index. `index` may be another object after `follow`."""

    def __init__(self, folder: Folder, store: LatentStore, embedder: Embedder | None) -> None:
        self._store = store
        self._snapshots = SnapshotFolder(folder)
        self._embedder = embedder
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
        """Go to another version of the store."""
        before, self._store = self._store, store
        if before.version == store.version:
            return
        try:
            with disk_full_as(lambda: _no_room(self._snapshots.folder)):
                if not len(before):  # It said nothing of how long passages are.
                    self.index.close()
                    changed = self._build(store)
                else:
                    changed = self._sync(store, before)
        except BaseException:
            self._own.close()
            raise
        self._settle(changed)

    def optimize(self) -> None:
        """Make searches faster, here and for others; may take minutes."""
        with disk_full_as(lambda: _no_room(self._snapshots.folder)):
            self._make_writable()
            _require_space(self._own.path, len(self._store))
            self.index.optimize()
        self._publish(self._store)

    def publish(self) -> None:
        """Let others have what they would have to make again."""
        if self._unpublished and newest_version(self._store.folder) == self._store.version:
            self._publish(self._store)

    def close(self) -> None:
        self.publish()
        self.index.close()
        self._own.close()

    def _settle(self, changed: int) -> None:
        """So many passages have come or gone at once. Where they are most of a large index, it is optimized:
        at a million (BM25 alone) that takes a quarter of the time that they took to come in, and whoever
        opens it then needs a third of the memory and of the time (`benchmarks/index_scale.py`)."""
        if changed >= OPTIMIZE_FROM and changed * 2 > len(self._store):
            self.optimize()
        elif self._unpublished > max(_PUBLISH_CHANGES, _PUBLISH_SHARE * len(self._store)):
            self._publish(self._store)

    def _start_from_snapshot(self, store: LatentStore) -> int | None:
        """How many passages had to be added or removed; None where there is none to start from."""
        for _ in range(_TRIES):
            nearest = self._nearest(store)
            if nearest is None:
                return None
            snapshot, indexed = nearest
            check_embedder(snapshot.embedder, self._embedder, self._snapshots.folder)
            try:
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
                continue  # A newer one took its place meanwhile.
            except PassageIndexError as error:
                _log.warning("%s It is built anew.", error)
                return None
            return self._sync(store, indexed)
        raise PassageIndexError(
            f"The snapshots in {self._snapshots.published} keep changing; try again."
        )

    def _nearest(self, store: LatentStore) -> tuple[Snapshot, LatentStore] | None:
        """The snapshot that takes the fewest changes, and the store at its version; None where all were made
        of versions that are not there, or of nothing."""
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
        """From nothing; returns how many passages."""
        _require_space(self._own.path, len(store))
        shutil.rmtree(self._own.path / "edge", ignore_errors=True)
        self._linked = False
        self._bm25 = bm25_settings(store)
        self.index = EdgeIndex.create(
            self._own.path / "edge", bm25=self._bm25, embedder=self._embedder
        )
        changes = Changes.between(None, store)
        changes.apply(self.index)
        self._unpublished = changes.count
        return changes.count

    def _sync(self, store: LatentStore, indexed: LatentStore) -> int:
        """Apply what changed; returns how many passages that were. Interrupted, it can be run again: every
        step gives the same result twice."""
        try:
            changes = Changes.between(indexed, store)
        except (StoreError, OSError):
            # What it was made from cannot be read any more.
            self.index.close()
            return self._build(store)
        if changes.count:
            _require_space(self._own.path, changes.count)
            self._make_writable()
            changes.apply(self.index)
        # Also without a change it is a newer version that can be started from.
        self._unpublished += changes.count + (indexed.version != store.version)
        return changes.count

    def _make_writable(self) -> None:
        if not self._linked:
            return
        self._own.copy_links()
        self.index.close()
        self._own.take_copy()
        self._linked = False
        self.index = EdgeIndex.open(
            self._own.path / "edge", bm25=self._bm25, embedder=self._embedder
        )

    def _publish(self, store: LatentStore) -> None:
        name = self._embedder.name if self._embedder else None
        try:
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
    """The engine maps its files, and a full disk would end the process in the middle of a write."""
    needed = _SPACE_BYTES + passages * _SPACE_PER_PASSAGE
    free = shutil.disk_usage(path).free
    if free < needed:
        raise PassageIndexError(
            f"The passage index needs about {needed / 1e6:,.0f} MB of disk in {path.parent}, and "
            f"{free / 1e6:,.0f} MB are free. What is committed stands; the index follows when the knowledge "
            "base is opened with enough room."
        )
