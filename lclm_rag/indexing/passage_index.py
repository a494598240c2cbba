"""Open the passage index of a knowledge base, and bring it to the version that the manifest names.

The index is derived: what it shows is written down beside it, in `state.json`, only after the engine
has flushed, so that an interrupted update is made again.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lclm_rag.documents import PassageKey
from lclm_rag.errors import KnowledgeBaseError, StoreError
from lclm_rag.retrieval import (
    Bm25Settings,
    EdgeIndex,
    Embedder,
    IndexEntry,
    PassageIndex,
    average_length,
)
from lclm_rag.settings import write_json
from lclm_rag.store import LatentStore, StoredPassage

__all__ = ["open_index", "sync_index"]

_AVERAGED = 10_000
"""BM25's average length is measured on this many passages."""


@dataclass(frozen=True)
class _State:
    """version: of the store that the index shows; None while it is first filled."""

    version: int | None
    bm25: Bm25Settings
    embedder: str | None


def open_index(
    folder: Path,
    store: LatentStore,
    *,
    embedder: Embedder | None,
    qdrant_url: str | None,
    collection: str | None,
) -> PassageIndex:
    """The passage index at the store's version: built where there is none, updated where it is behind.

    folder: holds `state.json` and, where no qdrant_url is given, the embedded engine's files.
    """
    state = _read_state(folder)
    indexed = _indexed_version(store, state)
    if state is None or indexed is None:
        if state is None and qdrant_url is not None:
            _refuse_foreign_collection(qdrant_url, collection)
        return _build(folder, store, embedder, qdrant_url, collection)
    if state.embedder != (embedder.name if embedder else None):
        raise KnowledgeBaseError(
            f"The passage index in {folder} was made with embedder {state.embedder}, not with "
            f"{embedder.name if embedder else None}."
        )
    index = _open(folder, state.bm25, embedder, qdrant_url, collection)
    if indexed.version != store.version:
        sync_index(index, store, indexed)
        _write_state(folder, _State(store.version, state.bm25, state.embedder))
    return index


def sync_index(index: PassageIndex, store: LatentStore, indexed: LatentStore | None) -> None:
    """Apply what changed between the version that `index` shows (None: nothing) and `store`.

    Interrupted, it can be run again: every step gives the same result twice.
    """
    before = {e.name: e for e in indexed.manifest.fragments} if indexed else {}
    after = {e.name: e for e in store.manifest.fragments}
    # Deletions first: a changed document has its passages under the same keys again.
    for name, entry in before.items():
        gone = set(after[name].deleted) if name in after else set(range(entry.rows))
        index.delete(_keys(store.fragment_passages(entry, gone - entry.deleted)))
    for name, entry in after.items():
        if name not in before:
            rows = set(range(entry.rows)) - entry.deleted
            index.upsert(_entries(store.fragment_passages(entry, rows)))
    index.flush()


def _build(
    folder: Path,
    store: LatentStore,
    embedder: Embedder | None,
    qdrant_url: str | None,
    collection: str | None,
) -> PassageIndex:
    if qdrant_url is not None:
        from lclm_rag.retrieval.server import drop_collection

        drop_collection(qdrant_url, str(collection))
    shutil.rmtree(folder / "edge", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    sample = [row.passage.content for row in itertools.islice(store.passages(), _AVERAGED)]
    bm25 = Bm25Settings(avg_len=average_length(sample)) if sample else Bm25Settings()
    name = embedder.name if embedder else None
    _write_state(folder, _State(None, bm25, name))
    index = _open(folder, bm25, embedder, qdrant_url, collection)
    sync_index(index, store, None)
    # An empty store says nothing of the average length: the next version builds anew.
    if sample:
        _write_state(folder, _State(store.version, bm25, name))
    return index


def _open(
    folder: Path,
    bm25: Bm25Settings,
    embedder: Embedder | None,
    qdrant_url: str | None,
    collection: str | None,
) -> PassageIndex:
    if qdrant_url is not None:
        from lclm_rag.retrieval.server import ServerIndex

        return ServerIndex.connect(qdrant_url, str(collection), bm25=bm25, embedder=embedder)
    if not (folder / "edge").exists():
        return EdgeIndex.create(folder / "edge", bm25=bm25, embedder=embedder)
    return EdgeIndex.open(folder / "edge", bm25=bm25, embedder=embedder)


def _refuse_foreign_collection(qdrant_url: str, collection: str | None) -> None:
    from lclm_rag.retrieval.server import collection_exists

    if collection_exists(qdrant_url, str(collection)):
        raise KnowledgeBaseError(
            f"The collection {collection!r} at {qdrant_url} is there already, and not of this "
            "knowledge base; choose another name, or delete it."
        )


def _indexed_version(store: LatentStore, state: _State | None) -> LatentStore | None:
    """The store at the version that the index shows; None where that is not known any more."""
    if state is None or state.version is None:
        return None
    try:
        return LatentStore.open(store.path, state.version)
    except StoreError:
        return None


def _keys(rows: Iterable[StoredPassage]) -> Iterator[PassageKey]:
    return (row.passage.key for row in rows)


def _entries(rows: Iterable[StoredPassage]) -> Iterator[IndexEntry]:
    return (IndexEntry(r.passage.key, r.passage.content, r.passage.metadata) for r in rows)


def _read_state(folder: Path) -> _State | None:
    try:
        raw = json.loads((folder / "state.json").read_text("utf-8"))
        return _State(raw["version"], Bm25Settings(**raw["bm25"]), raw["embedder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # The index is derived: what cannot be read is built anew.


def _write_state(folder: Path, state: _State) -> None:
    write_json(folder / "state.json", asdict(state))
