"""Commit a version of what is sound, so that adding the same documents again heals a store.

Every function here is called with the store's write lock held.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np

from lclm_rag.checksummed_json import seal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.storage import Folder, LocalFolder
from lclm_rag.store.checks import row_trouble
from lclm_rag.store.fragment import Fragment, Layout, write_fragment
from lclm_rag.store.manifest import (
    FragmentEntry,
    Totals,
    committed_versions,
    manifest_name,
    pack_entry,
    read_manifest,
    write_manifest,
)
from lclm_rag.store.store import (
    FRAGMENTS,
    MANIFESTS,
    UNCOMMITTED,
    LatentStore,
    row_totals,
    totals_at,
    visible_rows,
)
from lclm_rag.store.verify import StoreFindings

__all__ = ["drop_unusable", "go_back_to_an_intact_manifest", "repair_store"]


def repair_store(
    folder: LocalFolder, found: StoreFindings, documents: Iterable[str]
) -> LatentStore:
    """Commit a version without the damaged rows and without what is left of `documents`; what is sound in
    damaged files is written anew. Earlier versions, and who reads them, keep what they have."""
    base = LatentStore.open(folder)
    gone = _rows_of(base, set(documents), found.damaged)
    entries = []
    for entry in base.manifest.fragments:
        left = entry.without(gone[entry.name])
        if len(left.deleted) == left.rows:
            continue
        entries.append(_written_anew(base, left) if entry.name in found.spoiled else left)
    totals = _counted(LatentStore(folder, replace(base.manifest, fragments=tuple(entries))))
    write_manifest(folder / MANIFESTS, base.manifest.next(entries, totals, "repair", base.layout))
    base.close()
    return LatentStore.open(folder)


def go_back_to_an_intact_manifest(folder: LocalFolder) -> list[str]:
    """Where the newest manifests are damaged, commit the newest intact version once more, as the newest.

    Returns sentences on what was done. StoreError where no manifest is intact.
    """
    manifests = folder / MANIFESTS
    versions = committed_versions(manifests)
    for version in reversed(versions):
        with suppress(DamagedError):
            intact = read_manifest(manifests, version)
            break
    else:
        raise StoreError(f"No manifest in {manifests} is intact: build the knowledge base anew.")
    lost = [version for version in versions if version > intact.version]
    if lost:
        # Not under a number that was there before: an index may show what that was.
        last = replace(intact, version=lost[-1])
        write_manifest(
            manifests, last.next(intact.fragments, intact.totals, "repair", intact.layout)
        )
    return [
        f"The manifest of version {version} was damaged: what that version had changed is undone; do it "
        "again. Latents that it had added are taken over then."
        for version in lost
    ]


def drop_unusable(folder: LocalFolder, layout: Layout) -> None:
    """Put damaged manifests aside as `<version>.damaged`, drop damaged notes on uncommitted work, and keep
    sound fragments that no version names as uncommitted work, which adding the same documents takes over."""
    manifests, uncommitted = folder / MANIFESTS, folder / UNCOMMITTED
    named: set[str] = set()
    for version in committed_versions(manifests):
        try:
            named |= {entry.name for entry in read_manifest(manifests, version).fragments}
        except DamagedError:
            path = manifests.path / manifest_name(version)
            path.rename(path.with_suffix(".damaged"))
    kept = set()
    for facts in (folder / FRAGMENTS).files():
        if facts.name.endswith(".arrow") and facts.name not in named:
            with suppress(DamagedError):
                entry = _entry_of(folder / FRAGMENTS, facts.name, layout)
                note = {"layout": asdict(layout), "entry": pack_entry(entry)}
                uncommitted.replace(f"{facts.name}.json", seal(note))
                kept.add(f"{facts.name}.json")
    for facts in uncommitted.files():
        if facts.name not in kept:
            uncommitted.remove(facts.name)


def _rows_of(
    store: LatentStore, documents: set[str], damaged: dict[str, set[int]]
) -> dict[str, set[int]]:
    """By fragment: the damaged rows, and the other rows of these documents."""
    gone = {}
    for entry in store.manifest.fragments:
        rows = set(damaged.get(entry.name, ()))
        left = entry.without(rows)
        if documents and len(left.deleted) < left.rows:
            fragment = store.fragment(entry.name)
            for row in np.flatnonzero(visible_rows(left)).tolist():
                if fragment.key(row).document_id in documents:
                    rows.add(row)
        gone[entry.name] = rows
    return gone


def _written_anew(store: LatentStore, entry: FragmentEntry) -> FragmentEntry:
    """A new file of what is visible in a fragment."""
    fragment = store.fragment(entry.name)
    rows = [fragment.read(row) for row in np.flatnonzero(visible_rows(entry)).tolist()]
    name = f"{uuid.uuid4().hex}.arrow"
    fragments = store.folder / FRAGMENTS
    write_fragment(fragments, name, rows)
    return _entry_of(fragments, name, store.layout)


def _entry_of(folder: Folder, name: str, layout: Layout) -> FragmentEntry:
    """What a manifest would say of a fragment. DamagedError where a row is not sound."""
    try:
        file = folder.map(name)
    except (OSError, ValueError) as error:
        raise DamagedError(f"Fragment {folder / name} cannot be read: {error}.") from error
    fragment = Fragment(file, str(folder / name), layout)
    totals = Totals()
    for number, row in enumerate(fragment.read_all()):
        if trouble := row_trouble(row, fragment.key_hash(number)):
            raise DamagedError(f"Row {number} of fragment {folder / name}: {trouble}.")
        totals += row_totals(row)
    return FragmentEntry(
        name=name,
        rows=fragment.rows,
        latents=totals.latents,
        tokens=totals.tokens,
        bytes=file.buffer.size,
        sha256=hashlib.sha256(file.buffer).hexdigest(),
        keys_offset=fragment.keys_offset,
        keys_checksum=fragment.keys_checksum,
    )


def _counted(store: LatentStore) -> Totals:
    totals = Totals()
    for entry in store.manifest.fragments:
        for row in np.flatnonzero(visible_rows(entry)).tolist():
            totals += totals_at(store, (entry.name, row))
    return totals
