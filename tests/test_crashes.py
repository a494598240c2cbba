"""kill -9 at any moment: what was committed stays, what was not is never seen, and its disk comes back."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Ended, Forks, forks

from lclm_rag import KnowledgeBase
from lclm_rag.folders import open_folder
from lclm_rag.store import CODECS, LatentStore, newest_version
from lclm_rag.store.writer import uncommitted_entries
from lclm_rag.verify import verify


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: what is tested is the order of things, not the disk."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield path
    shutil.rmtree(path)


Texts = dict[str, str]


def word(name: str, edition: int) -> str:
    """One that stands in this edition of this document only."""
    return f"{name}x{edition}"


def text(name: str, edition: int) -> str:
    """Long enough for several passages; the first lines are the same in every edition."""
    same = [f"Line {i} of the report {name}, as it always was. " for i in range(4)]
    return "".join(same) + f"The word of this edition is {word(name, edition)}. " + "The end. " * 9


# --- looking at a knowledge base ------------------------------------------------------------------


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
            hits = [hit for hit in opened.retrieve(sought, 1) if sought in hit.text]
            holders = {name for name, t in held.items() if sought in t}
            assert {hit.key.document_id for hit in hits} == holders
    return held


def _words(text: str) -> list[str]:
    return [text.partition("edition is ")[2].partition(".")[0]]


def check_nothing_is_left_over(kb: Path) -> None:
    """After a vacuum: no file but those that the newest version needs."""
    store = LatentStore.open(kb / "store")
    needed = {entry.name for entry in store.manifest.fragments}
    manifest = f"{store.version:010d}.json"
    store.close()
    assert names(kb / "store" / "fragments") == needed
    assert names(kb / "store" / "manifests") == {manifest}
    assert names(kb / "store" / "uncommitted") == set()
    assert names(kb / "store" / "readers") == {"gate"}
    assert names(kb / "store") == {"fragments", "manifests", "uncommitted", "readers", "lock"}
    assert names(kb / "index" / "private") <= {"gate"}
    assert len(names(kb / "index" / "published")) == 1
    assert not list(kb.rglob("*.tmp"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- killing --------------------------------------------------------------------------------------


class Killer:
    """Kills operations: at a random instant, or at a random call that changes the folder.

    Instants are spread over an operation's whole duration, calls over the places where it makes some (see
    `forked.py`), so that narrow windows, between two renames, are met as often as wide ones.
    """

    def __init__(self, children: Forks, seed: int) -> None:
        self.random = random.Random(seed)
        self.kills = 0
        self._children = children
        self._seen: dict[str, Ended] = {}

    def run(self, kb: Path, operation: str, *arguments: Any) -> Ended:
        """Start the operation, and try to kill it; it may be faster."""
        seen = self._seen.get(operation)
        if seen is None:
            child = self._children.start(kb, operation, *arguments)
        elif self.random.random() < 0.5:
            child = self._children.start(kb, operation, *arguments)
            time.sleep(self.random.uniform(0, seen.seconds))
            child.kill()
        else:
            place = self.random.choice(sorted(seen.calls))
            number = self.random.randint(1, seen.calls[place])
            child = self._children.start(kb, operation, *arguments, at=place, number=number)
        ended = child.wait()
        assert ended.error is None
        if ended.done:
            self._seen[operation] = ended
        else:
            self.kills += 1
        return ended


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_build_goes_on_where_it_stopped(folder: Path, children: Forks, seed: int) -> None:
    killer = Killer(children, seed)
    killer.run(folder / "first", "build", {f"d{i}": text(f"d{i}", 0) for i in range(8)})
    build = 0
    while killer.kills < 40:
        build += 1
        kb = folder / f"kb{build}"
        documents = {f"d{i}": text(f"d{i}", build) for i in range(8)}
        ended = Ended()
        while not ended.done and not committed(kb):
            finished = finished_passages(kb)
            ended = killer.run(kb, "build", documents)
            # Of what was finished nothing is lost, so that a fragment's work at most is done again.
            assert finished_passages(kb) >= finished or committed(kb)
            if ended.acknowledged:
                assert ended.said["reused"] >= finished
            if (kb / "kb.json").exists():
                check(kb, [{}, documents] if not ended.acknowledged else [documents])
        assert check(kb, [documents])
        children.run(kb, "vacuum")
        check_nothing_is_left_over(kb)


def committed(kb: Path) -> bool:
    return (kb / "kb.json").exists() and newest_version(open_folder(kb / "store")) > 0


def finished_passages(kb: Path) -> int:
    """Those that a killed build had written to files."""
    if not (kb / "kb.json").exists():
        return 0
    with KnowledgeBase.open(kb) as opened:
        store = opened.store
        entries = uncommitted_entries(store.folder, store.layout)
        finished = LatentStore(store.folder, replace(store.manifest, fragments=tuple(entries)))
        # What a document began in one run is written once more by the next, with the rest of it.
        return len({row.passage.key for row in finished.passages()})


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_change_is_there_as_a_whole_or_not_at_all(
    folder: Path, children: Forks, seed: int
) -> None:
    killer = Killer(children, seed)
    kb = folder / "kb"
    held = {f"d{i}": text(f"d{i}", 0) for i in range(8)}
    children.run(kb, "build", held)
    edition = 0
    while killer.kills < 35:
        edition += 1
        operation = killer.random.choice(["add", "sync", "delete", "compact", "convert", "vacuum"])
        after = dict(held)
        arguments: list[Any] = []
        some = killer.random.sample(sorted(held), 3)
        if operation in ("add", "sync"):
            new = {name: text(name, edition) for name in (*some, f"n{edition}")}
            arguments = [new]
            after = {**held, **new} if operation == "add" else new
        elif operation == "delete":
            arguments = [some[:2]]
            after = {name: t for name, t in held.items() if name not in some[:2]}
        elif operation == "convert":
            store = LatentStore.open(kb / "store")
            arguments = [killer.random.choice([c for c in CODECS if c != store.layout.codec])]
            store.close()
        ended = killer.run(kb, operation, *arguments)
        held = check(kb, [after] if ended.acknowledged else [held, after])
        if len(held) < 6:
            more = {f"m{edition}x{i}": text(f"m{edition}x{i}", edition) for i in range(5)}
            children.run(kb, "add", more)
            held |= more
    children.run(kb, "vacuum")
    check_nothing_is_left_over(kb)
    check(kb, [held])
