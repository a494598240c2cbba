"""Verification of a knowledge base's passage index against its store, and rebuilding it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress

import numpy as np

from lclm_rag.config import Settings
from lclm_rag.errors import PassageIndexError
from lclm_rag.indexing.key_hashes import are_among, key_hashes
from lclm_rag.indexing.ownership import copied, foreign
from lclm_rag.indexing.private import snapshot_keys
from lclm_rag.indexing.session import open_index
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.indexing.state import read_state
from lclm_rag.indexing.versions import indexed_store
from lclm_rag.problem import Problem
from lclm_rag.retrieval import load_embedder
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore
from lclm_rag.store.verify import Contents
from lclm_rag.types import PassageKey

__all__ = ["rebuild_index", "verify_index"]


def verify_index(
    folder: Folder, settings: Settings, store: LatentStore, contents: Contents
) -> Iterator[Problem]:
    """Check the index, and name passages that the store has lost but the index still knows.

    Args:
        folder: The folder of the knowledge base's index.
        settings: The knowledge base's settings.
        store: The store, at the version that was verified.
        contents: The passages of that version.

    Yields:
        What is wrong with the index, and a problem for each lost passage that it knows.
    """
    try:
        if settings.qdrant_url is None:
            yield from _snapshot_problems(SnapshotFolder(folder, settings.id), store, contents)
        else:
            yield from _collection_problems(folder, settings.qdrant_url, settings, store, contents)
    except PassageIndexError as error:
        yield Problem("index", settings.collection or str(folder), str(error))


def rebuild_index(folder: Folder, settings: Settings, store: LatentStore) -> None:
    """Build the index from the store, and put it in the place of the one that exists.

    Args:
        folder: The folder of the knowledge base's index.
        settings: The knowledge base's settings.
        store: The store, at its newest version.
    """
    if settings.qdrant_url is None:
        SnapshotFolder(folder, settings.id).remove_all()
    index = open_index(
        folder,
        store,
        settings,
        embedder=load_embedder(settings.embedder),
        task="rebuild",
    )
    index.close()


def _collection_problems(
    folder: Folder, url: str, settings: Settings, store: LatentStore, contents: Contents
) -> Iterator[Problem]:
    from lclm_rag.retrieval.collections import collection_pages, read_mark

    state = read_state(folder)
    if state is None:
        if len(store):
            sentence = f"There is no passage index of {store.folder} at {url}; --repair makes it."
            yield Problem("index", str(settings.collection), sentence)
        return
    collection = state.collection or str(settings.collection)
    where = f"The collection {collection!r} at {url}"
    mark = read_mark(url, collection)
    if sentence := (
        foreign(mark, settings.id, state, store, where) or copied(folder, state, where) or ""
    ):
        yield Problem("index", collection, sentence)
        return
    pages = collection_pages(url, collection)
    yield from _differences(pages, store, contents, collection, is_current=True)


def _snapshot_problems(
    snapshots: SnapshotFolder, store: LatentStore, contents: Contents
) -> Iterator[Problem]:
    for path in snapshots.unreadable():
        yield _damaged(str(path), ": it cannot be read")
    # Those of the knowledge base itself, where this user has copies: the copies were checked when made.
    nearest = snapshots.nearest(store.version, originals=True)
    usable = (s for s in nearest if indexed_store(store, s.version, s.manifest) is not None)
    snapshot = next(usable, None)
    if snapshot is None:
        return
    where = str(snapshot.path)
    if damage := snapshot.damage():
        yield _damaged(where, f" ({', '.join(damage[:3])})")
        return
    pages = [list(snapshot_keys(snapshots.private, snapshot))]
    # A snapshot of an earlier version may lack passages: whoever opens it brings it up to date.
    yield from _differences(pages, store, contents, where, snapshot.version == store.version)


def _damaged(where: str, what: str) -> Problem:
    sentence = f"The passage index in {where} is damaged{what}; --repair makes it anew."
    return Problem("index", where, sentence)


def _differences(
    pages: Iterable[list[PassageKey]],
    store: LatentStore,
    contents: Contents,
    where: str,
    is_current: bool,
) -> Iterator[Problem]:
    """The differences between an index and a version of the store.

    Args:
        pages: The keys that the index holds, each once.
        store: The version.
        contents: The version's passages.
        where: The index's path or name, for messages.
        is_current: Whether the index shows this very version; otherwise only lost passages are reported.

    Yields:
        A problem if the index lacks sound passages or has unknown ones, and one for each damaged passage
        of the store that the index knows.
    """
    extra = known = 0
    lost: list[str] = []
    for keys in pages:
        hashes = key_hashes(keys)
        is_extra = ~are_among(contents.hashes, hashes)
        extra += int(np.count_nonzero(is_extra))
        known += int(np.count_nonzero(~is_extra))
        if contents.damaged:
            is_lost = is_extra & ~are_among(contents.hidden, hashes)
            lost += [key.document_id for key in compress(keys, is_lost)]
    missing = len(contents.hashes) - known
    if is_current and (missing > 0 or extra > contents.damaged):
        sentence = (
            f"The passage index {where} lacks {missing:,} passages of version {store.version}, and has "
            f"{extra:,} that are not in it; --repair makes it anew."
        )
        yield Problem("index", where, sentence)
    for document_id in lost:
        yield Problem("indexed passage", where, "", document_id)
