"""Check a whole knowledge base: settings, store, passage index; repair what can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lclm_rag.config import Settings, read_settings
from lclm_rag.errors import DamagedError, PassageIndexError, StoreError
from lclm_rag.indexing.embedded import rebuild_snapshot
from lclm_rag.indexing.lost import lost_version
from lclm_rag.indexing.session import open_index
from lclm_rag.indexing.snapshots import SnapshotFolder, snapshot_keys
from lclm_rag.indexing.versions import indexed_store
from lclm_rag.retrieval import SentenceTransformerEmbedder
from lclm_rag.storage import Folder, LocalFolder, open_folder
from lclm_rag.store import LatentStore
from lclm_rag.store.fragment import key_hash
from lclm_rag.store.locks import write_lock
from lclm_rag.store.repair import drop_unusable, go_back_to_an_intact_manifest, repair_store
from lclm_rag.store.verify import StoreFindings, verify_store
from lclm_rag.types import PassageKey

__all__ = ["Findings", "verify"]


@dataclass
class Findings:
    """What `verify` has found, and done.

    problems: sentences; none where all is well. damaged_documents: ids of those of which something is damaged
    or lost. nameless_passages: damaged ones whose document nothing tells any more. earlier: sentences on what
    only versions from before a repair have, which is no problem any more. repaired: sentences.
    reclaimable_bytes: of fragments that no version names, such as killed runs leave behind.
    """

    version: int
    documents: int
    passages: int
    bytes: int
    problems: list[str] = field(default_factory=list)
    damaged_documents: list[str] = field(default_factory=list)
    nameless_passages: int = 0
    earlier: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    reclaimable_bytes: int = 0


def verify(
    location: str | Path | Folder,
    *,
    repair: bool = False,
    wait: float = 0.0,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Read every file of a knowledge base and compare it with what was written.

    repair: commit a version without what is damaged, which adding those documents again heals, and make the
    passage index anew where it is not that of the store. Nothing that is sound is deleted, but for what is
    left of a damaged document; earlier versions stay as they are. on_bytes: bytes of fragments read, and in
    all.
    Raises KnowledgeBaseError or StoreError where there is no knowledge base, or nothing of it can be read;
    with repair, LockedError where another process still writes after `wait` seconds.
    """
    folder = open_folder(location)
    settings = read_settings(folder)
    if not repair:
        with closing(LatentStore.open(folder / "store")) as store:
            return _checked(folder, settings, store, on_bytes).findings(store)
    store_folder = folder / "store"
    if not isinstance(store_folder, LocalFolder):
        raise StoreError(f"{folder} lies in an object store: copy it to a disk to repair it.")
    with write_lock(store_folder.path, wait) if store_folder.path.is_dir() else nullcontext():
        repaired = _openable(store_folder)
        with closing(LatentStore.open(store_folder)) as store:
            checked = _checked(folder, settings, store, on_bytes)
            repaired += _repair_store(store_folder, store, checked)
        with closing(LatentStore.open(store_folder)) as store:
            index_is_wrong = checked.index_problems or checked.lost
            if index_is_wrong or checked.found.damaged_passages or checked.documents:
                _make_index_anew(folder, settings, store)
                repaired.append("The passage index was made anew.")
            return checked.findings(store, repaired)


@dataclass(frozen=True)
class _Checked:
    """found: of the store. lost: a sentence on a version whose manifest is not there. documents: ids of the
    damaged, from store and index. nameless: see Findings."""

    found: StoreFindings
    lost: str | None
    index_problems: list[str]
    documents: list[str]
    nameless: int

    def findings(self, store: LatentStore, repaired: Iterable[str] = ()) -> Findings:
        return Findings(
            version=store.version,
            documents=store.count_documents(),
            passages=len(store),
            bytes=store.manifest.bytes,
            problems=[*self.found.problems, *filter(None, [self.lost]), *self.index_problems],
            damaged_documents=self.documents,
            nameless_passages=self.nameless,
            earlier=self.found.earlier,
            repaired=list(repaired),
            reclaimable_bytes=self.found.unneeded_bytes,
        )


def _checked(
    folder: Folder, settings: Settings, store: LatentStore, on_bytes: Callable[[int, int], None]
) -> _Checked:
    total, done = store.manifest.bytes, 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        on_bytes(done, max(total, done))

    found = verify_store(store, count)
    problems, damaged = _check_index(folder, settings, store, found)
    documents = sorted(found.documents | {key.document_id for key in damaged})
    # Of a fragment that cannot be read at all, the index knows the keys.
    nameless = min(found.nameless, max(0, found.damaged_passages - len(damaged)))
    lost = lost_version(folder / "index", store)
    return _Checked(found, lost, problems, documents, nameless)


# --- the passage index ----------------------------------------------------------------------------------


def _check_index(
    folder: Folder, settings: Settings, store: LatentStore, found: StoreFindings
) -> tuple[list[str], list[PassageKey]]:
    """Sentences, and the keys of damaged passages, as far as the index knows them."""
    if settings.qdrant_url is not None:
        from lclm_rag.retrieval.server import collection_keys

        where = str(settings.collection)
        try:
            return _compared(collection_keys(settings.qdrant_url, where), store, found, where, True)
        except PassageIndexError as error:
            return [str(error)], []
    snapshots = SnapshotFolder(folder / "index")
    problems = [
        f"The passage index in {path} is damaged: it cannot be read; --repair makes it anew."
        for path in snapshots.unreadable()
    ]
    usable = (
        s
        for s in snapshots.nearest(store.version)
        if indexed_store(store, s.version, s.manifest) is not None
    )
    snapshot = next(usable, None)
    if snapshot is None:
        return problems, []
    where = str(snapshot.path)
    if damage := snapshot.damage():
        problems.append(
            f"The passage index in {where} is damaged ({', '.join(damage[:3])}); --repair makes it anew."
        )
        return problems, []
    try:
        keys = snapshot_keys(snapshots, snapshot)
    except PassageIndexError as error:
        return [*problems, str(error)], []
    # One of an earlier version is brought up to date by whoever opens it.
    current = snapshot.version == store.version
    more, lost = _compared(keys, store, found, where, current)
    return problems + more, lost


def _compared(
    keys: Iterable[PassageKey], store: LatentStore, found: StoreFindings, where: str, current: bool
) -> tuple[list[str], list[PassageKey]]:
    """Whether an index holds the sound passages of the store (where it is `current`), and those that only the
    index has: damaged ones."""
    extra, count = [], 0
    for key in keys:
        count += 1
        if not _holds(found.hashes, key):
            extra.append(key)
    missing = len(found.hashes) - (count - len(extra))
    problems = []
    if current and (missing > 0 or len(extra) > found.damaged_passages):
        problems.append(
            f"The passage index {where} lacks {missing:,} passages of version {store.version}, and has "
            f"{len(extra):,} that are not in it; --repair makes it anew."
        )
    if not found.damaged_passages:
        return problems, []
    hidden = np.sort(found.hidden)
    return problems, [key for key in extra if not _holds(hidden, key)]


def _holds(hashes: np.ndarray, key: PassageKey) -> bool:
    """hashes: sorted."""
    wanted = np.uint64(key_hash(key))
    at = int(np.searchsorted(hashes, wanted))
    return at < len(hashes) and bool(hashes[at] == wanted)


# --- repair, with the store's lock held -----------------------------------------------------------------


def _openable(folder: LocalFolder) -> list[str]:
    """Go back where the newest version cannot be opened; sentences on it."""
    try:
        LatentStore.open(folder).close()
    except DamagedError:
        return go_back_to_an_intact_manifest(folder)
    return []


def _repair_store(folder: LocalFolder, store: LatentStore, checked: _Checked) -> list[str]:
    found, documents = checked.found, checked.documents
    said = []
    if found.needs_version or documents:
        version = repair_store(folder, found, documents).version
        said.append(
            f"Version {version} is without the {len(documents):,} damaged documents: add them again, and "
            "only they are compressed."
            if documents
            else f"Version {version} is without what was damaged, and lacks no document that can be named."
        )
    if checked.nameless:
        said.append(
            f"{checked.nameless:,} of the damaged passages are of documents whose ids are lost: add the "
            "whole corpus again, what is there costs a hash."
        )
    if found.manifests or found.notes or checked.lost:
        drop_unusable(folder, store.layout)
    if checked.lost:
        said.append(
            f"What the lost version had changed is undone, and version {store.version} the newest: do it "
            "again. Latents that it had added are taken over then."
        )
    if found.manifests or found.notes:
        said.append(
            "Damaged manifests and notes on uncommitted work were put aside; what is sound of such work is "
            "taken over by the next add."
        )
    return said


def _make_index_anew(folder: Folder, settings: Settings, store: LatentStore) -> None:
    if settings.qdrant_url is None:
        rebuild_snapshot(folder / "index", store, settings.embedder)
        return
    from lclm_rag.retrieval.server import drop_collection

    drop_collection(settings.qdrant_url, str(settings.collection))
    (folder / "index").remove("state.json")
    embedder = SentenceTransformerEmbedder(settings.embedder) if settings.embedder else None
    index = open_index(
        folder / "index",
        store,
        embedder=embedder,
        qdrant_url=settings.qdrant_url,
        collection=settings.collection,
    )
    index.close()
