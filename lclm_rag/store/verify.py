"""Read everything that a store holds and say what is not as it was written; make room to add it again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from lclm_rag.documents import Document, PassageKey
from lclm_rag.errors import StoreError
from lclm_rag.folders import Folder, LocalFolder
from lclm_rag.folders.local import TEMPORARY
from lclm_rag.sealed_json import seal, unseal
from lclm_rag.store.fragment import DamagedError, Fragment, Layout, StoredPassage, key_hash
from lclm_rag.store.locks import write_lock
from lclm_rag.store.manifest import (
    FragmentEntry,
    Manifest,
    Totals,
    committed_versions,
    manifest_name,
    pack_entry,
    read_manifest,
    write_manifest,
)
from lclm_rag.store.store import FRAGMENTS, MANIFESTS, UNCOMMITTED, LatentStore, Place, visible_rows
from lclm_rag.store.writer import uncommitted_entries

__all__ = ["StoreFindings", "go_back_to_an_intact_manifest", "repair_store", "verify_store"]


@dataclass
class StoreFindings:
    """What `verify_store` has found.

    problems: sentences. documents: ids of those of which something is damaged. damaged: places of the rows that
    are. nameless: damaged passages whose document cannot be told from the store alone. keys: of all sound
    passages. unneeded_bytes: of files that no version needs, which `vacuum` removes.
    """

    version: int
    problems: list[str] = field(default_factory=list)
    documents: set[str] = field(default_factory=set)
    damaged: set[Place] = field(default_factory=set)
    nameless: int = 0
    keys: set[PassageKey] = field(default_factory=set)
    unneeded_bytes: int = 0


def verify_store(
    store: LatentStore, on_bytes: Callable[[int], None] = lambda size: None
) -> StoreFindings:
    """Check every file of the store's folder, and every row that `store` shows.

    Manifests and fragments of all versions: checksums and sizes. The newest version: row counts, keys, finite
    latents and as many as the tokens need, spans that match the text, documents that are whole and hash to
    what was noted. on_bytes: called with the size of each file when it is done.
    """
    found = StoreFindings(store.version)
    shown = {entry.name for entry in store.manifest.fragments}
    entries = _all_entries(store, found)
    sound_files = {}
    for entry in entries.values():
        sound_files[entry.name] = _check_file(store.folder / FRAGMENTS, entry, found)
        on_bytes(entry.bytes)
    rows = _Rows()
    for entry in store.manifest.fragments:
        _check_rows(store, entry, sound_files[entry.name], found, rows)
    if any(not sound_files[name] and name not in shown for name in entries):
        found.problems.append(
            "Some of these files belong to earlier versions only: vacuum removes them."
        )
    _check_documents(store, rows, found)
    _check_totals(store.manifest, found)
    _check_uncommitted(store.folder, entries, found)
    return found


def repair_store(
    folder: Folder, found: StoreFindings, documents: Iterable[str], wait: float = 0.0
) -> LatentStore:
    """Commit a version without the damaged rows, and without what is left of `documents`; adding these again
    heals it. The version stays where nothing is damaged."""
    local = _local(folder)
    with write_lock(local.path, wait):
        base = LatentStore.open(folder)
        if base.version != found.version:
            raise StoreError(f"{folder} was written meanwhile; run the same command again.")
        gone: dict[str, set[int]] = {}
        for name, row in found.damaged:
            gone.setdefault(name, set()).add(row)
        for name, row in _sound_places(base, set(documents), found.damaged):
            gone.setdefault(name, set()).add(row)
        if not gone:
            return base
        entries = [entry.without(gone.get(entry.name, ())) for entry in base.manifest.fragments]
        entries = [entry for entry in entries if len(entry.deleted) < entry.rows]
        totals = _counted(LatentStore(folder, replace(base.manifest, fragments=tuple(entries))))
        manifest = base.manifest.next(entries, totals, "repair", base.layout)
        write_manifest(folder / MANIFESTS, manifest)
        return LatentStore.open(folder)


def go_back_to_an_intact_manifest(folder: Folder, wait: float = 0.0) -> list[str]:
    """Where the newest manifests are damaged, make the newest intact one the newest version.

    The damaged are kept under the name `<version>.damaged`; fragments that they alone named are kept as
    uncommitted work, which adding the same documents takes over. Returns sentences on what was done.
    """
    local = _local(folder)
    manifests = local / MANIFESTS
    said: list[str] = []
    with write_lock(local.path, wait):
        for version in reversed(committed_versions(manifests)):
            try:
                manifest = read_manifest(manifests, version)
                break
            except DamagedError:
                name = manifest_name(version)
                (manifests.path / name).rename(manifests.path / f"{version:010d}.damaged")
                said.append(
                    f"The manifest of version {version} was damaged: what that version had changed is "
                    "undone; do it again. Latents that it had added are taken over then."
                )
        else:
            raise StoreError(
                f"No manifest in {manifests} is intact: build the knowledge base anew."
            )
        if said:
            _keep_as_uncommitted(local, manifest)
    return said


def _keep_as_uncommitted(folder: LocalFolder, manifest: Manifest) -> None:
    manifests = folder / MANIFESTS
    named = {
        entry.name
        for version in committed_versions(manifests)
        for entry in read_manifest(manifests, version).fragments
    }
    for facts in (folder / FRAGMENTS).files():
        if facts.name in named or facts.name.endswith(TEMPORARY):
            continue
        try:
            entry = _entry_of(folder / FRAGMENTS, facts.name, manifest.layout)
        except DamagedError:
            continue
        note = {"layout": asdict(manifest.layout), "entry": pack_entry(entry)}
        (folder / UNCOMMITTED).replace(f"{facts.name}.json", seal(note))


def _entry_of(folder: LocalFolder, name: str, layout: Layout) -> FragmentEntry:
    """What a manifest would say of a fragment. DamagedError where a row is not sound."""
    fragment = Fragment(folder.map(name), name, layout)
    rows = list(fragment.read_all())
    path = folder.path / name
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return FragmentEntry(
        name=name,
        rows=len(rows),
        latents=sum(len(row.encoded) for row in rows),
        tokens=sum(row.tokens for row in rows),
        bytes=path.stat().st_size,
        sha256=digest,
        keys_offset=fragment.keys_offset,
    )


def _local(folder: Folder) -> LocalFolder:
    if not isinstance(folder, LocalFolder):
        raise StoreError(f"{folder} lies in an object store: copy it to a disk to repair it.")
    return folder


def _all_entries(store: LatentStore, found: StoreFindings) -> dict[str, FragmentEntry]:
    """Every fragment that an intact manifest names."""
    entries = {entry.name: entry for entry in store.manifest.fragments}
    for version in committed_versions(store.folder / MANIFESTS):
        try:
            manifest = read_manifest(store.folder / MANIFESTS, version)
        except StoreError as error:
            found.problems.append(str(error))
        else:
            entries = {entry.name: entry for entry in manifest.fragments} | entries
    return entries


def _check_file(folder: Folder, entry: FragmentEntry, found: StoreFindings) -> bool:
    try:
        file = folder.map(entry.name)
        file.need(0, file.buffer.size)
    except OSError as error:
        found.problems.append(f"Fragment {folder / entry.name} cannot be read: {error}.")
        return False
    if file.buffer.size != entry.bytes:
        found.problems.append(
            f"Fragment {folder / entry.name} has {file.buffer.size:,} bytes, not {entry.bytes:,}."
        )
        return False
    if hashlib.sha256(file.buffer).hexdigest() != entry.sha256:
        found.problems.append(
            f"Fragment {folder / entry.name} is damaged: its checksum does not match."
        )
        return False
    return True


class _Rows:
    """What tells whether documents are whole, of every sound row: arrays, to be sorted."""

    def __init__(self) -> None:
        self.columns: list[np.ndarray] = []
        self.places: list[Place] = []

    KIND = np.dtype(
        [("document", "u8"), ("ordinal", "i8"), ("start", "i8"), ("end", "i8"), ("last", "?")]
    )

    def add(self, row: StoredPassage, place: Place) -> None:
        p = row.passage
        document = key_hash(PassageKey(p.key.document_id, 0))
        facts = (document, p.key.ordinal, p.start, p.end, row.last)
        self.columns.append(np.array([facts], self.KIND))
        self.places.append(place)


def _check_rows(
    store: LatentStore, entry: FragmentEntry, sound: bool, found: StoreFindings, rows: _Rows
) -> None:
    visible = [int(row) for row in np.flatnonzero(visible_rows(entry))]
    try:
        fragment = store.fragment(entry.name)
        if fragment.rows != entry.rows:
            raise DamagedError(f"Fragment {entry.name} has {fragment.rows} rows, not {entry.rows}.")
    except (OSError, DamagedError) as error:
        if sound:  # Else it is known already.
            found.problems.append(str(error))
        found.damaged |= {(entry.name, row) for row in visible}
        found.nameless += len(visible)
        return
    for row in visible:
        try:
            stored = fragment.read(row)
            trouble = _trouble(stored, fragment, row)
        except DamagedError as error:
            stored, trouble = None, str(error)
        if trouble is None and stored is not None:
            found.keys.add(stored.passage.key)
            rows.add(stored, (entry.name, row))
            continue
        found.damaged.add((entry.name, row))
        name = _sure_name(fragment, row)
        if name is None:
            found.nameless += 1
        else:
            found.documents.add(name)
        if sound:
            found.problems.append(f"Row {row} of fragment {entry.name}: {trouble}")


def _trouble(row: StoredPassage, fragment: Fragment, number: int) -> str | None:
    """What contradicts itself in a row, as it was written."""
    import torch

    p = row.passage
    if fragment.key_hash(number) != key_hash(p.key):
        return f"passage {p.key} lies under another key's hash."
    if p.end - p.start != len(p.text):
        return f"passage {p.key} has a span of {p.end - p.start}, but {len(p.text)} characters."
    if len(row.encoded) != max(1, -(-row.tokens // row.layout.compression_ratio)):
        return f"passage {p.key} has {len(row.encoded)} latents for {row.tokens} tokens."
    if not torch.isfinite(row.latents).all():
        return f"passage {p.key} has latents that are not finite."
    return None


def _sure_name(fragment: Fragment, row: int) -> str | None:
    """The document of a damaged row, where its key still fits its hash."""
    try:
        key = fragment.key(row)
    except DamagedError:
        return None
    return key.document_id if key_hash(key) == fragment.key_hash(row) else None


def _check_documents(store: LatentStore, rows: _Rows, found: StoreFindings) -> None:
    """No key twice, no gap, one last passage, and a text that hashes to what was noted."""
    if not rows.columns:
        return
    facts = np.concatenate(rows.columns)
    order = np.lexsort((facts["ordinal"], facts["document"]))
    ends = np.flatnonzero(np.diff(facts["document"][order])) + 1
    for group in np.split(order, ends):
        _check_document(store, facts[group], [rows.places[i] for i in group], found)


def _check_document(
    store: LatentStore, facts: np.ndarray, places: list[Place], found: StoreFindings
) -> None:
    stored = [store.fragment(name).read(row) for name, row in places]
    name = stored[0].passage.key.document_id
    whole = (
        (facts["ordinal"] == np.arange(len(facts))).all()
        and facts["last"][-1]
        and not facts["last"][:-1].any()
        and facts["start"][0] == 0
        and (facts["start"][1:] == facts["end"][:-1]).all()
    )
    if whole:
        text = "".join(row.passage.text for row in stored)
        document = Document(name, text, stored[0].passage.metadata)
        whole = {row.document_hash for row in stored} == {document.content_hash()}
    if not whole:
        if name not in found.documents:  # Else it is said already.
            found.problems.append(f"Document {name!r} is not whole.")
        found.documents.add(name)


def _check_totals(manifest: Manifest, found: StoreFindings) -> None:
    if not found.damaged and manifest.totals.passages != len(found.keys):
        found.problems.append(
            f"Version {manifest.version} says that it has {manifest.totals.passages} passages, but there "
            f"are {len(found.keys)}."
        )


def _check_uncommitted(
    folder: Folder, entries: dict[str, FragmentEntry], found: StoreFindings
) -> None:
    """What is not part of any version: whether it can be used, and how much there is."""
    for facts in (folder / UNCOMMITTED).files():
        if facts.name.endswith(TEMPORARY):
            continue
        try:
            unseal((folder / UNCOMMITTED).read(facts.name))
        except ValueError as error:
            found.problems.append(
                f"{folder / UNCOMMITTED / facts.name} is damaged: {error}; vacuum removes it."
            )
    there = {facts.name: facts.size for facts in (folder / FRAGMENTS).files()}
    for entry in uncommitted_entries(folder):
        if entry.name in there and entry.name not in entries:
            _check_file(folder / FRAGMENTS, entry, found)
    found.unneeded_bytes = sum(size for name, size in there.items() if name not in entries)


def _sound_places(store: LatentStore, documents: set[str], damaged: set[Place]) -> Iterable[Place]:
    """Rows of these documents that are not damaged; there may be gaps between them."""
    for entry in store.manifest.fragments if documents else ():
        places = [(entry.name, int(row)) for row in np.flatnonzero(visible_rows(entry))]
        for name, row in places:
            if (name, row) not in damaged:
                if store.fragment(name).key(row).document_id in documents:
                    yield name, row


def _counted(store: LatentStore) -> Totals:
    totals = Totals()
    for entry in store.manifest.fragments:
        fragment = store.fragment(entry.name)
        for row in map(int, np.flatnonzero(visible_rows(entry))):
            first = int(fragment.key(row).ordinal == 0)
            totals += Totals(first, 1, fragment.tokens(row), fragment.latent_count(row))
    return totals
