"""Manifests: each is one version of the store, put in place atomically.

A manifest is small: it names fragment lists (`lclm_rag.store.lists`) and key runs (`lclm_rag.store.keys`),
which versions share where they do not differ. So a commit into a large store writes kilobytes, and opening
reads the manifest alone. What a version contains is decided by its manifest: a file that no manifest names,
directly or in a list, is part of no version.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from lclm_rag.checksummed_json import digest, seal, unseal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.storage import Folder
from lclm_rag.store.codecs import CODECS
from lclm_rag.store.fragment import Layout
from lclm_rag.store.keys import RunEntry
from lclm_rag.store.lists import FragmentEntry, ListEntry
from lclm_rag.typed_json import from_json

__all__ = [
    "FORMAT_VERSION",
    "Manifest",
    "Operation",
    "Totals",
    "committed_versions",
    "manifest_name",
    "pack_entry",
    "read_manifest",
    "unpack_entry",
    "unpack_layout",
    "write_manifest",
]

FORMAT_VERSION = 5

_MOST = 1 << 53
"""No number in a manifest is larger; what is cannot be of this world."""

_MOST_WIDE = 1 << 20
_MOST_FRAGMENTS = 1 << 32  # Their numbers have 4 bytes in a key run.
_MOST_LISTED = 1 << 16

_ID, _HASH, _HALF = (re.compile(f"[0-9a-f]{{{digits}}}") for digits in (32, 64, 16))
_PACKED = {field.name for field in fields(FragmentEntry)} - {"deletions", "number"}

Operation = Literal["create", "add", "delete", "sync", "compact", "convert", "repair"]


@dataclass(frozen=True)
class Totals:
    """How much a version shows; deleted rows do not count.

    Attributes:
        documents: The number of documents.
        passages: The number of passages.
        tokens: The number of source tokens.
        latents: The number of latents.
    """

    documents: int = 0
    passages: int = 0
    tokens: int = 0
    latents: int = 0

    def __add__(self, other: Totals) -> Totals:
        return self._joined(other, 1)

    def __sub__(self, other: Totals) -> Totals:
        return self._joined(other, -1)

    def _joined(self, other: Totals, sign: int) -> Totals:
        return Totals(
            self.documents + sign * other.documents,
            self.passages + sign * other.passages,
            self.tokens + sign * other.tokens,
            self.latents + sign * other.latents,
        )


@dataclass(frozen=True)
class Manifest:
    """One version of a store.

    Attributes:
        version: The version's number; the first is 0.
        layout: What all of its fragments have in common.
        totals: How much the version shows.
        operation: The operation that made the version.
        created: When it was made, in UTC, ISO 8601 with milliseconds.
        fragments: The number of fragments that the version consists of.
        bytes: The size of the fragments in bytes, including deleted rows.
        next_fragment: The number that the next new fragment gets.
        lists: The lists of the fragments, by their fragments' numbers.
        keys: The key runs.
    """

    version: int
    layout: Layout
    totals: Totals
    operation: Operation
    created: str
    fragments: int = 0
    bytes: int = 0
    next_fragment: int = 0
    lists: tuple[ListEntry, ...] = ()
    keys: tuple[RunEntry, ...] = ()

    @classmethod
    def first(cls, layout: Layout) -> Manifest:
        """Version 0, which is empty."""
        return cls(0, layout, Totals(), "create", _now())

    def next(self, operation: Operation, **changed: Any) -> Manifest:
        """The manifest of the version after this one, created now.

        Args:
            operation: See the class.
            **changed: The attributes that differ.
        """
        return replace(
            self, version=self.version + 1, operation=operation, created=_now(), **changed
        )

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the manifest's content, hexadecimal.

        What is derived from a version, such as an index, notes the digest beside the version's number. The
        number alone can belong to another version, if a manifest was lost or files of two copies were mixed.
        """
        return digest(_pack(self))


def committed_versions(folder: Folder) -> list[int]:
    """The versions that have a manifest in this folder, oldest first."""
    stems = (facts.name.removesuffix(".json") for facts in folder.files())
    return sorted(int(stem) for stem in stems if stem.isdigit())


def read_manifest(folder: Folder, version: int) -> Manifest:
    """Read the manifest of a version.

    Args:
        folder: The folder of the store's manifests.
        version: The version's number.

    Raises:
        StoreError: If there is no such version, or it has another format.
        DamagedError: If the manifest is damaged, or is that of another version.
    """
    name = manifest_name(version)
    try:
        body = unseal(folder.read(name))
        format_version = body["format_version"]
        if not _is_count(format_version):
            raise ValueError("its format version is no number")
        if format_version != FORMAT_VERSION:
            hint = "Use the version of lclm-rag that wrote it, or build it anew."
            if format_version == FORMAT_VERSION - 1:
                hint = "lclm-rag convert takes it over, with --kb and its folder."
            raise StoreError(
                f"The store has format version {format_version}; this lclm-rag reads "
                f"{FORMAT_VERSION}. {hint}"
            )
        manifest = _unpack(body)
    except FileNotFoundError as error:
        there = ", ".join(map(str, committed_versions(folder)[-8:]))
        raise StoreError(f"There is no version {version} in {folder}; there is {there}.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            f"Manifest {folder / name} is damaged: {error}. lclm-rag verify --repair goes back to the "
            "version before."
        ) from error
    if manifest.version != version:
        raise DamagedError(
            f"Manifest {folder / name} is that of version {manifest.version}: was it copied by hand? "
            "lclm-rag verify --repair goes back to the version before."
        )
    return manifest


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Commit a version. A version that exists is never replaced.

    Args:
        folder: The folder of the store's manifests.
        manifest: The new version. The files that it names must be durable already.

    Raises:
        StoreError: If the version exists already, because another writer was faster.
    """
    try:
        folder.create(manifest_name(manifest.version), seal(_pack(manifest)))
    except FileExistsError as error:
        raise StoreError(
            f"Version {manifest.version} of {folder} has been committed by another writer meanwhile; run "
            "the same command again."
        ) from error


def _pack(manifest: Manifest) -> dict[str, Any]:
    """A manifest as JSON."""
    return {"format_version": FORMAT_VERSION, **asdict(manifest)}


def _unpack(body: dict[str, Any]) -> Manifest:
    """The manifest in a JSON; ValueError, TypeError, KeyError or AttributeError if it is none."""
    packed = {name: part for name, part in body.items() if name != "format_version"}
    if missing := {field.name for field in fields(Manifest)} - packed.keys():
        raise ValueError(f"{min(missing)!r} is missing")
    layout = unpack_layout(packed["layout"])
    manifest = from_json(Manifest, {**packed, "layout": layout})
    numbers = (manifest.version, manifest.fragments, manifest.bytes, manifest.next_fragment)
    if not all(map(_is_count, (*numbers, *vars(manifest.totals).values()))):
        raise ValueError("a number in it is none that counts")
    datetime.fromisoformat(manifest.created)
    names = [listed.name for listed in manifest.lists] + [run.name for run in manifest.keys]
    for name in names:
        if not _ID.fullmatch(name):
            raise ValueError(f"{ascii(name)[:80]} is not the name of a list or a key run")
    if len(set(names)) < len(names):
        raise ValueError("it names a file twice")
    if not all(0 < listed.fragments <= _MOST_LISTED for listed in manifest.lists):
        raise ValueError("a list in it has an impossible number of fragments")
    if not all(0 < run.rows <= _MOST for run in manifest.keys):
        raise ValueError("a key run in it has an impossible number of rows")
    if sum(run.rows for run in manifest.keys) < manifest.totals.passages:
        raise ValueError("its key runs have fewer rows than it has passages")
    firsts = [-1, *(listed.first for listed in manifest.lists), manifest.next_fragment]
    if not all(a < b for a, b in pairwise(firsts[:-1])) or firsts[-1] > _MOST_FRAGMENTS:
        raise ValueError("the lists in it are not in order")
    if firsts[-2] >= firsts[-1]:
        raise ValueError("a list in it begins after its last fragment")
    if sum(listed.fragments for listed in manifest.lists) != manifest.fragments:
        raise ValueError(f"its lists do not have {manifest.fragments} fragments")
    return manifest


def unpack_layout(packed: object) -> Layout:
    """The layout in a JSON; ValueError if it is none."""
    layout = from_json(Layout, packed)
    if layout.codec not in CODECS or not 0 < layout.width <= _MOST_WIDE:
        raise ValueError(f"its latents are {layout.width!r} wide, in codec {layout.codec!r}")
    if not 0 < layout.compression_ratio <= _MOST_WIDE:
        raise ValueError(f"its compression ratio is {layout.compression_ratio}")
    return layout


def pack_entry(entry: FragmentEntry) -> dict[str, Any]:
    """An uncommitted fragment's entry as JSON."""
    return {name: value for name, value in vars(entry).items() if name in _PACKED}


def unpack_entry(packed: object) -> FragmentEntry:
    """The fragment's entry in a JSON, checked, because the file may not have been written by this library.

    Args:
        packed: What `pack_entry` returned.

    Raises:
        ValueError: If something is missing or of another type, the name is not that of a fragment, a number
            is no count, or the fragment has no room for its rows.
    """
    if not isinstance(packed, dict) or not packed.keys() <= _PACKED:
        raise ValueError("a fragment in it is none")
    entry = from_json(FragmentEntry, packed)
    if not entry.name.endswith(".arrow") or not _ID.fullmatch(entry.name.removesuffix(".arrow")):
        raise ValueError(f"{ascii(entry.name)[:80]} is not the name of a fragment")
    if not _HASH.fullmatch(entry.sha256) or not _HALF.fullmatch(entry.keys_checksum):
        raise ValueError(f"a checksum of fragment {entry.name} is none")
    numbers = ("rows", "latents", "tokens", "bytes", "keys_offset")
    if wrong := [name for name in numbers if not _is_count(getattr(entry, name))]:
        raise ValueError(f"{wrong[0]} of fragment {entry.name} is {getattr(entry, wrong[0])}")
    # The hashes of the keys, 8 bytes each, are only a part of the fragment.
    if not 0 < entry.rows <= (entry.bytes - entry.keys_offset) // 8 or entry.rows >> 32:
        raise ValueError(f"fragment {entry.name} has no room for {entry.rows} rows")
    return entry


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def manifest_name(version: int) -> str:
    """The name of the file of a version's manifest."""
    return f"{version:010d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
