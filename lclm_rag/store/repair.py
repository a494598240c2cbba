"""Repair of a store: a version of what is sound is committed.

Adding the same documents again then restores what was damaged.

Every function here is called with the store's write lock held.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np

from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.problem import Problem, damaged_documents, nameless_passages
from lclm_rag.storage import Folder, LocalFolder
from lclm_rag.store.checks import row_problem
from lclm_rag.store.fragment import Layout
from lclm_rag.store.lists import FragmentEntry, FragmentTable
from lclm_rag.store.manifest import (
    Manifest,
    Totals,
    committed_versions,
    manifest_name,
    read_manifest,
    write_manifest,
)
from lclm_rag.store.next_version import Added, draft_version
from lclm_rag.store.parts import FRAGMENTS, MANIFESTS, UNCOMMITTED
from lclm_rag.store.store import LatentStore, row_totals, totals_at
from lclm_rag.store.verify import open_fragment
from lclm_rag.store.writer import named_fragments, note_uncommitted, write_uncommitted

__all__ = ["go_back_to_an_intact_manifest", "repair_store"]

# Kinds of problems that are only repaired by a version without the damaged parts.
_NEED_A_VERSION = {
    *("list", "deletions", "keys", "fragment", "passage", "document", "totals"),
    "other version",
}
_LOSE_FRAGMENTS = {"list", "deletions"}
_UNUSABLE = {"manifest", "uncommitted work"}


def go_back_to_an_intact_manifest(folder: LocalFolder) -> list[str]:
    """If the newest versions cannot be read, commit the newest intact one once more, as the newest.

    A version that only lacks lists or bitmaps stays the newest if none before it is whole.

    Args:
        folder: The store's folder.

    Returns:
        Sentences that say what was done; none if the newest version can be read.

    Raises:
        StoreError: If there are manifests, but none is intact.
    """
    manifests = folder / MANIFESTS
    lost: list[int] = []
    partly: list[Manifest] = []
    whole: Manifest | None = None
    for version in reversed(committed_versions(manifests)):
        try:
            found = read_manifest(manifests, version)
        except DamagedError:
            lost.insert(0, version)
            continue
        if _can_be_read(folder, found):
            whole = found
            break
        partly.insert(0, found)
    if whole is None and not partly:
        if lost:
            raise StoreError(
                f"No manifest in {manifests} is intact: build the knowledge base anew."
            )
        return []
    intact = whole or partly[-1]
    undone = sorted({*lost, *(found.version for found in partly)})
    undone = [version for version in undone if version > intact.version]
    if not undone:
        return []
    # Under a number that no version had before: an index may have been made from the damaged version.
    write_manifest(manifests, replace(intact, version=undone[-1]).next("repair"))
    for version in undone:
        if version not in lost:
            path = manifests.path / manifest_name(version)
            path.rename(path.with_suffix(".damaged"))
    return [
        f"The {'manifest' if version in lost else 'fragment list'} of version {version} was damaged: what "
        "that version had changed is undone; do it again. Latents that it had added are taken over then."
        for version in undone
    ]


def _can_be_read(folder: LocalFolder, manifest: Manifest) -> bool:
    """Whether all fragment lists and bitmaps of a version are what was written."""
    table = FragmentTable(folder, manifest.lists)
    try:
        for entry in table:
            table.visible(entry)
    except DamagedError:
        return False
    return True


def repair_store(
    folder: LocalFolder, problems: Sequence[Problem], *, undone: bool = False
) -> list[str]:
    """Commit a version of what is sound if the newest version is not, and put unusable files aside.

    Earlier versions and their readers keep what they have.

    Args:
        folder: The store's folder.
        problems: What `verify_store`, and the check of the index, have yielded.
        undone: Whether `go_back_to_an_intact_manifest` has done something.

    Returns:
        Sentences that say what was done.
    """
    kinds = {problem.kind for problem in problems}
    documents, nameless = damaged_documents(problems), nameless_passages(problems)
    done = []
    with closing(LatentStore.open(folder)) as base:
        if kinds & _NEED_A_VERSION:
            _commit_sound(base, problems)
            if "keys" in kinds:
                done.append("The keys of the passages were made anew.")
            outcome = (
                f"the {len(documents):,} damaged documents: add them again, and only they are compressed."
                if documents
                else "what was damaged, and lacks no document that can be named."
            )
            done.append(f"Version {base.version + 1} is without {outcome}")
        if nameless:
            done.append(
                f"{nameless:,} of the damaged passages are of documents whose ids are lost: add the whole "
                "corpus again, what is there costs a hash."
            )
        if "list" in kinds:
            done.append(
                "Which fragments a damaged list had named is lost: add the whole corpus again, what is there "
                "costs a hash. Latents of those fragments are taken over then."
            )
        if undone or kinds & {*_UNUSABLE, *_LOSE_FRAGMENTS, "lost version"}:
            _put_aside(folder, problems, base.layout)
        if "lost version" in kinds:
            done.append(
                f"What the lost version had changed is undone, and version {base.version} the newest: do it "
                "again. Latents that it had added are taken over then."
            )
        if kinds & _UNUSABLE:
            done.append(
                "Damaged manifests and notes on uncommitted work were put aside; what is sound of such work "
                "is taken over by the next add."
            )
    return done


def _commit_sound(base: LatentStore, problems: Sequence[Problem]) -> None:
    """Commit a version without damaged rows, and without the remaining rows of damaged documents.

    Sound rows in damaged files are written to new files.
    """
    documents = set(damaged_documents(problems))
    files = {problem.where for problem in problems if problem.kind == "fragment"}
    unknown = {problem.where for problem in problems if problem.kind in _LOSE_FRAGMENTS}
    damaged: dict[str, set[int]] = defaultdict(set)
    for problem in problems:
        damaged[problem.where].update(problem.rows)
    added: list[Added] = []
    totals = Totals()
    for listed in base.manifest.lists:
        for entry in [] if listed.name in unknown else base.table.read(listed):
            if entry.name in unknown:
                continue
            shown = _sound_rows(base, entry, damaged[entry.name], documents)
            rows = np.flatnonzero(shown).tolist()
            if not rows:
                continue
            totals = sum((totals_at(base, (entry.name, row)) for row in rows), totals)
            if entry.name in files:
                passages = [base.fragment(entry.name).read(row) for row in rows]
                entry = write_uncommitted(base.folder, passages, noted=False)
                shown = np.ones(entry.rows, bool)
            added.append((entry, shown))
    # As a first version, under the next number: every list is written, and the keys are made, anew.
    empty = replace(base.manifest, lists=(), keys=(), fragments=0, bytes=0)
    manifest = draft_version(
        LatentStore(base.folder, empty),
        "repair",
        visible={},
        added=added,
        totals=totals,
        layout=base.layout,
        keys="rebuild",
        files=[],
    )
    write_manifest(base.folder / MANIFESTS, manifest)


def _sound_rows(
    store: LatentStore, entry: FragmentEntry, damaged: set[int], documents: set[str]
) -> np.ndarray:
    """Which rows of a fragment stay, bool [rows]: not those that are damaged, or of documents that are."""
    shown = store.table.visible(entry).copy()
    shown[list(damaged)] = False
    if documents and shown.any():  # Without rows, the file may be lost, and could not be opened.
        fragment = store.fragment(entry.name)
        for row in np.flatnonzero(shown).tolist():
            shown[row] = fragment.key(row).document_id not in documents
    return shown


def _put_aside(folder: LocalFolder, problems: Sequence[Problem], layout: Layout) -> None:
    """Put damaged manifests aside as `<version>.damaged`, and sort out uncommitted work.

    Sound fragments that no version names are noted as uncommitted work, which is taken over when the same
    documents are added again. All other notes on uncommitted work are removed.
    """
    for problem in problems:
        if problem.kind == "manifest":
            path = (folder / MANIFESTS).path / problem.where
            path.rename(path.with_suffix(".damaged"))
    named, kept = named_fragments(folder), set()
    for facts in (folder / FRAGMENTS).files():
        if facts.name.endswith(".arrow") and facts.name not in named:
            with suppress(DamagedError):
                note_uncommitted(folder, _entry_of(folder / FRAGMENTS, facts.name, layout), layout)
                kept.add(f"{facts.name}.json")
    for facts in (folder / UNCOMMITTED).files():
        if facts.name not in kept:
            (folder / UNCOMMITTED).remove(facts.name)


def _entry_of(folder: Folder, name: str, layout: Layout) -> FragmentEntry:
    """What a manifest would say about a fragment. DamagedError if a row is not sound."""
    file, fragment = open_fragment(folder, name, layout)
    totals = Totals()
    for number, row in enumerate(fragment.read_all()):
        if wrong := row_problem(row, fragment.key_hash(number)):
            raise DamagedError(f"Row {number} of fragment {folder / name}: {wrong}.")
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
