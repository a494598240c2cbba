"""Files of an index: copied with their holes, compared and synced, folder by folder."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

__all__ = [
    "copy_file",
    "copy_tree",
    "disk_bytes",
    "file_facts",
    "files_below",
    "sync_tree",
    "unpack",
]

_PIECE = 1 << 23
_HOLE = 1 << 16


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """The relative name and the path of every file below a folder, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def disk_bytes(folder: Path) -> int:
    """The bytes that a folder takes on disk; 0 if it is removed meanwhile."""
    try:
        return sum(path.stat().st_blocks * 512 for _, path in files_below(folder))
    except FileNotFoundError:
        return 0


def file_facts(path: Path) -> tuple[int, str]:
    """The size of a file in bytes, and its SHA-256."""
    with path.open("rb") as f:
        return path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest()


def copy_tree(source: Path, target: Path) -> None:
    """Copy everything below a folder into another one, which is made if it is missing."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        if path.is_dir():  # Also empty folders, which the engine needs.
            (target / path.relative_to(source)).mkdir(parents=True, exist_ok=True)
    for name, path in files_below(source):
        copy_file(path, target / name)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; its holes stay holes, which make up most of the engine's files."""
    with source.open("rb", buffering=0) as a, target.open("wb", buffering=0) as b:
        size = os.fstat(a.fileno()).st_size
        b.truncate(size)
        offset = 0
        while offset < size:
            try:
                begin = os.lseek(a.fileno(), offset, os.SEEK_DATA)
            except OSError:  # The rest of the file is a hole.
                return
            end = os.lseek(a.fileno(), begin, os.SEEK_HOLE)
            for start in range(begin, end, _PIECE):
                piece = os.pread(a.fileno(), min(_PIECE, end - start), start)
                # In a loop, because on a nearly full disk only a part is written, without an error.
                while piece:
                    written = os.pwrite(b.fileno(), piece, start)
                    piece, start = piece[written:], start + written
            offset = end


def sync_tree(folder: Path) -> None:
    """Make every file below a folder survive a power cut."""
    for _, path in files_below(folder):
        with path.open("rb+") as f:
            os.fsync(f.fileno())


def unpack(tar: tarfile.TarFile, target: Path) -> None:
    """Unpack files; stretches of zeros become holes, as most of them were before packing."""
    for member in tar:
        safe = tarfile.data_filter(member, str(target))
        path = target / safe.name
        if safe.isdir():
            path.mkdir(parents=True, exist_ok=True)
        packed = tar.extractfile(member)
        if packed is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as f:
            f.truncate(safe.size)
            while piece := packed.read(_HOLE):
                if piece.count(0) == len(piece):
                    f.seek(len(piece), os.SEEK_CUR)
                else:
                    f.write(piece)
