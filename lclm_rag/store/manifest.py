"""The manifest: one version of the store, put in place atomically. It is the truth."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lclm_rag.errors import StoreError
from lclm_rag.store.fragment import FORMAT_VERSION, Layout

__all__ = ["FragmentEntry", "Manifest", "latest_version", "read_manifest", "write_manifest"]


@dataclass(frozen=True)
class FragmentEntry:
    """One fragment of a version. `deleted`: rows that this version no longer shows."""

    name: str
    rows: int
    latents: int
    tokens: int
    bytes: int
    sha256: str
    deleted: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Manifest:
    """One version: which fragments, which deletions."""

    version: int
    layout: Layout
    fragments: tuple[FragmentEntry, ...] = field(default_factory=tuple)

    @property
    def passages(self) -> int:
        return sum(f.rows - len(f.deleted) for f in self.fragments)


def latest_version(folder: Path) -> int | None:
    """The newest committed version in `folder`; None where there is none."""
    versions = [int(path.stem) for path in folder.glob("[0-9]*.json")]
    return max(versions, default=None)


def read_manifest(folder: Path, version: int) -> Manifest:
    """Raises StoreError where the file is missing, damaged, or of a later format."""
    path = _path(folder, version)
    try:
        outer = json.loads(path.read_text("utf-8"))
        body = outer["manifest"]
        intact = outer["sha256"] == _digest(body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"Manifest {path} cannot be read: {error}.") from error
    if not intact:
        raise StoreError(f"Manifest {path} is damaged: its checksum does not match.")
    if body["format_version"] != FORMAT_VERSION:
        raise StoreError(
            f"The store has format version {body['format_version']}; this lclm-rag reads "
            f"{FORMAT_VERSION}. Use the version of lclm-rag that wrote it, or a newer one."
        )
    fragments = [
        FragmentEntry(**{**entry, "deleted": frozenset(entry["deleted"])})
        for entry in body["fragments"]
    ]
    return Manifest(body["version"], Layout(**body["layout"]), tuple(fragments))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit a version: write aside, sync, link into place. A version is never replaced.

    Raises StoreError where the version exists already (another writer was faster).
    """
    body: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "version": manifest.version,
        "layout": asdict(manifest.layout),
        "fragments": [
            {**asdict(entry), "deleted": sorted(entry.deleted)} for entry in manifest.fragments
        ],
    }
    path = _path(folder, manifest.version)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as f:
            json.dump({"sha256": _digest(body), "manifest": body}, f)
            f.flush()
            os.fsync(f.fileno())
        os.link(temporary, path)
    except FileExistsError as error:
        raise StoreError(
            f"Version {manifest.version} of the store is already committed."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _path(folder: Path, version: int) -> Path:
    return folder / f"{version:010d}.json"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
