"""Read everything that a store holds, and say what is not as it was written or contradicts itself.

Each file is gone through once. What is kept of a passage meanwhile is some tens of bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from lclm_rag.checksummed_json import unseal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.storage import Folder, MappedFile
from lclm_rag.store.checks import (
    NO_HASHES,
    Documents,
    SoundRows,
    document_trouble,
    read_rows,
    sure_name,
)
from lclm_rag.store.fragment import Fragment, StoredPassage
from lclm_rag.store.manifest import (
    FragmentEntry,
    Manifest,
    Totals,
    committed_versions,
    manifest_name,
    read_manifest,
    unpack_entry,
)
from lclm_rag.store.store import FRAGMENTS, MANIFESTS, UNCOMMITTED, LatentStore, Place, visible_rows

__all__ = ["StoreFindings", "verify_store"]

_ROWS_AT_ONCE = 64


@dataclass
class StoreFindings:
    """What `verify_store` has found.

    problems: sentences. earlier: sentences on what only versions from before a repair have: no problem any
    more. documents: ids of those of which something is damaged. damaged: rows of `version` that are, by
    fragment. nameless: how many of these do not tell their document. spoiled: fragments of `version` whose
    files are not as they were written, whichever rows are. totals: of the sound passages. hashes: of their
    keys, sorted (uint64). hidden: of the keys of passages that `version` does not show. manifests: versions
    whose manifests are damaged. notes: damaged files on uncommitted work. unneeded_bytes: of fragments that
    no version names.
    """

    version: int
    problems: list[str] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)
    documents: set[str] = field(default_factory=set)
    damaged: dict[str, set[int]] = field(default_factory=dict)
    nameless: int = 0
    spoiled: set[str] = field(default_factory=set)
    totals: Totals = field(default_factory=Totals)
    hashes: np.ndarray = field(default_factory=lambda: NO_HASHES)
    hidden: np.ndarray = field(default_factory=lambda: NO_HASHES)
    manifests: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unneeded_bytes: int = 0

    @property
    def damaged_passages(self) -> int:
        return sum(map(len, self.damaged.values()))

    @property
    def needs_version(self) -> bool:
        """Whether some of it is mended by a new version only."""
        return len(self.problems) > len(self.manifests) + len(self.notes)


def verify_store(
    store: LatentStore, on_bytes: Callable[[int], None] = lambda size: None
) -> StoreFindings:
    """Check every file of the store's folder, and every row that `store` shows.

    Manifests and fragments of all versions, and uncommitted work: checksums and sizes. The version of
    `store`: row counts, keys, finite latents and as many as the tokens need, spans that match the text,
    documents that are whole and hash to what was noted. on_bytes: called with the size of each fragment.
    """
    found = StoreFindings(store.version)
    sound, documents = SoundRows(), Documents()
    for entry in store.manifest.fragments:
        sound.begin(entry)
        for place, row in _check_shown(store, entry, found):
            sound.add(place, row)
            documents.add(place, row)
        on_bytes(entry.bytes)
    documents.close()
    found.totals, found.hashes = sound.totals, sound.sorted_hashes()
    _check_twice(store, sound, found)
    _check_scattered(store, documents.scattered, found)
    if not found.damaged_passages and found.totals != store.manifest.totals:
        found.problems.append(
            f"Version {store.version} says that it has {vars(store.manifest.totals)}, but there are "
            f"{vars(found.totals)}."
        )
    manifests = _check_manifests(store, found)
    _check_hidden(store, manifests, found, on_bytes)
    _check_uncommitted(store.folder, manifests, found)
    return found


# --- files ----------------------------------------------------------------------------------------------


def _mapped(folder: Folder, name: str) -> MappedFile:
    """A file as it lies there: of one in an object store not what was kept of it on this disk."""
    return folder.map(name) if folder.local else MappedFile(pa.py_buffer(folder.read(name)))


def _file_trouble(file: MappedFile, entry: FragmentEntry) -> str | None:
    if file.buffer.size != entry.bytes:
        return f"it has {file.buffer.size:,} bytes, not {entry.bytes:,}"
    if hashlib.sha256(file.buffer).hexdigest() != entry.sha256:
        return "its checksum does not match"
    return None


def _check_manifests(store: LatentStore, found: StoreFindings) -> list[Manifest]:
    """All versions that can be read, oldest first."""
    folder = store.folder / MANIFESTS
    manifests = []
    for version in committed_versions(folder):
        try:
            manifest = read_manifest(folder, version)
        except DamagedError:
            found.manifests.append(version)
            found.problems.append(
                f"Manifest {folder / manifest_name(version)} is damaged: version {version} cannot be read "
                "any more; --repair puts it aside."
            )
        except StoreError as error:
            if version in committed_versions(folder):  # Else vacuum has just taken it away.
                found.problems.append(str(error))
        else:
            manifests.append(manifest)
    return manifests


def _check_hidden(
    store: LatentStore,
    manifests: Sequence[Manifest],
    found: StoreFindings,
    on_bytes: Callable[[int], None],
) -> None:
    """The fragments that only other versions show; and the hashes of all passages that this one does not."""
    shown = {entry.name: entry for entry in store.manifest.fragments}
    others = {entry.name: (entry, m.version) for m in manifests for entry in m.fragments}
    repaired = max((m.version for m in manifests if m.operation == "repair"), default=0)
    hidden = [NO_HASHES]
    for entry in shown.values():
        if entry.deleted and entry.name not in found.spoiled:
            hidden.append(store.key_hashes([entry])[0][sorted(entry.deleted)])
    folder = store.folder / FRAGMENTS
    for name, (entry, version) in others.items():
        if name in shown:
            continue
        try:
            trouble = _file_trouble(_mapped(folder, name), entry)
        except FileNotFoundError:
            if version not in committed_versions(store.folder / MANIFESTS):
                continue  # vacuum has just taken it away.
            trouble = "it is not there"
        except (OSError, ValueError) as error:
            trouble = f"it cannot be read ({error})"
        if trouble is None:
            hidden.append(store.key_hashes([entry])[0])
        else:
            said = found.earlier if version < repaired else found.problems
            said.append(
                f"Fragment {folder / name} is damaged: {trouble}. Only versions up to {version} need it; "
                "lclm-rag vacuum removes it with them."
            )
        on_bytes(entry.bytes)
    found.hidden = np.concatenate(hidden)


def _check_uncommitted(folder: Folder, manifests: Sequence[Manifest], found: StoreFindings) -> None:
    """What is part of no version: whether it can be used, and how much there is."""
    named = {entry.name for manifest in manifests for entry in manifest.fragments}
    there = {facts.name: facts.size for facts in (folder / FRAGMENTS).files()}
    for facts in (folder / UNCOMMITTED).files():
        if not facts.name.endswith(".json"):
            continue
        try:
            entry = unpack_entry(unseal((folder / UNCOMMITTED).read(facts.name))["entry"])
            if entry.name in named or entry.name not in there:
                continue
            trouble = _file_trouble(_mapped(folder / FRAGMENTS, entry.name), entry)
        except FileNotFoundError:  # A writer has just committed it, or removed it.
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            trouble = str(error)
        if trouble is not None:
            found.notes.append(facts.name)
            found.problems.append(
                f"Uncommitted work is damaged ({folder / UNCOMMITTED / facts.name}: {trouble}); --repair or "
                "vacuum drops it, and the run that made it compresses it again."
            )
    found.unneeded_bytes = sum(size for name, size in there.items() if name not in named)


def _check_shown(
    store: LatentStore, entry: FragmentEntry, found: StoreFindings
) -> Iterator[tuple[Place, StoredPassage]]:
    """The sound rows of a fragment of this version, in order."""
    where = store.folder / FRAGMENTS / entry.name
    rows = np.flatnonzero(visible_rows(entry)).tolist()
    trouble = None
    try:
        file = _mapped(store.folder / FRAGMENTS, entry.name)
        trouble = _file_trouble(file, entry)
        fragment = Fragment(file, str(where), store.layout)
        if (fragment.rows, fragment.keys_offset) != (entry.rows, entry.keys_offset):
            raise DamagedError(f"Fragment {where} has {fragment.rows} rows, not {entry.rows}.")
    except (OSError, ValueError, DamagedError) as error:
        found.problems.append(
            str(error)
            if isinstance(error, DamagedError)
            else f"Fragment {where} cannot be read: {error}."
        )
        found.spoiled.add(entry.name)
        found.damaged[entry.name] = set(rows)
        found.nameless += len(rows)
        return
    if trouble is not None:
        found.problems.append(f"Fragment {where} is damaged: {trouble}.")
        found.spoiled.add(entry.name)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        for row, stored, wrong in read_rows(fragment, rows[start : start + _ROWS_AT_ONCE]):
            if stored is not None and wrong is None:
                yield (entry.name, row), stored
                continue
            found.damaged.setdefault(entry.name, set()).add(row)
            name = stored.passage.key.document_id if stored else sure_name(fragment, row)
            if name is None:
                found.nameless += 1
            else:
                found.documents.add(name)
            if trouble is None:  # Else it is said already that the file is damaged.
                found.problems.append(f"Row {row} of fragment {where}: {wrong}.")


def _check_twice(store: LatentStore, sound: SoundRows, found: StoreFindings) -> None:
    twice = found.hashes[1:][found.hashes[1:] == found.hashes[:-1]]
    if not len(twice):
        return
    seen = set()
    for name, row in sound.places(twice):
        key = store.fragment(name).key(row)
        if key in seen:
            found.problems.append(f"Passage {key} is there twice.")
            found.documents.add(key.document_id)
        seen.add(key)


def _check_scattered(
    store: LatentStore, scattered: list[tuple[int, Place]], found: StoreFindings
) -> None:
    """The documents whose passages do not follow one another in their fragments."""
    scattered.sort()
    at = 0
    while at < len(scattered):
        stop = at
        while stop < len(scattered) and scattered[stop][0] == scattered[at][0]:
            stop += 1
        rows = [store.fragment(name).read(row) for _, (name, row) in scattered[at:stop]]
        at = stop
        for document_id in sorted({row.passage.key.document_id for row in rows}):
            own = [row for row in rows if row.passage.key.document_id == document_id]
            trouble = document_trouble(sorted(own, key=lambda row: row.passage.key))
            if trouble is not None and document_id not in found.documents:
                found.problems.append(f"Document {document_id!r} is not whole: {trouble}.")
                found.documents.add(document_id)
