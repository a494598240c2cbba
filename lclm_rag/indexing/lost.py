"""Detection of a lost newest version: its manifest is gone, but a passage index of it exists."""

from __future__ import annotations

from lclm_rag.indexing.snapshots import published_versions
from lclm_rag.indexing.state import state_version
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore, newest_version

__all__ = ["lost_version"]


def lost_version(folder: Folder, store: LatentStore) -> str | None:
    """Look for traces of a version newer than the newest manifest.

    Args:
        folder: The folder of the knowledge base's index.
        store: The store, at any version.

    Returns:
        A sentence that names the lost version and says what to do; None if no index shows a lost version.
    """
    indexed = max([state_version(folder), *published_versions(folder)])
    # The store is listed after the index: in the other order, a version that a writer commits and indexes in
    # between would seem to be lost.
    newest = newest_version(store.folder)
    if indexed <= newest:
        return None
    return (
        f"Version {indexed} of {store.folder} was committed, and its manifest is not there (version {newest} "
        "is the newest that is): was the store copied while it was written, or a part of it restored? Copy "
        "it again from where it is whole, or run lclm-rag verify --repair to go on from what is there."
    )
