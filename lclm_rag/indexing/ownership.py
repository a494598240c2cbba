"""Whether a collection on a Qdrant server is that of a knowledge base, or of another, or of its original."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lclm_rag.indexing.state import State, home_of
from lclm_rag.indexing.versions import indexed_store
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore, newest_version
from lclm_rag.store.manifest import committed_versions
from lclm_rag.store.parts import MANIFESTS

if TYPE_CHECKING:
    from lclm_rag.retrieval.collections import Mark

__all__ = ["copied", "foreign"]


def foreign(
    mark: Mark | None, owner: str, state: State, store: LatentStore, where: str
) -> str | None:
    """Why a collection is not what the state says.

    Args:
        mark: What the collection itself says; None if it says nothing.
        owner: The knowledge base's id.
        state: What the knowledge base's folder says.
        store: The store, at any version.
        where: The collection, as the subject of a sentence.

    Returns:
        A sentence that says what to do; None if nothing is wrong.
    """
    if mark is not None and mark.id != owner:
        return (
            f"{where} is of another knowledge base; lclm-rag verify --repair gives {store.folder} one of its "
            "own."
        )
    versions = [(state.version, state.manifest)]
    if mark is not None and mark.version is not None:
        versions.append((mark.version, str(mark.manifest)))
    for version, digest in versions:
        if not _is_of(store, version, digest):
            return (
                f"{where} shows a version {version} that {store.folder} does not have: a copy of this "
                "knowledge base has written it, or this one was restored from a backup. lclm-rag verify "
                "--repair gives it a collection of its own."
            )
    return None


def copied(folder: Folder, state: State, where: str) -> str | None:
    """Why a knowledge base must not write its collection: because it is a copy of another one.

    Args:
        folder: The folder of the knowledge base's index.
        state: What that folder says.
        where: The collection, as the subject of a sentence.

    Returns:
        A sentence that says what to do; None if it may.
    """
    if state.home is None or state.home.is_same(home_of(folder)):
        return None
    return (
        f"{where} is that of {state.home.place}, and {folder} is a copy of it, or was moved: lclm-rag verify "
        "--repair gives it a collection of its own."
    )


def _is_of(store: LatentStore, version: int, digest: str) -> bool:
    """Whether a version is one of this store, as far as can be told: `vacuum` removes early ones."""
    if indexed_store(store, version, digest) is not None:
        return True
    return version < newest_version(store.folder) and version not in committed_versions(
        store.folder / MANIFESTS
    )
