"""The manifest: one version of the store, put in place atomically. It is the truth."""

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

    rows, latents, tokens: of the whole file. bytes, sha256, keys_offset, keys_checksum: as in
    `WrittenFragment`. deleted: rows that this version does not show.
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
        """The same with these rows deleted as well."""
        return replace(self, deleted=self.deleted | frozenset(rows))


@dataclass(frozen=True)
class Totals:
    """What a version shows."""

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
    """One version: which fragments, which deletions. operation: what made it. created: UTC, ISO 8601."""

    version: int
    layout: Layout
    fragments: tuple[FragmentEntry, ...]
    totals: Totals
    operation: Operation
    created: str

    @classmethod
    def first(cls, layout: Layout) -> Manifest:
        return cls(0, layout, (), Totals(), "create", _now())

    def next(
        self,
        fragments: Iterable[FragmentEntry],
        totals: Totals,
        operation: Operation,
        layout: Layout,
    ) -> Manifest:
        return Manifest(self.version + 1, layout, tuple(fragments), totals, operation, _now())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its content. What is derived from a version names it, too: a number alone can be that of
        another version, where a manifest was lost, or files of two copies were mixed."""
        return digest(_pack(self))

    @property
    def bytes(self) -> int:
        """Of the fragments, deleted rows included."""
        return sum(entry.bytes for entry in self.fragments)


def committed_versions(folder: Folder) -> list[int]:
    """The versions that are there, oldest first."""
    stems = (facts.name.removesuffix(".json") for facts in folder.files())
    return sorted(int(stem) for stem in stems if stem.isdigit())


def read_manifest(folder: Folder, version: int) -> Manifest:
    """Raises StoreError where there is no such version, it is damaged, or of another format."""
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
    """Commit a version. A version is never replaced.

    Raises StoreError where the version exists already (another writer was faster).
    """
    try:
        folder.create(manifest_name(manifest.version), seal(_pack(manifest)))
    except FileExistsError as error:
        raise StoreError(
            f"Version {manifest.version} of {folder} has been committed by another writer meanwhile; run "
            "the same command again."
        ) from error


def _pack(manifest: Manifest) -> dict[str, Any]:
    """As JSON."""
    return {
        "format_version": FORMAT_VERSION,
        **{n: getattr(manifest, n) for n in ("version", "operation", "created")},
        "layout": asdict(manifest.layout),
        "totals": asdict(manifest.totals),
        "fragments": [pack_entry(entry) for entry in manifest.fragments],
    }


def _unpack(body: dict[str, Any]) -> Manifest:
    """Raises ValueError, TypeError, KeyError or AttributeError where it is no manifest."""
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
    """As JSON; deleted rows as runs, [first, one after the last]."""
    runs: list[list[int]] = []
    for row in sorted(entry.deleted):
        if runs and runs[-1][1] == row:
            runs[-1][1] += 1
        else:
            runs.append([row, row + 1])
    return {**vars(entry), "deleted": runs}


def unpack_entry(packed: dict[str, Any]) -> FragmentEntry:
    """Raises ValueError, TypeError or KeyError where it is none: what is read comes from a file, which need
    not be one that was written here."""
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
    return f"{version:010d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
