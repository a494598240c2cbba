"""What keeps a store small: compaction, vacuum, another codec. Readers go on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from lclm_rag.errors import StoreError
from lclm_rag.storage import Folder, open_folder
from lclm_rag.storage.local import TEMPORARY
from lclm_rag.store.codecs import CodecName
from lclm_rag.store.locks import reading, versions_read, write_lock
from lclm_rag.store.manifest import (
    FragmentEntry,
    committed_versions,
    manifest_name,
    read_manifest,
)
from lclm_rag.store.store import FRAGMENTS, LEASES, MANIFESTS, UNCOMMITTED, LatentStore
from lclm_rag.store.writer import FRAGMENT_BYTES, writing

__all__ = ["Vacuumed", "compact", "convert", "vacuum"]

_DELETED_SHARE = 0.1
"""A fragment is written anew once this share of its rows is deleted."""

_UNSEEN_READERS_SECONDS = 24 * 3600
"""In an object store readers leave no trace: what was new so long ago stays."""


@dataclass(frozen=True)
class Vacuumed:
    """kept: the versions that are there still. bytes: freed on disk."""

    kept: list[int]
    removed: list[int]
    bytes: int


def compact(
    location: str | Path | Folder,
    *,
    wait: float = 0.0,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> LatentStore:
    """Write fragments anew that are small, or of which a tenth is deleted; returns the newest version.

    Their disk is free once no kept version needs them: see `vacuum`. Memory: one fragment.
    on_row: rows done, rows in all.
    """
    with writing(location, "compact", wait=wait) as writer:
        chosen = _worth_it(writer.base.manifest.fragments)
        writer.rewrite(chosen, _counted(chosen, on_row))
        return writer.commit()


def convert(
    location: str | Path | Folder,
    codec: CodecName,
    *,
    wait: float = 0.0,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> LatentStore:
    """Write all latents in another codec, without the encoder; returns the newest version.

    From a smaller codec to a larger one nothing comes back that the smaller one had lost. Earlier versions
    keep theirs. StoreError where the store has that codec already.
    """
    old = LatentStore.open(location)
    layout = replace(old.layout, codec=codec)
    old.close()
    if layout == old.layout:
        raise StoreError(f"The latents in {old.folder} are {codec} already.")
    with writing(location, "convert", wait=wait, layout=layout) as writer:
        entries = writer.base.manifest.fragments
        writer.rewrite(entries, _counted(entries, on_row))
        return writer.commit()


def vacuum(location: str | Path | Folder, *, keep: int = 1, wait: float = 0.0) -> Vacuumed:
    """Remove all versions but the newest `keep` and those that are being read, and every file that no
    remaining version needs: what killed writers left among them, resumable or not.

    In an object store versions stay that were the newest within the last day, and files younger than a day,
    for whoever may be reading or writing them.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}: the newest version always stays.")
    folder = open_folder(location)
    LatentStore.open(folder).close()
    with nullcontext() if folder.local is None else write_lock(folder.local, wait):
        kept, removed, freed = _remove_versions(folder, keep)
        needed = {
            entry.name
            for version in kept
            for entry in read_manifest(folder / MANIFESTS, version).fragments
        }
        for part in (FRAGMENTS, UNCOMMITTED, MANIFESTS):
            for facts in (folder / part).files():
                if part == MANIFESTS and not facts.name.endswith(TEMPORARY):
                    continue
                if facts.name not in needed and not _may_be_in_use(folder, facts.modified):
                    (folder / part).remove(facts.name)
                    freed += facts.size
    return Vacuumed(kept, removed, freed)


def _remove_versions(folder: Folder, keep: int) -> tuple[list[int], list[int], int]:
    """Versions kept, versions removed, bytes freed. Manifests go first: what they alone needed is then
    nobody's, also after a crash."""
    manifests = folder / MANIFESTS
    files = {facts.name: facts for facts in manifests.files()}
    versions = committed_versions(manifests)
    # Between a reader's choice of a version and its lease nothing may be removed.
    with nullcontext() if folder.local is None else reading(folder.local / LEASES):
        wanted = set(versions[-keep:])
        if folder.local is not None:
            wanted |= versions_read(folder.local / LEASES)
        removed, freed = [], 0
        for version, follower in pairwise(versions):
            facts = files[manifest_name(version)]
            # Whoever has opened it did so before there was a newer one.
            superseded = files[manifest_name(follower)].modified
            if version not in wanted and not _may_be_in_use(folder, superseded):
                manifests.remove(facts.name)
                removed.append(version)
                freed += facts.size
    return [v for v in versions if v not in removed], removed, freed


def _may_be_in_use(folder: Folder, modified: float) -> bool:
    return folder.local is None and time.time() - modified < _UNSEEN_READERS_SECONDS


def _worth_it(entries: tuple[FragmentEntry, ...]) -> list[FragmentEntry]:
    """The fragments to write anew; none where that would change nothing."""
    small = [e for e in entries if e.bytes * (1 - len(e.deleted) / e.rows) < FRAGMENT_BYTES / 2]
    holed = [e for e in entries if len(e.deleted) >= _DELETED_SHARE * e.rows]
    if len(small) == 1 and not small[0].deleted:
        small = []
    chosen = {entry.name for entry in (*small, *holed)}
    return [entry for entry in entries if entry.name in chosen]


def _counted(
    entries: tuple[FragmentEntry, ...] | list[FragmentEntry], on_row: Callable[[int, int], None]
) -> Callable[[], None]:
    total = sum(entry.rows - len(entry.deleted) for entry in entries)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_row(done, total)

    return count
