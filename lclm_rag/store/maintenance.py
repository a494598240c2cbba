"""Keeping a store small: compaction, vacuum, and conversion to another codec. Readers are not interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from lclm_rag.errors import StoreError
from lclm_rag.storage import Folder, open_folder
from lclm_rag.storage.local import TEMPORARY
from lclm_rag.store.codecs import CodecName
from lclm_rag.store.keys import run_name
from lclm_rag.store.lists import (
    FragmentEntry,
    FragmentTable,
    ListEntry,
    deletions_name,
    list_name,
)
from lclm_rag.store.locks import reading, versions_read, write_lock
from lclm_rag.store.manifest import Manifest, committed_versions, manifest_name, read_manifest
from lclm_rag.store.marks import LiveRun, live_runs
from lclm_rag.store.parts import (
    FILES,
    LEASES,
    MANIFESTS,
    UNCOMMITTED,
)
from lclm_rag.store.store import LatentStore
from lclm_rag.store.writer import MERGED_BYTES, writing

__all__ = ["Vacuumed", "compact", "convert", "vacuum"]

_DELETED_SHARE = 0.1
"""Compaction rewrites a fragment once this share of its rows is deleted."""

_UNSEEN_READERS_SECONDS = 24 * 3600
"""Readers of an object store leave no trace, so versions and files that may be in use stay for this long.

A run that writes counts as alive for this long after its last mark, and its clock may be wrong by as much.
"""


@dataclass(frozen=True)
class Vacuumed:
    """What `vacuum` has removed.

    Attributes:
        kept: The versions that remain, oldest first.
        removed: The versions removed, oldest first.
        bytes: The bytes freed on disk or in the object store.
    """

    kept: list[int]
    removed: list[int]
    bytes: int


def compact(
    location: str | Path | Folder,
    *,
    wait: float = 0.0,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> LatentStore:
    """Rewrite fragments that are small, or of which at least a tenth is deleted, to some of about 1 GiB.

    The old fragments stay on disk until no kept version needs them; see `vacuum`. Compaction holds a batch of
    passages in memory. It also makes one key run of all.

    Args:
        location: The store's folder.
        wait: The number of seconds to wait for another writer.
        on_row: Called after each row with the number of rows done and the number of rows to rewrite.

    Returns:
        The newest version, which is a new one if anything was rewritten.

    Raises:
        LockedError: If another process still writes after `wait` seconds.
        StoreError: If there is no store, the disk is full, or another writer was faster in an object store.
        DamagedError: If a row to be rewritten is damaged. The message names the row.
    """
    with writing(location, "compact", wait=wait) as writer:
        chosen = _worth_it(writer.base.entries())
        writer.rewrite(chosen, _counted(chosen, on_row))
        return writer.commit(merge_keys=True)


def convert(
    location: str | Path | Folder,
    codec: CodecName,
    *,
    wait: float = 0.0,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> LatentStore:
    """Rewrite all latents in another codec; the encoder is not needed.

    A larger codec does not bring back what a smaller one has lost. Earlier versions keep their codec.

    Args:
        location: The store's folder.
        codec: The new codec.
        wait: The number of seconds to wait for another writer.
        on_row: Called after each row with the number of rows done and the number of rows to rewrite.

    Returns:
        The newest version, in the new codec.

    Raises:
        LockedError: If another process still writes after `wait` seconds.
        StoreError: If there is no store, it has that codec already, the codec cannot hold the latents, the
            disk is full, or another writer was faster in an object store.
        DamagedError: If a row is damaged. The message names the row.
    """
    old = LatentStore.open(location)
    layout = replace(old.layout, codec=codec)
    old.close()
    if layout == old.layout:
        raise StoreError(f"The latents in {old.folder} are {codec} already.")
    with writing(location, "convert", wait=wait, layout=layout) as writer:
        entries = list(writer.base.entries())
        writer.rewrite(entries, _counted(entries, on_row))
        return writer.commit(merge_keys=True)


def vacuum(location: str | Path | Folder, *, keep: int = 1, wait: float = 0.0) -> Vacuumed:
    """Remove old versions, and every file that no remaining version needs.

    Versions that are being read stay. What killed writers left is removed as well, even if it could be
    resumed. In an object store, versions that were the newest within the last day and files younger than a
    day also stay, because somebody may be reading or writing them; and what a run that still writes has
    written, may take over or builds on, however long it takes.

    Args:
        location: The store's folder.
        keep: The number of newest versions to keep, at least 1.
        wait: The number of seconds to wait for another writer.

    Returns:
        The versions kept and removed, and the bytes freed.

    Raises:
        ValueError: If `keep` is less than 1.
        LockedError: If another process still writes after `wait` seconds.
        StoreError: If there is no store.
        DamagedError: If the manifest of a version that stays is damaged.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}: the newest version always stays.")
    folder = open_folder(location)
    LatentStore.open(folder).close()
    # Under the write lock: to this function the fragments of a running writer look like leftovers.
    with nullcontext() if folder.local is None else write_lock(folder.local, wait):
        # 1. Manifests of old versions. After a crash here some files belong to no version, and the next
        #    vacuum removes them; in the other order a version would name files that are gone.
        runs, notes = _live_runs(folder)
        kept, removed, freed = _remove_versions(folder, keep, {run.version for run in runs})
        # 2. What the versions that are still there need.
        needed = _needed(folder, [read_manifest(folder / MANIFESTS, number) for number in kept])
        # 3. All other files; in the manifests' folder only temporary ones. A run that writes may take over
        #    whatever has a note.
        if runs:
            needed |= notes | {note.removesuffix(".json") for note in notes}
        since = min((run.began for run in runs), default=time.time()) - _UNSEEN_READERS_SECONDS
        for part in FILES:
            for facts in (folder / part).files():
                if part == MANIFESTS and not facts.name.endswith(TEMPORARY):
                    continue
                in_use = folder.local is None and facts.modified >= since
                if facts.name not in needed and not in_use:
                    (folder / part).remove(facts.name)
                    freed += facts.size
    return Vacuumed(kept, removed, freed)


def _live_runs(folder: Folder) -> tuple[list[LiveRun], set[str]]:
    """The runs that write into an object store, and the names of all notes of uncommitted fragments."""
    if folder.local is not None:
        return [], set()  # The write lock is held: there are none.
    files = (folder / UNCOMMITTED).files()
    notes = {facts.name for facts in files if facts.name.endswith(".json")}
    return live_runs(files, time.time() - _UNSEEN_READERS_SECONDS), notes


def _remove_versions(
    folder: Folder, keep: int, in_use: set[int]
) -> tuple[list[int], list[int], int]:
    """Remove the manifests of old versions; return versions kept, versions removed, and bytes freed."""
    manifests = folder / MANIFESTS
    files = {facts.name: facts for facts in manifests.files()}
    versions = committed_versions(manifests)
    # With the gate held: no reader is then between its choice of a version and its lease.
    with nullcontext() if folder.local is None else reading(folder.local / LEASES):
        wanted = in_use | set(versions[-keep:])
        if folder.local is not None:
            wanted |= versions_read(folder.local / LEASES)
        removed, freed = [], 0
        for version, follower in pairwise(versions):
            facts = files[manifest_name(version)]
            # Readers open the newest version: of this one, the last may have come just before the next
            # version was committed.
            superseded = files[manifest_name(follower)].modified
            seen = folder.local is not None or time.time() - superseded > _UNSEEN_READERS_SECONDS
            if version not in wanted and seen:
                manifests.remove(facts.name)
                removed.append(version)
                freed += facts.size
    return [v for v in versions if v not in removed], removed, freed


def _needed(folder: Folder, manifests: Iterable[Manifest]) -> set[str]:
    """The names of all files that versions need, besides their manifests."""
    needed: set[str] = set()
    lists: dict[str, ListEntry] = {}
    for manifest in manifests:
        needed |= {run_name(run.name) for run in manifest.keys}
        lists |= {list_name(listed.name): listed for listed in manifest.lists}
    for listed in lists.values():
        for entry in FragmentTable(folder).read(listed):
            needed.add(entry.name)
            if entry.deletions is not None:
                needed.add(deletions_name(entry.deletions.file))
    return needed | lists.keys()


def _worth_it(entries: Iterable[FragmentEntry]) -> list[FragmentEntry]:
    """The fragments to rewrite; none if that would change nothing."""
    entries = list(entries)
    small = [e for e in entries if e.bytes * (1 - e.deleted / e.rows) < MERGED_BYTES / 2]
    holed = [e for e in entries if e.deleted >= _DELETED_SHARE * e.rows]
    if len(small) == 1 and not small[0].deleted:
        small = []
    chosen = {entry.name for entry in (*small, *holed)}
    return [entry for entry in entries if entry.name in chosen]


def _counted(
    entries: Sequence[FragmentEntry], on_row: Callable[[int, int], None]
) -> Callable[[], None]:
    total = sum(entry.rows - entry.deleted for entry in entries)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_row(done, total)

    return count
