"""Snapshots on their way: into an object store and out of it, or out of a folder that can only be read."""

from __future__ import annotations

import shutil
import tarfile
import uuid
from pathlib import Path

from lclm_rag.indexing.files import copy_tree, unpack
from lclm_rag.indexing.private import PrivateFolder
from lclm_rag.indexing.snapshot import read_snapshot
from lclm_rag.storage import Folder, ObjectFolder

__all__ = ["PACKED", "bring", "remove_tree", "upload"]

PACKED = ".tar.zst"
"""The ending of the names of snapshots in an object store."""


def upload(folder: ObjectFolder, snapshot: Path, aside: Path) -> None:
    """Upload a snapshot as one object, and remove earlier ones.

    Args:
        folder: The folder of the knowledge base's index.
        snapshot: The published snapshot.
        aside: A folder for the packed file.
    """
    import pyarrow as pa

    name = f"{snapshot.name}{PACKED}"
    try:
        with (
            pa.CompressedOutputStream(str(aside / name), "zstd") as packed,
            tarfile.open(fileobj=packed, mode="w|") as tar,
        ):
            tar.add(snapshot, arcname=".")
        folder.upload(name, aside / name)
    finally:
        (aside / name).unlink(missing_ok=True)
    # Only now the earlier ones, so that at any time there is one to start from.
    for facts in folder.files():
        if facts.name.endswith(PACKED) and facts.name < name:
            folder.remove(facts.name)


def bring(folder: Folder, name: str, published: Path, private: Path) -> None:
    """Put a copy of a snapshot where this user's are published, and remove earlier ones there.

    Args:
        folder: The folder of the knowledge base's index, in an object store or one that can only be read.
        name: The snapshot's name.
        published: Where the copy goes.
        private: Where a private folder is made, on the same file system, for what is not complete.

    Raises:
        FileNotFoundError: If it was removed, because a newer one was published; or if it is incomplete.
        OSError: If it is damaged; so may be any other error of `UNREADABLE`, and `tarfile.TarError`.
    """
    own, target = PrivateFolder(private), published / name
    aside = own.path
    try:
        if folder.local is None:
            _download(folder, name, aside)
        else:
            source = folder.local / "published" / name
            read_snapshot(source)  # One that cannot be used is not copied first.
            copy_tree(source, aside / "snapshot")
        # Checked in full before it is published: whoever opens a published snapshot compares only sizes.
        found = read_snapshot(aside / "snapshot")
        if damage := found.damage():
            raise OSError(f"{', '.join(damage[:3])} in it damaged")
        try:
            (aside / "snapshot").rename(target)
        except OSError:  # Another process may have published it first.
            if not target.exists():
                raise
        for path in published.iterdir():
            if path.name < target.name:
                remove_tree(path, aside)
    finally:
        own.close()


def _download(folder: ObjectFolder, name: str, aside: Path) -> None:
    import pyarrow as pa

    packed = aside / "packed"
    folder.fetch(f"{name}{PACKED}", packed)
    with (
        pa.CompressedInputStream(str(packed), "zstd") as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        unpack(tar, aside / "snapshot")
    packed.unlink()


def remove_tree(path: Path, aside: Path) -> None:
    """Remove a snapshot: it is first renamed into a private folder, so that others never see a part of it."""
    target = aside / f"removed-{uuid.uuid4().hex[:8]}"
    try:
        path.rename(target)
    except OSError:  # Another process has removed it.
        return
    shutil.rmtree(target, ignore_errors=True)
