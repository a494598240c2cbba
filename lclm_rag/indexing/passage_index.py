"""Open the passage index of a knowledge base at a version of its store, and keep it there.

The index is derived. The embedded one is private to each process and starts from a published snapshot; one on
a server is shared, shows the newest version, and `state.json` says which that is, written only after the
engine has flushed, so that an interrupted update is made again.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.errors import KnowledgeBaseError, PassageIndexError, StoreError
from lclm_rag.indexing.snapshots import PrivateFolder, Snapshot, SnapshotFolder
from lclm_rag.retrieval import (
    Bm25Settings,
    EdgeIndex,
    Embedder,
    IndexEntry,
    PassageIndex,
    average_length,
)
from lclm_rag.retrieval.edge import OPTIMIZE_FROM
from lclm_rag.storage import Folder, is_disk_full
from lclm_rag.store import LatentStore, newest_version
from lclm_rag.store.fragment import Fragment
from lclm_rag.store.manifest import FragmentEntry
from lclm_rag.store.store import visible_rows
from lclm_rag.types import Passage

__all__ = [
    "EmbeddedIndex",
    "OpenIndex",
    "ServerPoints",
    "SharedIndex",
    "Spread",
    "indexed_store",
    "open_index",
    "state_version",
    "sync_index",
]

_AVERAGED = 10_000
"""BM25's average length is measured on this many passages."""

# So many changes are published at once; fewer when the knowledge base is closed. Whoever opens it in between
# makes them again, privately.
_PUBLISH_CHANGES = 1_000
_PUBLISH_SHARE = 0.05

_TRIES = 20
_SPACE_BYTES = 16 * 2**20
_SPACE_PER_PASSAGE = 8 * 2**10

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerPoints:
    """Passages to be put on a Qdrant server, wherever that is done. store, version: where they are; rows: of
    its fragments, by name. embedder: a model's name."""

    store: str
    version: int
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    url: str
    collection: str
    bm25: Bm25Settings
    embedder: str | None

    def upsert(self) -> None:
        from lclm_rag.retrieval.server import ServerIndex

        embedder = _embedder(self.embedder) if self.embedder else None
        index = ServerIndex.connect(self.url, self.collection, bm25=self.bm25, embedder=embedder)
        store = _store(self.store, self.version)
        for name, rows in self.rows:
            index.upsert(_entries(map(store.fragment(name).passage, rows)))
        index.close()


Spread = Callable[[ServerPoints], None]
"""Has the points put there by several machines; returns when they are."""


@lru_cache(maxsize=1)
def _embedder(name: str) -> Embedder:
    from lclm_rag.retrieval import SentenceTransformerEmbedder

    return SentenceTransformerEmbedder(name)


@lru_cache(maxsize=1)
def _store(location: str, version: int) -> LatentStore:
    return LatentStore.open_for_worker(location, version)


def open_index(
    folder: Folder,
    store: LatentStore,
    *,
    embedder: Embedder | None,
    qdrant_url: str | None,
    collection: str | None,
    spread: Spread | None = None,
) -> OpenIndex:
    """The passage index at the store's version: built where there is none, updated where it is behind."""
    if qdrant_url is not None:
        return SharedIndex(folder, store, embedder, qdrant_url, str(collection), spread)
    return EmbeddedIndex(folder, store, embedder)


class EmbeddedIndex:
    """This process's own index. `index` may be another object after `follow`."""

    def __init__(self, folder: Folder, store: LatentStore, embedder: Embedder | None) -> None:
        self._snapshots = SnapshotFolder(folder)
        self._embedder = embedder
        with _disk_errors(folder):
            self._own = PrivateFolder(self._snapshots.private)
        self._linked = False
        self._unpublished = 0
        self._bm25 = Bm25Settings()
        self.index: EdgeIndex
        try:
            with _disk_errors(folder):
                if not self._start_from_snapshot(store):
                    self._build(store)
            self._publish_if_large(store)
        except BaseException:
            self._own.close()
            raise

    def follow(self, old: LatentStore, new: LatentStore, spread: Spread | None = None) -> None:
        """Go from one version of the store to another. This process does it, whatever `spread` can."""
        if old.version == new.version:
            return
        try:
            with _disk_errors(self._snapshots.folder):
                if not len(old):  # It said nothing of how long passages are.
                    self.index.close()
                    self._build(new)
                else:
                    self._sync(new, old)
        except BaseException:
            self._own.close()
            raise
        self._publish_if_large(new)

    def optimize(self, store: LatentStore) -> None:
        """Make searches faster, here and for others; may take minutes."""
        with _disk_errors(self._snapshots.folder):
            self._make_writable()
            _require_space(self._own.path, len(store))
            self.index.optimize()
        self._publish(store)

    def loaded(self, store: LatentStore, passages: int) -> None:
        """So many passages have come at once: where they are most of a large index, it is optimized. At a
        million (BM25 alone) that takes a quarter of the time that they took to come in, and whoever opens it
        then needs a third of the memory and of the time (`benchmarks/index_scale.py`)."""
        if passages >= OPTIMIZE_FROM and passages * 2 > len(store):
            self.optimize(store)

    def publish(self, store: LatentStore) -> None:
        """Let others have what they would have to make again."""
        if self._unpublished and newest_version(store.folder) == store.version:
            self._publish(store)

    def close(self, store: LatentStore) -> None:
        self.publish(store)
        self.index.close()
        self._own.close()

    def _start_from_snapshot(self, store: LatentStore) -> bool:
        """False where none can be started from."""
        for _ in range(_TRIES):
            nearest = self._nearest(store)
            if nearest is None:
                return False
            snapshot, indexed = nearest
            _check_embedder(snapshot.embedder, self._embedder, self._snapshots.folder)
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
                    return False
                continue  # A newer one took its place meanwhile.
            except PassageIndexError as error:
                _log.warning("%s It is built anew.", error)
                return False
            self._sync(store, indexed)
            return True
        raise PassageIndexError(
            f"The snapshots in {self._snapshots.published} keep changing; try again."
        )

    def _nearest(self, store: LatentStore) -> tuple[Snapshot, LatentStore] | None:
        """The snapshot that takes the fewest changes, and the store at its version; None where all were made
        of versions that are not there, or of nothing."""
        for snapshot in self._snapshots.nearest(store.version):
            indexed = indexed_store(store, snapshot)
            if indexed is not None and len(indexed):
                return snapshot, indexed
        if damaged := self._snapshots.unreadable():
            _log.warning("%s is damaged. It is built anew.", damaged[-1])
        return None

    def _build(self, store: LatentStore) -> None:
        """From nothing."""
        _require_space(self._own.path, len(store))
        shutil.rmtree(self._own.path / "edge", ignore_errors=True)
        self._linked = False
        sample = [passage.content for passage in itertools.islice(store.texts(), _AVERAGED)]
        self._bm25 = Bm25Settings(avg_len=average_length(sample)) if sample else Bm25Settings()
        self.index = EdgeIndex.create(
            self._own.path / "edge", bm25=self._bm25, embedder=self._embedder
        )
        self._unpublished = sync_index(self.index, store, None)

    def _sync(self, store: LatentStore, indexed: LatentStore) -> None:
        try:
            changes = Changes.between(indexed, store)
        except (StoreError, OSError):
            # What it was made from cannot be read any more.
            self.index.close()
            self._build(store)
            return
        if changes.count:
            _require_space(self._own.path, changes.count)
            self._make_writable()
            changes.apply(self.index)
        # Also without a change it is a newer version that can be started from.
        self._unpublished += changes.count + (indexed.version != store.version)

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

    def _publish_if_large(self, store: LatentStore) -> None:
        if self._unpublished > max(_PUBLISH_CHANGES, _PUBLISH_SHARE * len(store)):
            self._publish(store)

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


@dataclass(frozen=True)
class _State:
    """version, manifest: number and digest of the store's version that a server's collection shows; None
    while it is first filled."""

    version: int | None
    manifest: str | None
    bm25: Bm25Settings
    embedder: str | None


class SharedIndex:
    """A collection on a Qdrant server, which shows the newest version to all."""

    def __init__(
        self,
        folder: Folder,
        store: LatentStore,
        embedder: Embedder | None,
        qdrant_url: str,
        collection: str,
        spread: Spread | None = None,
    ) -> None:
        self._folder = folder
        self._embedder = embedder
        self._url = qdrant_url
        self._collection = collection
        self._name = embedder.name if embedder else None
        self.index: PassageIndex
        folder.make()
        if _read_state(folder) is None:
            _refuse_foreign_collection(qdrant_url, collection)
        self._show(store, spread)

    def follow(self, old: LatentStore, new: LatentStore, spread: Spread | None = None) -> None:
        """Bring the collection to another version of the store."""
        if old.version != new.version:
            self.index.close()
            self._show(new, spread)

    def _show(self, store: LatentStore, spread: Spread | None) -> None:
        """Connect to a collection that shows this version of the store, or a later one: what others have
        written is not taken back. Where it was is for `state.json` to say: they may have gone on since."""
        state = _read_state(self._folder)
        indexed = indexed_store(store, state) if state is not None else None
        if state is not None and indexed is None and newest_version(store.folder) > store.version:
            self._connect(
                state
            )  # Somebody is ahead of this version, and has made it of a later one.
            return
        behind = indexed is not None and indexed.version < store.version
        if state is None or indexed is None or (behind and not len(indexed)):
            self._build(store, spread)
            return
        self._connect(state)
        if behind:
            self._apply(Changes.between(indexed, store), store, spread)
            self._write_state(store)

    def optimize(self, store: LatentStore) -> None:
        self.index.optimize()

    def loaded(self, store: LatentStore, passages: int) -> None:
        """The server optimizes by itself."""

    def publish(self, store: LatentStore) -> None:
        """Everybody has it already."""

    def close(self, store: LatentStore) -> None:
        self.index.close()

    def _build(self, store: LatentStore, spread: Spread | None) -> None:
        from lclm_rag.retrieval.server import drop_collection

        drop_collection(self._url, self._collection)
        sample = [passage.content for passage in itertools.islice(store.texts(), _AVERAGED)]
        self._bm25 = Bm25Settings(avg_len=average_length(sample)) if sample else Bm25Settings()
        self._connect(self._write_state(None))
        self._apply(Changes.between(None, store), store, spread)
        self._write_state(store)

    def _apply(self, changes: Changes, store: LatentStore, spread: Spread | None) -> None:
        if spread is None:
            changes.apply(self.index)
            return
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
        spread(points)

    def _connect(self, state: _State) -> None:
        from lclm_rag.retrieval.server import ServerIndex

        _check_embedder(state.embedder, self._embedder, self._folder)
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


OpenIndex = EmbeddedIndex | SharedIndex


def sync_index(index: PassageIndex, store: LatentStore, indexed: LatentStore | None) -> int:
    """Apply what changed between the version that `index` shows (None: nothing) and `store`; returns how many
    passages that were. Interrupted, it can be run again: every step gives the same result twice."""
    changes = Changes.between(indexed, store)
    changes.apply(index)
    return changes.count


@dataclass(frozen=True)
class Changes:
    """What the index of one version has to forget and to learn to be that of another.

    gone, new: fragments with rows. A row that was only written elsewhere (compaction, another codec) is
    neither.
    """

    gone: list[tuple[Fragment, list[int]]]
    new: list[tuple[Fragment, list[int]]]

    @classmethod
    def between(cls, indexed: LatentStore | None, store: LatentStore) -> Changes:
        """indexed: None where the index is empty. Only fragments that the two do not share are looked at."""
        before = {e.name: e for e in indexed.manifest.fragments} if indexed else {}
        after = {e.name: e for e in store.manifest.fragments}
        gone = _only_in(indexed, before, after) if indexed else []
        new = _only_in(store, after, before)
        moved = _identities(gone) & _identities(new) if gone and new else set()
        return cls(_without(gone, moved), _without(new, moved))

    @property
    def count(self) -> int:
        return sum(len(rows) for _, rows in (*self.gone, *self.new))

    def delete(self, index: PassageIndex) -> None:
        """The first half of `apply`."""
        for fragment, rows in self.gone:
            index.delete(map(fragment.key, rows))

    def apply(self, index: PassageIndex) -> None:
        # Deletions first: a changed document has its passages under the same keys again.
        self.delete(index)
        for fragment, rows in self.new:
            index.upsert(_entries(map(fragment.passage, rows)))
        index.flush()


def _only_in(
    store: LatentStore, entries: dict[str, FragmentEntry], others: dict[str, FragmentEntry]
) -> list[tuple[Fragment, list[int]]]:
    """The rows that one version shows and the other does not, as far as their places tell."""
    found = []
    for name, entry in entries.items():
        shown = visible_rows(entry)
        if name in others:
            shown &= ~visible_rows(others[name])
        if shown.any():
            found.append((store.fragment(name), [int(row) for row in np.flatnonzero(shown)]))
    return found


def _identity(fragment: Fragment, row: int) -> tuple[int, bytes]:
    """The same where key, text and metadata are."""
    return fragment.key_hash(row), fragment.document_hash(row)


def _identities(rows: list[tuple[Fragment, list[int]]]) -> set[tuple[int, bytes]]:
    return {_identity(fragment, row) for fragment, numbers in rows for row in numbers}


def _without(
    rows: list[tuple[Fragment, list[int]]], moved: set[tuple[int, bytes]]
) -> list[tuple[Fragment, list[int]]]:
    if not moved:
        return rows
    return [(f, [row for row in numbers if _identity(f, row) not in moved]) for f, numbers in rows]


def _entries(passages: Iterable[Passage]) -> Iterator[IndexEntry]:
    return (IndexEntry(p.key, p.content, p.metadata) for p in passages)


def indexed_store(store: LatentStore, made_from: Snapshot | _State) -> LatentStore | None:
    """The store at the version that an index shows; None where that is not there any more, or another one has
    its number."""
    if made_from.version is None:
        return None
    opened = store
    if made_from.version != store.version:
        try:
            opened = LatentStore.open(store.folder, made_from.version)
        except StoreError:
            return None
    return opened if opened.manifest.digest == made_from.manifest else None


def _check_embedder(made_with: str | None, embedder: Embedder | None, folder: Folder) -> None:
    given = embedder.name if embedder else None
    if made_with != given:
        raise KnowledgeBaseError(
            f"The passage index in {folder} was made with embedder {made_with}, not with {given}."
        )


@contextmanager
def _disk_errors(folder: Folder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise PassageIndexError(
            f"The disk is full: the passage index in {folder} cannot be brought up to date. What is "
            "committed stands; the index follows when the knowledge base is opened with enough room."
        ) from error


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


def _refuse_foreign_collection(qdrant_url: str, collection: str) -> None:
    from lclm_rag.retrieval.server import collection_exists

    if collection_exists(qdrant_url, collection):
        raise KnowledgeBaseError(
            f"The collection {collection!r} at {qdrant_url} is there already, and not of this "
            "knowledge base; choose another name, or delete it."
        )


def state_version(folder: Folder) -> int:
    """The version that a server's collection shows; 0 where there is none."""
    state = _read_state(folder)
    return 0 if state is None else state.version or 0


def _read_state(folder: Folder) -> _State | None:
    try:
        raw = unseal(folder.read("state.json"))
        return _State(raw["version"], raw["manifest"], Bm25Settings(**raw["bm25"]), raw["embedder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Derived: what cannot be read is built anew.
