"""Manifests: each is one version of the store, put in place atomically.

What a version contains is decided by its manifest alone: a fragment that no manifest names is part of no
version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from lclm_rag.checksummed_json import digest, seal, unseal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.storage import Folder
from lclm_rag.storage.names import is_plain_name
from lclm_rag.store.codecs import CODECS
from lclm_rag.store.fragment import FORMAT_VERSION, Layout

__all__ = [
    "FragmentEntry",
    "Manifest",
    "Operation",
    "Totals",
    "committed_versions",
    "manifest_name",
    "pack_entry",
    "read_manifest",
    "unpack_entry",
    "write_manifest",
]

Operation = Literal["create", "add", "delete", "sync", "compact", "convert", "repair"]


@dataclass(frozen=True)
class FragmentEntry:
    """One fragment of a version.

    Attributes:
        name: The file's name.
        rows: The number of rows in the file, including deleted ones.
        latents: The number of latents in the file, including those of deleted rows.
        tokens: The number of source tokens in the file, including those of deleted rows.
        bytes: See `WrittenFragment`.
        sha256: See `WrittenFragment`.
        keys_offset: See `WrittenFragment`.
        keys_checksum: See `WrittenFragment`.
        deleted: The rows that this version does not show.
    """

    name: str
    rows: int
    latents: int
    tokens: int
    bytes: int
    sha256: str
    keys_offset: int
    keys_checksum: str
    deleted: frozenset[int] = frozenset()

    def without(self, rows: Iterable[int]) -> FragmentEntry:
        """The same entry with more rows deleted."""
        return replace(self, deleted=self.deleted | frozenset(rows))


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
        fragments: The fragments that the version consists of, each with its deleted rows.
        totals: How much the version shows.
        operation: The operation that made the version.
        created: When it was made, in UTC, ISO 8601 with milliseconds.
    """

    version: int
    layout: Layout
    fragments: tuple[FragmentEntry, ...]
    totals: Totals
    operation: Operation
    created: str

    @classmethod
    def first(cls, layout: Layout) -> Manifest:
        """Version 0, which is empty."""
        return cls(0, layout, (), Totals(), "create", _now())

    def next(
        self,
        fragments: Iterable[FragmentEntry],
        totals: Totals,
        operation: Operation,
        layout: Layout,
    ) -> Manifest:
        """The manifest of the version after this one, created now.

        Args:
            fragments: See the class.
            totals: See the class.
            operation: See the class.
            layout: See the class.
        """
        return Manifest(self.version + 1, layout, tuple(fragments), totals, operation, _now())

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the manifest's content, hexadecimal.

        What is derived from a version, such as an index, notes the digest beside the version's number. The
        number alone can belong to another version, if a manifest was lost or files of two copies were mixed.
        """
        return digest(_pack(self))

    @property
    def bytes(self) -> int:
        """The size of the fragments in bytes, including deleted rows."""
        return sum(entry.bytes for entry in self.fragments)


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
        if format_version != FORMAT_VERSION:
            raise StoreError(
                f"The store has format version {format_version}; this lclm-rag reads "
                f"{FORMAT_VERSION}. Use the version of lclm-rag that wrote it, or build it anew."
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
    return {
        "format_version": FORMAT_VERSION,
        **{n: getattr(manifest, n) for n in ("version", "operation", "created")},
        "layout": asdict(manifest.layout),
        "totals": asdict(manifest.totals),
        "fragments": [pack_entry(entry) for entry in manifest.fragments],
    }


def _unpack(body: dict[str, Any]) -> Manifest:
    """The manifest in a JSON; ValueError, TypeError, KeyError or AttributeError if it is none."""
    layout = Layout(**body["layout"])
    if layout.codec not in CODECS or not _is_count(layout.width) or not layout.width:
        raise ValueError(f"its latents are {layout.width!r} wide, in codec {layout.codec!r}")
    return Manifest(
        body["version"],
        layout,
        tuple(unpack_entry(entry) for entry in body["fragments"]),
        Totals(**body["totals"]),
        body["operation"],
        body["created"],
    )


def pack_entry(entry: FragmentEntry) -> dict[str, Any]:
    """A fragment's entry as JSON; deleted rows as sorted runs, each [first, one after the last]."""
    runs: list[list[int]] = []
    for row in sorted(entry.deleted):
        if runs and runs[-1][1] == row:
            runs[-1][1] += 1
        else:
            runs.append([row, row + 1])
    return {**vars(entry), "deleted": runs}


def unpack_entry(packed: dict[str, Any]) -> FragmentEntry:
    """The fragment's entry in a JSON, checked, because the file may not have been written by this library.

    Args:
        packed: What `pack_entry` returned.

    Raises:
        ValueError: If the name is not that of a file, a number is no count, or a deleted row is none of the
            fragment's.
        KeyError: If something is missing.
        TypeError: If something is of another type.
    """
    if not is_plain_name(packed["name"]):
        raise ValueError(f"{packed['name']!r} is not the name of a fragment")
    numbers = ("rows", "latents", "tokens", "bytes", "keys_offset")
    if wrong := [name for name in numbers if not _is_count(packed[name])]:
        raise ValueError(f"{wrong[0]} of fragment {packed['name']} is {packed[wrong[0]]!r}")
    runs = packed["deleted"]
    if not all(_is_count(row) and row <= packed["rows"] for run in runs for row in run):
        raise ValueError(f"deleted rows of fragment {packed['name']} are not among its rows")
    rows = (row for first, stop in runs for row in range(first, stop))
    return FragmentEntry(**{**packed, "deleted": frozenset(rows)})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def manifest_name(version: int) -> str:
    """The name of the file of a version's manifest."""
    return f"{version:010d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
