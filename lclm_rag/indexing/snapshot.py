"""One published snapshot of an embedded index, as its `index.json` describes it."""

from __future__ import annotations

import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.indexing.files import file_facts, files_below
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.storage import LocalFolder
from lclm_rag.storage.names import is_path_below
from lclm_rag.typed_json import from_json

__all__ = ["UNREADABLE", "Snapshot", "read_snapshot", "seal_snapshot"]

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What `read_snapshot` raises for a snapshot that is damaged or incomplete."""

_ABOUT = "index.json"


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot, as its `index.json` describes it.

    Attributes:
        path: The folder that holds `edge` and `index.json`.
        version: The number of the store's version that the snapshot shows.
        manifest: The digest of that version's manifest.
        bm25: The BM25 settings of the index.
        embedder: The name of the embedder that the index was made with; None for BM25 alone.
        files: The size in bytes and the SHA-256 of each of the engine's files, by its path below `edge`.
    """

    path: Path
    version: int
    manifest: str
    bm25: Bm25Settings
    embedder: str | None
    files: dict[str, tuple[int, str]]

    def damage(self) -> list[str]:
        """The files that are missing, changed or additional, by their paths below `edge`; reads them all."""
        there = dict(files_below(self.path / "edge"))
        wrong = [n for n in self.files if n not in there or file_facts(there[n]) != self.files[n]]
        return sorted([*wrong, *(there.keys() - self.files.keys())])

    def misfits(self) -> list[str]:
        """The files that are missing or have another size than when they were published.

        From such files the engine may make an index that lacks passages. Unlike `damage`, this reads no file.
        """
        return [name for name, (size, _) in self.files.items() if self._size(name) != size]

    def _size(self, name: str) -> int | None:
        """The size of a file; None if there is no plain file of that name."""
        try:
            facts = (self.path / "edge" / name).lstat()
        except OSError:
            return None
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None


@dataclass(frozen=True)
class _Packed:
    """What `index.json` holds; see `Snapshot`. `files` gives the size and the digest of each."""

    version: int
    manifest: str
    bm25: dict[str, Any]
    embedder: str | None
    files: dict[str, Any]


def read_snapshot(path: Path) -> Snapshot:
    """The snapshot in a folder; one of `UNREADABLE` if it is damaged or incomplete."""
    raw = from_json(_Packed, unseal(LocalFolder(path).read(_ABOUT)))
    files = {name: (int(size), str(digest)) for name, (size, digest) in raw.files.items()}
    # Checked, because the files are linked into a folder where the engine writes: a path that leads out of
    # the snapshot may be that of any file.
    if leading_out := [name for name in files if not is_path_below(name)]:
        raise ValueError(f"{leading_out[0]!r} is not the name of a file of an index")
    bm25 = Bm25Settings.from_json(raw.bm25)
    return Snapshot(path, raw.version, raw.manifest, bm25, raw.embedder, files)


def seal_snapshot(
    path: Path, version: int, manifest: str, bm25: Bm25Settings, embedder: str | None
) -> None:
    """Describe the index in `path / "edge"`, with the checksums of its files: a folder becomes a snapshot.

    Args:
        path: The folder.
        version: As for `Snapshot`, and so are the others.
        manifest: See there.
        bm25: See there.
        embedder: See there.
    """
    files = {name: file_facts(found) for name, found in files_below(path / "edge")}
    about = _Packed(version, manifest, asdict(bm25), embedder, files)
    (path / _ABOUT).write_bytes(seal(asdict(about)))
