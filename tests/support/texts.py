"""Small documents of which every edition can be told apart, and a check that a knowledge base holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lclm_rag import KnowledgeBase
from lclm_rag.store import LatentStore
from lclm_rag.verify import verify

__all__ = ["Texts", "check", "check_nothing_is_left_over", "names", "text", "word"]

Texts = dict[str, str]


def word(name: str, edition: int) -> str:
    """One that stands in this edition of this document only."""
    return f"{name}x{edition}"


def text(name: str, edition: int) -> str:
    """Long enough for several passages; the first lines are the same in every edition."""
    same = [f"Line {i} of the report {name}, as it always was. " for i in range(4)]
    return "".join(same) + f"The word of this edition is {word(name, edition)}. " + "The end. " * 9


def check(kb: Path, expected: list[Texts]) -> Texts:
    """The knowledge base is sound, and holds exactly what one of the models says: which is returned."""
    found = verify(kb)
    assert not found.problems
    with KnowledgeBase.open(kb) as opened:
        store = opened.store
        held = {
            name: "".join(r.passage.text for r in store.read(store.document_keys(name)))
            for name in store.document_ids(np.empty(0, np.uint64))
        }
        assert held in expected
        assert found.documents == len(held)
        assert len(opened.find({"kind": "report"})) == len(store) if held else True
        words = {w for texts in expected for t in texts.values() for w in _words(t)}
        for sought in words:
            # To its end: d2x2 begins d2x20, of a later edition.
            hits = [hit for hit in opened.retrieve(sought, 1) if f" {sought}." in hit.text]
            holders = {name for name, t in held.items() if f" {sought}." in t}
            assert {hit.key.document_id for hit in hits} == holders, sought
    return held


def _words(text: str) -> list[str]:
    return [text.partition("edition is ")[2].partition(".")[0]]


def check_nothing_is_left_over(kb: Path) -> None:
    """After a vacuum: no file but those that the newest version needs."""
    store = LatentStore.open(kb / "store")
    entries = list(store.entries())
    needed = {entry.name for entry in entries}
    lists = {f"{listed.name}.list" for listed in store.manifest.lists}
    bitmaps = {f"{entry.deletions.file}.bits" for entry in entries if entry.deletions}
    runs = {f"{run.name}.run" for run in store.manifest.keys}
    manifest = f"{store.version:010d}.json"
    store.close()
    assert names(kb / "store" / "fragments") == needed
    assert names(kb / "store" / "lists") == lists
    assert names(kb / "store" / "deletions") == bitmaps
    assert names(kb / "store" / "keys") == runs
    assert names(kb / "store" / "manifests") == {manifest}
    assert names(kb / "store" / "uncommitted") == set()
    assert names(kb / "store" / "readers") == {"gate"}
    parts = {"fragments", "lists", "deletions", "keys", "manifests", "uncommitted", "readers"}
    assert names(kb / "store") == {*parts, "lock"}
    assert names(kb / "index" / "private") <= {"gate"}
    assert len(names(kb / "index" / "published")) == 1
    assert not list(kb.rglob("*.tmp"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
