"""Verification of a store: everything it holds is read, and what is damaged or inconsistent is reported.

Each file is read once. Meanwhile some tens of bytes are kept in memory for each passage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lclm_rag.checksummed_json import unseal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.problem import Kind, Problem
from lclm_rag.storage import Folder, MappedFile
from lclm_rag.store.checks import SoundPassages, checked_rows, surviving_id
from lclm_rag.store.fragment import Fragment, Layout
from lclm_rag.store.keys import KeyRun, RunEntry
from lclm_rag.store.lists import FragmentEntry, FragmentTable, read_visible
from lclm_rag.store.manifest import (
    Manifest,
    committed_versions,
    manifest_name,
    read_manifest,
    unpack_entry,
)
from lclm_rag.store.parts import FRAGMENTS, KEYS, MANIFESTS, UNCOMMITTED
from lclm_rag.store.store import LatentStore

__all__ = ["Contents", "open_fragment", "verify_store"]

_NO_HASHES = np.empty(0, np.uint64)
_RECORDS_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Contents:
    """The passages of a store's version, for comparing an index with them.

    Attributes:
        hashes: The key hashes of the version's sound passages, uint64, sorted.
        damaged: The number of damaged passages that the version shows.
        hidden: If there are damaged passages, the key hashes of passages that are stored but that the
            version does not show, uint64, sorted; otherwise empty.
    """

    hashes: np.ndarray
    damaged: int
    hidden: np.ndarray


def verify_store(
    store: LatentStore, on_bytes: Callable[[int], None] = lambda size: None
) -> Generator[Problem, None, Contents]:
    """Check every file in the store's folder, and every row that a version shows.

    Of the manifests, fragment lists, deletions, key runs and fragments of all versions, and of uncommitted
    work, checksums and sizes are checked. Of the version given, also: row counts and keys; that its key runs
    name all of its rows; that latents are finite, and as many as the tokens need; that spans match the text;
    that documents are whole and match their hashes.

    Args:
        store: The version whose rows are checked.
        on_bytes: Called with the size of each fragment after it was checked, in bytes.

    Yields:
        What is damaged or inconsistent.

    Returns:
        The version's passages, for comparing an index with them.
    """
    passages = SoundPassages()
    documents, files = set(), set()  # ids and names of what is damaged
    entries, lost = [], False
    for listed in store.manifest.lists:
        try:
            entries += store.table.read(listed)
        except DamagedError as error:
            lost = True
            yield Problem("list", listed.name, str(error))
    readable = []
    for entry in entries:
        try:
            store.table.visible(entry)
            readable.append(entry)
        except DamagedError as error:
            lost = True
            yield from _bitmap_problems(store, entry, str(error))
    for problem in _version_problems(store, readable, passages, on_bytes):
        if problem.kind == "fragment":
            files.add(problem.where)
        # A document with a damaged passage is reported already; that it is not whole follows from that.
        if problem.kind != "document" or problem.document_id not in documents:
            documents.add(problem.document_id)
            yield problem
    shown = sum(entry.rows - entry.deleted for entry in readable)
    if lost:
        shown = max(shown, store.manifest.totals.passages)
    damaged = shown - passages.totals.passages
    if not damaged and not lost and passages.totals != store.manifest.totals:
        sentence = (
            f"Version {store.version} says that it has {vars(store.manifest.totals)}, but there are "
            f"{vars(passages.totals)}."
        )
        yield Problem("totals", manifest_name(store.version), sentence)
    yield from _key_problems(store, passages)
    manifests = yield from _manifest_problems(store.folder / MANIFESTS)
    others = yield from _other_entries(store, manifests)
    for problem in _other_versions_problems(store, manifests, others, on_bytes):
        files.add(problem.where)
        yield problem
    yield from _uncommitted_problems(store.folder, {*others, *(e.name for e in entries)})
    hidden = _hidden_hashes(store, readable, others, files) if damaged else _NO_HASHES
    return Contents(passages.hashes(), damaged, hidden)


Others = dict[str, tuple[FragmentEntry, Manifest]]
"""Fragments that only other versions show, by their names, each with the last version that does."""


def _hidden_hashes(
    store: LatentStore,
    shown: Sequence[FragmentEntry],
    others: Others,
    damaged_files: Collection[str],
) -> np.ndarray:
    """The key hashes of stored passages that `store` does not show: deleted, or in other versions; sorted."""
    hidden = [_NO_HASHES]
    for entry in shown:
        if entry.name not in damaged_files and entry.deleted:
            with suppress(DamagedError, FileNotFoundError):
                (hashes,) = store.key_hashes([entry])
                hidden.append(hashes[~store.table.visible(entry)])
    for name, (entry, manifest) in others.items():
        if name not in damaged_files:
            with suppress(DamagedError, FileNotFoundError):  # Vacuum may just have removed it.
                hidden += LatentStore.of(store, (), manifest.layout).key_hashes([entry])
    return np.sort(np.concatenate(hidden))


# --- files ----------------------------------------------------------------------------------------------


def _map_file(folder: Folder, name: str) -> MappedFile:
    """A file as it is now: one in an object store is fetched, whatever the cache holds of it."""
    return folder.map(name) if folder.local else MappedFile(pa.py_buffer(folder.read(name)))


def open_fragment(folder: Folder, name: str, layout: Layout) -> tuple[MappedFile, Fragment]:
    """Map and open a fragment as it is now, past the cache of object stores.

    Args:
        folder: The folder of the store's fragments.
        name: The fragment's name.
        layout: The layout that it must have.

    Returns:
        The mapped file and the fragment.

    Raises:
        DamagedError: If the fragment cannot be read or has another layout.
    """
    try:
        file = _map_file(folder, name)
        return file, Fragment(file, str(folder / name), layout)
    except (OSError, ValueError) as error:
        raise DamagedError(f"Fragment {folder / name} cannot be read: {error}.") from error


def _damage(file: MappedFile, entry: FragmentEntry) -> str | None:
    """What is wrong with the file of a fragment; None if it is what was written."""
    if file.buffer.size != entry.bytes:
        return f"it has {file.buffer.size:,} bytes, not {entry.bytes:,}"
    if hashlib.sha256(file.buffer).hexdigest() != entry.sha256:
        return "its checksum does not match"
    return None


# --- the version that is checked ------------------------------------------------------------------------


def _version_problems(
    store: LatentStore,
    entries: Sequence[FragmentEntry],
    passages: SoundPassages,
    on_bytes: Callable[[int], None],
) -> Iterator[Problem]:
    for entry in entries:
        yield from _fragment_problems(store, entry, passages)
        on_bytes(entry.bytes)
    yield from passages.repeated(store)
    yield from passages.incomplete(store)


def _fragment_problems(
    store: LatentStore, entry: FragmentEntry, passages: SoundPassages
) -> Iterator[Problem]:
    """The problems of a file and of its visible rows; sound rows are added to `passages`."""
    where = store.folder / FRAGMENTS / entry.name
    rows = store.rows(entry)
    try:
        file, fragment = open_fragment(store.folder / FRAGMENTS, entry.name, store.layout)
        if (fragment.rows, fragment.keys_offset) != (entry.rows, entry.keys_offset):
            raise DamagedError(f"Fragment {where} has {fragment.rows} rows, not {entry.rows}.")
    except DamagedError as error:
        yield Problem("fragment", entry.name, str(error), rows=tuple(rows))
        return
    damage = _damage(file, entry)
    if damage is not None:
        yield Problem("fragment", entry.name, f"Fragment {where} is damaged: {damage}.")
    for row, stored, wrong in checked_rows(fragment, rows):
        if stored is not None and wrong is None:
            passages.add((entry.name, row), entry.number, stored)
            continue
        document_id = stored.passage.key.document_id if stored else surviving_id(fragment, row)
        sentence = f"Row {row} of fragment {where}: {wrong}." if damage is None else ""
        yield Problem("passage", entry.name, sentence, document_id, (row,))


def _bitmap_problems(store: LatentStore, entry: FragmentEntry, sentence: str) -> Iterator[Problem]:
    """The problems of a fragment whose deletions are lost: all of its documents are damaged."""
    yield Problem("deletions", entry.name, sentence)
    with suppress(DamagedError):
        fragment = open_fragment(store.folder / FRAGMENTS, entry.name, store.layout)[1]
        for document_id in {surviving_id(fragment, row) for row in range(fragment.rows)}:
            yield Problem("deletions", entry.name, "", document_id)


def _key_problems(store: LatentStore, passages: SoundPassages) -> Iterator[Problem]:
    """The problems of the key runs of the version: every sound row must be named, under its hash."""
    expected = passages.records()
    expected = expected[np.argsort(expected[:, 1], kind="stable")]
    found = np.zeros(len(expected), bool)
    wrong = 0
    for entry in store.manifest.keys:
        try:
            for records in _run_records(store.folder, entry):
                at = np.searchsorted(expected[:, 1], records[:, 1])
                at[at == len(expected)] = 0
                known = expected[at, 1] == records[:, 1] if len(expected) else at < 0
                right = expected[at[known], 0] == records[known, 0]
                found[at[known][right]] = True
                wrong += int(np.count_nonzero(~right))
        except DamagedError as error:
            yield Problem("keys", entry.name, str(error))
            return
    if wrong or not found.all():
        sentence = (
            f"The keys of version {store.version} lack {np.count_nonzero(~found):,} of its passages, and "
            f"have {wrong:,} that are not theirs; --repair makes them anew."
        )
        yield Problem("keys", manifest_name(store.version), sentence)


def _run_records(folder: Folder, entry: RunEntry) -> Iterator[np.ndarray]:
    """All records of a key run, in pieces; DamagedError if they are not in order."""
    run, last = KeyRun(folder / KEYS, entry), 0
    for start in range(0, entry.rows, _RECORDS_AT_ONCE):
        records = run.records(start, min(entry.rows, start + _RECORDS_AT_ONCE))
        hashes = records[:, 0]
        if int(hashes[0]) < last or (hashes[1:] < hashes[:-1]).any():
            raise DamagedError(f"Key run {entry.name} in {folder / KEYS} is not in order.")
        last = int(hashes[-1])
        yield records


# --- everything else ------------------------------------------------------------------------------------


def _manifest_problems(folder: Folder) -> Generator[Problem, None, list[Manifest]]:
    """The problems of manifests; returns those that can be read, oldest first."""
    manifests = []
    for version in committed_versions(folder):
        name = manifest_name(version)
        try:
            manifests.append(read_manifest(folder, version))
        except DamagedError:
            sentence = (
                f"Manifest {folder / name} is damaged: version {version} cannot be read any more; --repair "
                "puts it aside."
            )
            yield Problem("manifest", name, sentence)
        except StoreError as error:
            if version in committed_versions(folder):  # Otherwise vacuum has just removed it.
                yield Problem("other version", name, str(error))
    return manifests


def _other_entries(
    store: LatentStore, manifests: Sequence[Manifest]
) -> Generator[Problem, None, Others]:
    """The problems of what only other versions need besides fragments; returns their fragments."""
    own_lists, own_runs = set(store.manifest.lists), set(store.manifest.keys)
    lists = {each.name: (each, m) for m in manifests for each in m.lists if each not in own_lists}
    runs = {each.name: (each, m) for m in manifests for each in m.keys if each not in own_runs}
    kind = _kinds(manifests)
    entries: dict[str, tuple[FragmentEntry, Manifest]] = {}
    bitmaps = set()
    for listed, manifest in lists.values():
        try:
            for entry in FragmentTable(store.folder).read(listed):
                if (before := entries.get(entry.name)) is None or before[
                    1
                ].version < manifest.version:
                    entries[entry.name] = entry, manifest
                if entry.deletions is not None and entry.deletions not in bitmaps:
                    bitmaps.add(entry.deletions)
                    read_visible(store.folder, entry)
        except DamagedError as error:
            if manifest.version in committed_versions(store.folder / MANIFESTS):
                yield Problem(kind(manifest), listed.name, _only_needed(str(error), manifest))
    for run, manifest in runs.values():
        try:
            for _ in _run_records(store.folder, run):
                pass
        except DamagedError as error:
            if manifest.version in committed_versions(store.folder / MANIFESTS):
                yield Problem(kind(manifest), run.name, _only_needed(str(error), manifest))
    current = {entry.name for entry in _readable(store)}
    return {name: found for name, found in entries.items() if name not in current}


def _readable(store: LatentStore) -> Iterator[FragmentEntry]:
    for listed in store.manifest.lists:
        with suppress(DamagedError):
            yield from store.table.read(listed)


def _kinds(manifests: Sequence[Manifest]) -> Callable[[Manifest], Kind]:
    """Whether what only other versions need is a problem: not if these are from before a repair."""
    repaired = max((m.version for m in manifests if m.operation == "repair"), default=0)
    return lambda manifest: "earlier version" if manifest.version < repaired else "other version"


def _only_needed(sentence: str, manifest: Manifest) -> str:
    return f"{sentence} Only versions up to {manifest.version} need it; lclm-rag vacuum removes it with them."


def _other_versions_problems(
    store: LatentStore,
    manifests: Sequence[Manifest],
    others: Others,
    on_bytes: Callable[[int], None],
) -> Iterator[Problem]:
    """The problems of fragments that only other versions show."""
    folder, kind = store.folder / FRAGMENTS, _kinds(manifests)
    for name, (entry, manifest) in others.items():
        try:
            damage = _damage(_map_file(folder, name), entry)
        except FileNotFoundError:
            # If no version needs it any longer, vacuum has just removed it.
            is_needed = manifest.version in committed_versions(store.folder / MANIFESTS)
            damage = "it is not there" if is_needed else None
        except (OSError, ValueError) as error:
            damage = f"it cannot be read ({error})"
        if damage is not None:
            sentence = _only_needed(f"Fragment {folder / name} is damaged: {damage}.", manifest)
            yield Problem(kind(manifest), name, sentence)
        on_bytes(entry.bytes)


def _uncommitted_problems(folder: Folder, named: Collection[str]) -> Iterator[Problem]:
    """The problems of uncommitted work, which belongs to no version.

    Args:
        folder: The store's folder.
        named: The fragments of versions.
    """
    for name in [facts.name for facts in (folder / UNCOMMITTED).files()]:
        if not name.endswith(".json"):
            continue
        try:
            entry = unpack_entry(unseal((folder / UNCOMMITTED).read(name))["entry"])
            if entry.name in named:
                continue
            damage = _damage(_map_file(folder / FRAGMENTS, entry.name), entry)
        except FileNotFoundError:  # A writer has just committed it, or removed it.
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            damage = str(error)
        if damage is not None:
            sentence = (
                f"Uncommitted work is damaged ({folder / UNCOMMITTED / name}: {damage}); --repair or "
                "vacuum drops it, and the run that made it compresses it again."
            )
            yield Problem("uncommitted work", name, sentence)
