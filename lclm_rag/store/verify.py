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
from lclm_rag.problem import Problem
from lclm_rag.storage import Folder, MappedFile
from lclm_rag.store.checks import SoundPassages, checked_rows, surviving_id
from lclm_rag.store.fragment import Fragment, Layout
from lclm_rag.store.manifest import (
    FragmentEntry,
    Manifest,
    committed_versions,
    manifest_name,
    read_manifest,
    unpack_entry,
)
from lclm_rag.store.store import FRAGMENTS, MANIFESTS, UNCOMMITTED, LatentStore, visible_rows

__all__ = ["Contents", "open_fragment", "verify_store"]

_NO_HASHES = np.empty(0, np.uint64)


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

    Of the manifests and fragments of all versions, and of uncommitted work, checksums and sizes are checked.
    Of the version given, also: row counts and keys; that latents are finite, and as many as the tokens need;
    that spans match the text; that documents are whole and match their hashes.

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
    for problem in _version_problems(store, passages, on_bytes):
        if problem.kind == "fragment":
            files.add(problem.where)
        # A document with a damaged passage is reported already; that it is not whole follows from that.
        if problem.kind != "document" or problem.document_id not in documents:
            documents.add(problem.document_id)
            yield problem
    shown = sum(entry.rows - len(entry.deleted) for entry in store.manifest.fragments)
    damaged = shown - passages.totals.passages
    if not damaged and passages.totals != store.manifest.totals:
        sentence = (
            f"Version {store.version} says that it has {vars(store.manifest.totals)}, but there are "
            f"{vars(passages.totals)}."
        )
        yield Problem("totals", manifest_name(store.version), sentence)
    manifests = yield from _manifest_problems(store.folder / MANIFESTS)
    for problem in _other_versions_problems(store, manifests, on_bytes):
        files.add(problem.where)
        yield problem
    yield from _uncommitted_problems(store.folder, manifests)
    hidden = _hidden_hashes(store, manifests, files) if damaged else _NO_HASHES
    return Contents(passages.hashes(), damaged, hidden)


def _hidden_hashes(
    store: LatentStore, manifests: Sequence[Manifest], damaged_files: Collection[str]
) -> np.ndarray:
    """The key hashes of stored passages that `store` does not show: deleted, or in other versions; sorted."""
    shown = {entry.name: entry for entry in store.manifest.fragments}
    entries = {entry.name: entry for manifest in manifests for entry in manifest.fragments} | shown
    hidden = [_NO_HASHES]
    for name, entry in entries.items():
        if name not in damaged_files:
            with suppress(DamagedError, FileNotFoundError):  # Vacuum may just have removed it.
                (hashes,) = store.key_hashes([entry])
                hidden.append(hashes[~visible_rows(entry)] if name in shown else hashes)
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
    store: LatentStore, passages: SoundPassages, on_bytes: Callable[[int], None]
) -> Iterator[Problem]:
    for entry in store.manifest.fragments:
        yield from _fragment_problems(store, entry, passages)
        on_bytes(entry.bytes)
    yield from passages.repeated(store)
    yield from passages.incomplete(store)


def _fragment_problems(
    store: LatentStore, entry: FragmentEntry, passages: SoundPassages
) -> Iterator[Problem]:
    """The problems of a file and of its visible rows; sound rows are added to `passages`."""
    where = store.folder / FRAGMENTS / entry.name
    rows = np.flatnonzero(visible_rows(entry)).tolist()
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
            passages.add((entry.name, row), stored)
            continue
        document_id = stored.passage.key.document_id if stored else surviving_id(fragment, row)
        sentence = f"Row {row} of fragment {where}: {wrong}." if damage is None else ""
        yield Problem("passage", entry.name, sentence, document_id, (row,))


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


def _other_versions_problems(
    store: LatentStore, manifests: Sequence[Manifest], on_bytes: Callable[[int], None]
) -> Iterator[Problem]:
    """The problems of fragments that only other versions show."""
    folder = store.folder / FRAGMENTS
    shown = {entry.name for entry in store.manifest.fragments}
    others = {e.name: (e, m.version) for m in manifests for e in m.fragments if e.name not in shown}
    repaired = max((m.version for m in manifests if m.operation == "repair"), default=0)
    for name, (entry, version) in others.items():
        try:
            damage = _damage(_map_file(folder, name), entry)
        except FileNotFoundError:
            # If no version needs it any longer, vacuum has just removed it.
            is_needed = version in committed_versions(store.folder / MANIFESTS)
            damage = "it is not there" if is_needed else None
        except (OSError, ValueError) as error:
            damage = f"it cannot be read ({error})"
        if damage is not None:
            sentence = (
                f"Fragment {folder / name} is damaged: {damage}. Only versions up to {version} need it; "
                "lclm-rag vacuum removes it with them."
            )
            yield Problem(
                "earlier version" if version < repaired else "other version", name, sentence
            )
        on_bytes(entry.bytes)


def _uncommitted_problems(folder: Folder, manifests: Sequence[Manifest]) -> Iterator[Problem]:
    """The problems of uncommitted work, which belongs to no version."""
    named = {entry.name for manifest in manifests for entry in manifest.fragments}
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
