"""Make the passage index of a knowledge base anew from its store: where it is, on a server, or embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lclm_rag.config import Settings, check_qdrant, read_settings, write_settings
from lclm_rag.errors import KnowledgeBaseError, PassageIndexError
from lclm_rag.indexing.collection import ReadCollection
from lclm_rag.indexing.ownership import copied
from lclm_rag.indexing.session import open_index
from lclm_rag.indexing.snapshots import SnapshotFolder
from lclm_rag.indexing.state import (
    FILLING,
    UPDATING,
    State,
    home_of,
    read_state,
    remove_states,
    write_state,
)
from lclm_rag.remotes import remember_remotes
from lclm_rag.retrieval.embedders import load_embedder
from lclm_rag.storage import Folder, open_folder
from lclm_rag.store import LatentStore
from lclm_rag.store.locks import write_lock

if TYPE_CHECKING:
    from lclm_rag.ingestion.ray import RayEngine
    from lclm_rag.retrieval import Embedder

__all__ = ["Reindexed", "reindex"]


@dataclass(frozen=True)
class Reindexed:
    """What `reindex` did.

    Attributes:
        passages: The passages in the index.
        passage_index: The URL of its Qdrant server; None if it is embedded.
        filled: False if the server had the collection already, whole, and only its URL was noted.
        left: What stays where the index was before: "the collection … at …"; None for nothing.
    """

    passages: int
    passage_index: str | None
    filled: bool
    left: str | None


def reindex(
    location: str | Path | Folder,
    *,
    qdrant_url: str | None = None,
    collection: str | None = None,
    embedded: bool = False,
    qdrant_options: Mapping[str, Any] | None = None,
    filter_keys: Sequence[str] | None = None,
    engine: RayEngine | None = None,
    wait: float = 0.0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reindexed:
    """Make the passage index anew beside the one that is searched, and put it in its place.

    Whoever searches meanwhile finds what was there before. If this is killed, the next call goes on with the
    fragments that a server does not have yet. Where the index was before, nothing is deleted; on the same
    server, the old collection is, once the new one stands for it.

    Args:
        location: The knowledge base's folder, path or URL.
        qdrant_url: The Qdrant server to put it on. If that has the collection already, whole, only the URL is
            noted. Default: where it is.
        collection: The name of the collection there. Default: the one it has, or "lclm-" and the folder's
            name.
        embedded: Whether to take it from the server into the folder.
        qdrant_options: As for `KnowledgeBase.create`. Default: those that it has.
        filter_keys: As for `KnowledgeBase.create`. Default: those that it has.
        engine: A `RayEngine` puts the passages on the server from a Ray cluster. Default: this process.
        wait: How many seconds to wait while another process writes.
        on_progress: Called with the passages that are in the new index so far, and all.

    Returns:
        What was done.

    Raises:
        ValueError: When arguments contradict each other, or the URL or an option is not valid.
        KnowledgeBaseError: When there is no knowledge base, or its embedder was given as an object.
        LockedError: When another process still writes after `wait` seconds.
        PassageIndexError: When the server cannot be reached, or refuses a request.
        StoreError: When the store cannot be read.
    """
    folder = open_folder(location)
    settings = read_settings(folder)
    if embedded and qdrant_url is not None:
        raise ValueError("The index is either embedded or on a Qdrant server; choose one.")
    url = None if embedded else qdrant_url or settings.qdrant_url
    check_qdrant(url, qdrant_options, filter_keys)
    if url is None and (engine is not None or collection is not None):
        raise ValueError(
            "A cluster and the name of a collection are for a Qdrant server; give its URL."
        )
    wanted = replace(
        settings,
        qdrant_url=url,
        collection=_collection(folder, settings, collection) if url else None,
        qdrant_options=_chosen(url, qdrant_options, settings.qdrant_options, dict),
        filter_keys=_chosen(url, filter_keys, settings.filter_keys, list),
    )
    local = (folder / "store").local
    with (
        nullcontext() if local is None else write_lock(local, wait),
        closing(LatentStore.open(folder / "store")) as store,
    ):
        filled = True
        if url is None:
            _embed(folder, settings, wanted, store)
        else:
            filled = _put_on_server(folder, settings, wanted, store, engine, on_progress)
        remember_remotes(wanted)
        return Reindexed(len(store), url, filled, _left(settings, wanted) if filled else None)


def _embed(folder: Folder, settings: Settings, wanted: Settings, store: LatentStore) -> None:
    index = folder / "index"
    snapshots = SnapshotFolder(index, settings.id)
    # Of a time when it was embedded already; or it is to be made anew.
    snapshots.remove_all()
    session = open_index(index, store, wanted, embedder=load_embedder(settings.embedder))
    session.close()
    if settings.qdrant_url is not None:
        write_settings(folder, wanted)
        remove_states(index)
        for note in (FILLING, UPDATING):
            index.remove(note)


def _put_on_server(
    folder: Folder,
    settings: Settings,
    wanted: Settings,
    store: LatentStore,
    engine: RayEngine | None,
    on_progress: Callable[[int, int], None],
) -> bool:
    """Put the index on a server; return whether anything had to be put there."""
    embedder = load_embedder(settings.embedder)
    place = (settings.qdrant_url, settings.collection)
    is_moved = (wanted.qdrant_url, wanted.collection) != place
    state = _whole(folder, settings, wanted, store, embedder) if is_moved else None
    if state is not None:
        write_settings(folder, wanted)
        # By the settings' file, this knowledge base is told from a copy.
        home = home_of(folder / "index")
        write_state(folder / "index", replace(state, home=home, number=state.number + 1))
        return False
    if engine is not None:
        engine.reach(str(wanted.qdrant_url))
    session = open_index(
        folder / "index",
        store,
        wanted,
        embedder=embedder,
        put_points=None if engine is None else engine.upsert,
        task="move" if is_moved else "rebuild",
        on_progress=on_progress,
        on_filled=lambda: write_settings(folder, wanted) if wanted != settings else None,
    )
    session.close()
    if settings.qdrant_url is None:
        SnapshotFolder(folder / "index", settings.id).remove_all()
    return True


def _whole(
    folder: Folder,
    settings: Settings,
    wanted: Settings,
    store: LatentStore,
    embedder: Embedder | None,
) -> State | None:
    """The state, if a server has the collection already, whole: it moved, and its collections with it."""
    from lclm_rag.retrieval.collections import collection_behind, read_mark

    state = read_state(folder / "index")
    same = replace(wanted, qdrant_url=settings.qdrant_url) == settings
    if state is None or not same or state.version != store.version:
        return None
    if copied(folder / "index", state, ""):
        return None
    name = state.collection or str(settings.collection)
    if collection_behind(str(wanted.qdrant_url), name) is None:
        return None
    mark = read_mark(str(wanted.qdrant_url), name)
    if mark is None or (mark.id, mark.version) != (settings.id, state.version):
        return None
    reader = ReadCollection(folder / "index", store, embedder, wanted)
    try:
        reader.read(store)
        return state if reader.index.count() == len(store) else None
    except (PassageIndexError, KnowledgeBaseError):
        return None
    finally:
        reader.index.close()


def _left(settings: Settings, wanted: Settings) -> str | None:
    before = (settings.qdrant_url, settings.collection)
    if settings.qdrant_url is None or before == (wanted.qdrant_url, wanted.collection):
        return None
    return f"the collection {settings.collection!r} at {settings.qdrant_url}"


def _collection(folder: Folder, settings: Settings, collection: str | None) -> str:
    name = str(folder).rpartition("/")[2] if folder.local is None else folder.local.resolve().name
    return collection or settings.collection or f"lclm-{name}"


def _chosen(url: str | None, given: Any, there: Any, kind: Callable[[Any], Any]) -> Any:
    if url is None:
        return None
    return there if given is None else kind(given)
