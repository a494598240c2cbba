"""Stores of format 4, whose manifests named every fragment: taken over with their fragments."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from lclm_rag.checksummed_json import unseal
from lclm_rag.errors import DamagedError, StoreError
from lclm_rag.storage import Folder, open_folder
from lclm_rag.store.locks import write_lock
from lclm_rag.store.manifest import (
    Manifest,
    Totals,
    committed_versions,
    manifest_name,
    unpack_entry,
    unpack_layout,
    write_manifest,
)
from lclm_rag.store.next_version import Added, draft_version
from lclm_rag.store.parts import MANIFESTS
from lclm_rag.store.store import LatentStore
from lclm_rag.typed_json import from_json

__all__ = ["upgrade"]

_EARLIER = 4


def upgrade(location: str | Path | Folder, *, wait: float = 0.0) -> bool:
    """Take over a store of format 4: its newest version is committed once more, in this format.

    Fragments stay as they are. Earlier versions are removed.

    Args:
        location: The store's folder.
        wait: The number of seconds to wait for another writer.

    Returns:
        Whether there was a store of format 4.

    Raises:
        LockedError: If another process still writes after `wait` seconds.
        StoreError: If another writer was faster in an object store.
        DamagedError: If the newest manifest, or the keys of a fragment, are damaged.
    """
    folder = open_folder(location)
    manifests = folder / MANIFESTS
    if not any(_content(manifests, version) for version in committed_versions(manifests)[-1:]):
        return False
    with nullcontext() if folder.local is None else write_lock(folder.local, wait):
        versions = committed_versions(manifests)
        content = _content(manifests, versions[-1])
        if content is None:
            return False
        base, added = _unpacked(manifests, content)
        manifest = draft_version(
            LatentStore(folder, base),
            "convert",
            visible={},
            added=added,
            totals=base.totals,
            layout=base.layout,
            keys="rebuild",
            files=[],
        )
        write_manifest(manifests, manifest)
        for version in versions:
            manifests.remove(manifest_name(version))
    return True


def _content(manifests: Folder, version: int) -> dict[str, Any] | None:
    """What a manifest of format 4 says; None if it is none."""
    try:
        content = unseal(manifests.read(manifest_name(version)))
    except ValueError:
        return None  # Whoever opens the store says what is wrong.
    is_earlier = isinstance(content, dict) and content.get("format_version") == _EARLIER
    return content if is_earlier else None


def _unpacked(manifests: Folder, content: dict[str, Any]) -> tuple[Manifest, list[Added]]:
    """The version without its fragments, and the fragments."""
    try:
        totals = from_json(Totals, content["totals"])
        layout = unpack_layout(content["layout"])
        version, created = int(content["version"]), str(content["created"])
        base = Manifest(version, layout, totals, content["operation"], created)
        added: list[Added] = []
        for packed in content["fragments"]:
            runs = packed.pop("deleted")
            entry = unpack_entry(packed)
            shown = np.ones(entry.rows, bool)
            for first, stop in runs:
                shown[first:stop] = False
            added.append((entry, shown))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"The newest manifest in {manifests} is damaged: {error}.") from error
    if sum(int(shown.sum()) for _, shown in added) != totals.passages:
        raise StoreError(f"The newest manifest in {manifests} contradicts itself: build anew.")
    return base, added
