"""Check a whole knowledge base: settings, store, passage index; repair what can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lclm_rag.documents import PassageKey
from lclm_rag.folders import Folder, open_folder
from lclm_rag.indexing.passage_index import rebuild_snapshot
from lclm_rag.indexing.snapshots import SnapshotFolder, snapshot_keys
from lclm_rag.settings import Settings, read_settings
from lclm_rag.store import LatentStore
from lclm_rag.store.fragment import DamagedError
from lclm_rag.store.verify import (
    StoreFindings,
    go_back_to_an_intact_manifest,
    repair_store,
    verify_store,
)

__all__ = ["Findings", "verify"]


@dataclass
class Findings:
    """What `verify` has found, and done.

    problems: sentences; none where all is well. damaged_documents: ids of those of which something is damaged
    or lost. nameless_passages: damaged ones whose document nothing tells any more. repaired: sentences.
    reclaimable_bytes: what `vacuum` would free of killed runs' work.
    """

    version: int
    documents: int
    passages: int
    bytes: int
    problems: list[str] = field(default_factory=list)
    damaged_documents: list[str] = field(default_factory=list)
    nameless_passages: int = 0
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
    passage index anew where it is not that of the store. Nothing else is changed, and nothing that is sound is
    deleted, but for what is left of a damaged document. on_bytes: bytes of fragments read, and in all.
    Raises KnowledgeBaseError or StoreError where there is no knowledge base, or nothing of it can be read.
    """
    folder = open_folder(location)
    repaired, problems = [], []
    try:
        store = LatentStore.open(folder / "store")
    except DamagedError as error:
        if not repair:
            raise
        problems.append(str(error))
        repaired = go_back_to_an_intact_manifest(folder / "store", wait)
        store = LatentStore.open(folder / "store")
    settings = read_settings(folder)
    total, done = store.manifest.bytes, 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        on_bytes(done, max(total, done))

    found = verify_store(store, count)
    index_problems, indexed = _check_index(folder, settings, store, found)
    lost = indexed - found.keys if indexed is not None and found.damaged else set()
    documents = sorted(found.documents | {key.document_id for key in lost})
    # Of a fragment that cannot be read at all, the index knows the keys.
    nameless = max(0, found.nameless - len(lost)) if indexed is not None else found.nameless
    if repair:
        if found.damaged or documents:
            store = repair_store(folder / "store", found, documents, wait)
            repaired.append(
                f"Version {store.version} is without the {len(documents):,} damaged documents: add them "
                "again, and they are compressed anew."
            )
            if nameless:
                repaired.append(
                    f"{nameless:,} of the damaged passages are of documents whose ids are lost: add the "
                    "whole corpus again, what is there costs a hash."
                )
        if index_problems and settings.qdrant_url is None:
            rebuild_snapshot(folder / "index", store, settings.embedder)
            repaired.append("The passage index was made anew.")
    return Findings(
        version=store.version,
        documents=store.count_documents(),
        passages=len(store),
        bytes=store.manifest.bytes,
        problems=[*problems, *found.problems, *index_problems],
        damaged_documents=documents,
        nameless_passages=nameless,
        repaired=repaired,
        reclaimable_bytes=found.unneeded_bytes,
    )


def _check_index(
    folder: Folder, settings: Settings, store: LatentStore, found: StoreFindings
) -> tuple[list[str], set[PassageKey] | None]:
    """Sentences, and the keys that the index holds; None where they cannot be told."""
    if settings.qdrant_url is not None:
        from lclm_rag.retrieval.server import collection_keys

        keys = collection_keys(settings.qdrant_url, str(settings.collection))
        return _compared(keys, store, found, str(settings.collection)), keys
    snapshots = SnapshotFolder(folder / "index")
    problems = [
        f"The passage index in {path} is damaged: it cannot be read; --repair makes it anew."
        for path in snapshots.unreadable()
    ]
    snapshot = snapshots.find(store.version)
    if snapshot is None:
        return problems, None
    if damage := snapshot.damage():
        problems.append(
            f"The passage index in {snapshot.path} is damaged ({', '.join(damage[:3])}); --repair makes it "
            "anew."
        )
        return problems, None
    keys = snapshot_keys(snapshots, snapshot)
    if snapshot.version == store.version:
        problems += _compared(keys, store, found, str(snapshot.path))
    return problems, keys


def _compared(
    keys: set[PassageKey], store: LatentStore, found: StoreFindings, where: str
) -> list[str]:
    """Whether an index holds the passages of the store; what is damaged there is not the index's fault."""
    missing, extra = len(found.keys - keys), len(keys) - len(keys & found.keys)
    if missing or extra > len(found.damaged):
        return [
            f"The passage index {where} lacks {missing:,} passages of version {store.version}, and has "
            f"{extra:,} that are not in it; --repair makes it anew."
        ]
    return []
