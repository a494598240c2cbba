"""Manifests: each is one version of the store, put in place atomically.

What a version contains is decided by its manifest alone: a fragment that no manifest names is part of no
version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from lclm_rag.checksummed_json import digest, seal, unseal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.storage import Folder
from lclm_rag.storage.names import is_plain_name
from lclm_rag.store.codecs import CODECS
from lclm_rag.store.fragment import FORMAT_VERSION, Layout
from lclm_rag.store.rows import Rows
from lclm_rag.typed_json import from_json

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
    "unpack_layout",
    "write_manifest",
]

_MOST = 1 << 53
"""No number in a manifest is larger; what is cannot be of this world."""

_MOST_WIDE = 1 << 20

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
    deleted: Rows = field(default_factory=Rows)

    def without(self, rows: Iterable[int]) -> FragmentEntry:
        """The same entry with more rows deleted."""
        return replace(self, deleted=self.deleted.with_more(rows))


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
        if not _is_count(format_version):
            raise ValueError("its format version is no number")
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
    manifest = from_json(
        _Packed, {name: part for name, part in body.items() if name != "format_version"}
    )
    entries = tuple(map(unpack_entry, manifest.fragments))
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("it names a fragment twice")
    if not all(map(_is_count, (manifest.version, *vars(manifest.totals).values()))):
        raise ValueError("a number in it is none that counts")
    datetime.fromisoformat(manifest.created)
    layout = unpack_layout(manifest.layout)
    return Manifest(
        manifest.version, layout, entries, manifest.totals, manifest.operation, manifest.created
    )


def unpack_layout(packed: object) -> Layout:
    """The layout in a JSON; ValueError if it is none."""
    layout = from_json(Layout, packed)
    if layout.codec not in CODECS or not 0 < layout.width <= _MOST_WIDE:
        raise ValueError(f"its latents are {layout.width!r} wide, in codec {layout.codec!r}")
    if not 0 < layout.compression_ratio <= _MOST_WIDE:
        raise ValueError(f"its compression ratio is {layout.compression_ratio}")
    return layout


def pack_entry(entry: FragmentEntry) -> dict[str, Any]:
    """A fragment's entry as JSON; deleted rows as sorted runs, each [first, one after the last]."""
    return {**vars(entry), "deleted": [list(run) for run in entry.deleted.runs]}


def unpack_entry(packed: object) -> FragmentEntry:
    """The fragment's entry in a JSON, checked, because the file may not have been written by this library.

    Args:
        packed: What `pack_entry` returned.

    Raises:
        ValueError: If something is missing or of another type, the name is not that of a file, a number is no
            count, the fragment has no room for its rows, or a deleted row is none of them.
    """
    if not isinstance(packed, dict):
        raise ValueError("a fragment in it is none")
    if "name" in packed and not is_plain_name(packed["name"]):
        raise ValueError(f"{ascii(packed['name'])[:80]} is not the name of a fragment")
    entry = from_json(_PackedEntry, packed)
    numbers = ("rows", "latents", "tokens", "bytes", "keys_offset")
    if wrong := [name for name in numbers if not _is_count(getattr(entry, name))]:
        raise ValueError(f"{wrong[0]} of fragment {entry.name} is {getattr(entry, wrong[0])}")
    # The hashes of the keys, 8 bytes each, are only a part of the fragment.
    if not 0 < entry.rows <= (entry.bytes - entry.keys_offset) // 8:
        raise ValueError(f"fragment {entry.name} has no room for {entry.rows} rows")
    try:
        deleted = Rows(entry.deleted)
    except ValueError as error:
        raise ValueError(f"deleted rows of fragment {entry.name} are none: {error}") from error
    if deleted.runs and deleted.runs[-1][1] > entry.rows:
        raise ValueError(f"deleted rows of fragment {entry.name} are not among its rows")
    return FragmentEntry(**{**vars(entry), "deleted": deleted})


@dataclass(frozen=True)
class _PackedEntry:
    """A fragment's entry as it lies in JSON; see `FragmentEntry`."""

    name: str
    rows: int
    latents: int
    tokens: int
    bytes: int
    sha256: str
    keys_offset: int
    keys_checksum: str
    deleted: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Packed:
    """A manifest as it lies in JSON; see `Manifest`."""

    version: int
    operation: Operation
    created: str
    layout: dict[str, Any]
    totals: Totals
    fragments: tuple[dict[str, Any], ...]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def manifest_name(version: int) -> str:
    """The name of the file of a version's manifest."""
    return f"{version:010d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
