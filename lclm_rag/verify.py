"""Check a whole knowledge base (settings, store, passage index) and repair what can be repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from lclm_rag.checkpoint import BUNDLED
from lclm_rag.config import Settings, read_settings
from lclm_rag.errors import StoreError
from lclm_rag.indexing.lost import lost_version
from lclm_rag.indexing.verify import rebuild_index, verify_index
from lclm_rag.problem import Problem, damaged_documents, nameless_passages, sentences
from lclm_rag.remotes import announce_remotes
from lclm_rag.storage import Folder, LocalFolder, open_folder
from lclm_rag.store import LatentStore
from lclm_rag.store.locks import write_lock
from lclm_rag.store.parts import FRAGMENTS
from lclm_rag.store.repair import go_back_to_an_intact_manifest, repair_store
from lclm_rag.store.verify import verify_store
from lclm_rag.store.writer import named_fragments

__all__ = ["Findings", "verify"]


@dataclass(frozen=True)
class Findings:
    """What `verify` found and repaired.

    Attributes:
        version: The version that was checked; after a repair, the newest one.
        documents: Documents in this version.
        passages: Passages in this version.
        bytes: Bytes of this version's fragments.
        problems: Sentences; empty if all is well.
        damaged_documents: Ids of documents of which something is damaged or lost.
        nameless_passages: Damaged passages of documents whose ids are lost.
        earlier: Sentences on damage in versions from before a repair, which is no longer a problem.
        repaired: Sentences on what was repaired.
        reclaimable_bytes: Bytes of fragments that no version names, such as killed runs leave behind.
    """

    version: int
    documents: int
    passages: int
    bytes: int
    problems: list[str]
    damaged_documents: list[str]
    nameless_passages: int
    earlier: list[str]
    repaired: list[str]
    reclaimable_bytes: int


def verify(
    location: str | Path | Folder,
    *,
    repair: bool = False,
    wait: float = 0.0,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Read every file of a knowledge base and compare it with what was written.

    Args:
        location: The knowledge base's folder, path or URL.
        repair: Whether to repair what is damaged: commit a version without it (adding the affected documents
            again restores them), and rebuild the passage index if it does not match the store. Nothing intact
            is deleted, except what is left of a damaged document. Earlier versions stay as they are.
        wait: With `repair`, how many seconds to wait while another process writes.
        on_bytes: Called with the bytes of fragments read so far and the total.

    Returns:
        What was found, and what was repaired.

    Raises:
        KnowledgeBaseError: When there is no knowledge base, or its settings cannot be read.
        StoreError: When there is no store or nothing of it can be read; with `repair`, when the store is
            damaged and in an object store, where only the passage index is repaired.
        LockedError: With `repair`, when another process still writes after `wait` seconds.
    """
    folder = open_folder(location)
    settings = read_settings(folder)
    announce_remotes(folder, replace(settings, checkpoint=BUNDLED))
    store_folder = folder / "store"
    if not repair:
        with closing(LatentStore.open(store_folder)) as store:
            problems = list(_problems(folder, settings, store, on_bytes))
            return _findings(store, problems, [])
    if not isinstance(store_folder, LocalFolder):
        return _repair_index(folder, settings, on_bytes)
    with write_lock(store_folder.path, wait) if store_folder.path.is_dir() else nullcontext():
        repaired = go_back_to_an_intact_manifest(store_folder)
        with closing(LatentStore.open(store_folder)) as store:
            problems = list(_problems(folder, settings, store, on_bytes))
        repaired += repair_store(store_folder, problems, undone=bool(repaired))
        with closing(LatentStore.open(store_folder)) as store:
            if any(map(_concerns_index, problems)):
                rebuild_index(folder / "index", settings, store)
                repaired.append("The passage index was made anew.")
            return _findings(store, problems, repaired)


def _repair_index(
    folder: Folder, settings: Settings, on_bytes: Callable[[int, int], None]
) -> Findings:
    """Rebuild the passage index of a knowledge base in an object store, of which nothing else is repaired."""
    with closing(LatentStore.open(folder / "store")) as store:
        problems = list(_problems(folder, settings, store, on_bytes))
        if any(problem.kind not in ("index", "earlier version") for problem in problems):
            raise StoreError(f"{folder} lies in an object store: copy it to a disk to repair it.")
        repaired = []
        if any(map(_concerns_index, problems)):
            rebuild_index(folder / "index", settings, store)
            repaired.append("The passage index was made anew.")
        return _findings(store, problems, repaired)


def _problems(
    folder: Folder, settings: Settings, store: LatentStore, on_bytes: Callable[[int, int], None]
) -> Iterator[Problem]:
    total, done = store.manifest.bytes, 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        on_bytes(done, max(total, done))

    contents = yield from verify_store(store, count)
    if sentence := lost_version(folder / "index", store):
        yield Problem("lost version", str(store.folder), sentence)
    yield from verify_index(folder / "index", settings, store, contents)


def _concerns_index(problem: Problem) -> bool:
    """Whether this problem requires that the index be rebuilt."""
    is_missing = problem.document_id is not None or bool(problem.rows)
    return is_missing or problem.kind in ("index", "lost version")


def _findings(store: LatentStore, problems: list[Problem], repaired: list[str]) -> Findings:
    named = named_fragments(store.folder)
    files = (store.folder / FRAGMENTS).files()
    return Findings(
        version=store.version,
        documents=store.count_documents(),
        passages=len(store),
        bytes=store.manifest.bytes,
        problems=sentences(problems),
        damaged_documents=damaged_documents(problems),
        nameless_passages=nameless_passages(problems),
        earlier=[p.sentence for p in problems if p.kind == "earlier version"],
        repaired=repaired,
        reclaimable_bytes=sum(file.size for file in files if file.name not in named),
    )
