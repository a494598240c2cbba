"""A version whose passage index is there and whose manifest is not: so the loss of the newest one shows."""

from __future__ import annotations

from lclm_rag.indexing.server import state_version
from lclm_rag.indexing.snapshots import published_versions
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore, newest_version

__all__ = ["lost_version"]


def lost_version(folder: Folder, store: LatentStore) -> str | None:
    """A sentence on a version that was committed after all that are there; None where nothing tells of one.
    folder: of the index."""
    indexed = max([state_version(folder), *published_versions(folder)])
    # Listed after the index was looked at: meanwhile a writer may commit.
    newest = newest_version(store.folder)
    if indexed <= newest:
        return None
    return (
        f"Version {indexed} of {store.folder} was committed, and its manifest is not there (version {newest} "
        "is the newest that is): was the store copied while it was written, or a part of it restored? Copy "
        "it again from where it is whole, or run lclm-rag verify --repair to go on from what is there."
    )
