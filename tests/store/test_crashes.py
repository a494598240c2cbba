"""kill -9 at any moment: what was committed stays, what was not is never seen, and its disk comes back."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lclm_rag import KnowledgeBase
from lclm_rag.cli.main import _run
from lclm_rag.storage import open_folder
from lclm_rag.store import CODECS, LatentStore, newest_version
from lclm_rag.store.writer import uncommitted_entries
from support.forked import Ended, Forks
from support.texts import Texts, check, check_nothing_is_left_over, text, word

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: what is tested is the order of things, not the disk."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield path
    shutil.rmtree(path)


# --- killing --------------------------------------------------------------------------------------


class Killer:
    """Kills operations: at a random instant, or at a random call that changes the folder.

    Instants are spread over an operation's whole duration, calls over the places where it makes some (see
    `forked.py`), so that narrow windows, between two renames, are met as often as wide ones.
    """

    def __init__(self, children: Forks, seed: int) -> None:
        self.random = random.Random(seed)
        self.kills = 0
        self.children = children
        self._seen: dict[str, Ended] = {}

    def run(self, kb: Path, operation: str, *arguments: Any) -> Ended:
        """Start the operation, and try to kill it; it may be faster."""
        seen = self._seen.get(operation)
        if seen is None:
            child = self.children.start(kb, operation, *arguments)
        elif self.random.random() < 0.5:
            child = self.children.start(kb, operation, *arguments)
            time.sleep(self.random.uniform(0, seen.seconds))
            child.kill()
        else:
            place = self.random.choice(sorted(seen.calls))
            number = self.random.randint(1, seen.calls[place])
            child = self.children.start(kb, operation, *arguments, at=place, number=number)
        ended = child.wait()
        assert ended.error is None
        if ended.done:
            self._seen[operation] = ended
        else:
            self.kills += 1
        return ended


def test_a_killed_build_goes_on_where_it_stopped(folder: Path, children: Forks) -> None:
    kills = at_once(lambda seed: _kill_builds(folder / str(seed), Killer(children, seed), 32), 2)
    assert kills >= 64


def _kill_builds(folder: Path, killer: Killer, kills: int) -> int:
    killer.run(folder / "first", "build", {f"d{i}": text(f"d{i}", 0) for i in range(6)})
    build = 0
    while killer.kills < kills:
        build += 1
        kb = folder / f"kb{build}"
        documents = {f"d{i}": text(f"d{i}", build) for i in range(6)}
        ended = Ended()
        while not ended.done and not committed(kb):
            finished = finished_passages(kb)
            ended = killer.run(kb, "build", documents)
            # Of what was finished nothing is lost, so that a fragment's work at most is done again.
            assert finished_passages(kb) >= finished or committed(kb)
            if ended.acknowledged:
                assert ended.said["reused"] >= finished
            if (kb / "kb.json").exists():
                check(kb, [documents] if ended.acknowledged else [{}, documents])
        assert check(kb, [documents])
        killer.children.run(kb, "vacuum")
        check_nothing_is_left_over(kb)
    return killer.kills


def at_once(work: Callable[[int], int], times: int) -> int:
    """The sum of what `work` gives for 0, 1, …; two run at a time."""
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(work, range(times)))


def committed(kb: Path) -> bool:
    return (kb / "kb.json").exists() and newest_version(open_folder(kb / "store")) > 0


def finished_passages(kb: Path) -> int:
    """Those that a killed build had written to files."""
    if not (kb / "kb.json").exists():
        return 0
    with KnowledgeBase.open(kb) as opened:
        store = opened.store
        entries = uncommitted_entries(store.folder, store.layout)
        finished = LatentStore.of(store, entries)
        # What a document began in one run is written once more by the next, with the rest of it.
        return len({row.passage.key for row in finished.passages()})


def test_a_killed_change_is_there_as_a_whole_or_not_at_all(folder: Path, children: Forks) -> None:
    kills = at_once(lambda seed: _kill_changes(folder / f"{seed}", Killer(children, seed), 35), 4)
    assert kills >= 140


def _kill_changes(kb: Path, killer: Killer, kills: int) -> int:
    held = {f"d{i}": text(f"d{i}", 0) for i in range(6)}
    killer.children.run(kb, "build", held)
    edition = 0
    while killer.kills < kills:
        edition += 1
        operation, arguments, after = some_change(kb, held, edition, killer.random)
        ended = killer.run(kb, operation, *arguments)
        held = check(kb, [after] if ended.acknowledged else [held, after])
    killer.children.run(kb, "vacuum")
    check_nothing_is_left_over(kb)
    check(kb, [held])
    return killer.kills


def some_change(
    kb: Path, held: Texts, edition: int, random: random.Random
) -> tuple[str, list[Any], Texts]:
    """An operation, its arguments, and what is held after it."""
    operations = ["add", "compact", "convert", "vacuum"]
    if len(held) > 5:
        operations += ["sync", "delete"]
    operation = random.choice(operations)
    some = random.sample(sorted(held), 3)
    if operation == "delete":
        return operation, [some[:2]], {n: t for n, t in held.items() if n not in some[:2]}
    if operation == "convert":
        store = LatentStore.open(kb / "store")
        store.close()
        return operation, [random.choice([c for c in CODECS if c != store.layout.codec])], held
    if operation in ("add", "sync"):
        new = {name: text(name, edition) for name in (*some, f"n{edition}", f"m{edition}")}
        return operation, [new], new if operation == "sync" else held | new
    return operation, [], held


# --- errors in place of kills ----------------------------------------------------------------------


@pytest.mark.parametrize("action", ["interrupt", "ENOSPC"])
def test_an_error_or_an_interrupt_at_any_call_undoes_nothing_that_was_committed(
    folder: Path, children: Forks, action: str
) -> None:
    held = {f"d{i}": text(f"d{i}", 0) for i in range(6)}
    children.run(folder / "kb", "build", held)
    draw = random.Random(action)
    calls: dict[str, dict[str, int]] = {}
    for edition in range(1, 26):
        operation, arguments, after = some_change(folder / "kb", held, edition, draw)
        fault: dict[str, Any] = {}
        if seen := calls.get(operation):
            # What removes needs no room.
            needing = [c for c in seen if not c.startswith(("os.remove", "os.rmdir"))]
            place = draw.choice(sorted(seen if action == "interrupt" else needing))
            fault = {"at": place, "number": draw.randint(1, seen[place]), "action": action}
        ended = children.run(folder / "kb", operation, *arguments, **fault)
        assert ended.done
        calls.setdefault(operation, ended.calls)
        if ended.error is not None:
            assert ended.error[0] in ("KeyboardInterrupt", "StoreError", "PassageIndexError"), fault
            if "nothing was committed" in ended.error[1]:
                after = held
        whole = ended.error is None or ended.acknowledged
        held = check(folder / "kb", [after] if whole else [held, after])


# --- several processes -----------------------------------------------------------------------------


def test_readers_see_one_version_whatever_is_written_meanwhile(
    folder: Path, children: Forks
) -> None:
    kb, stop = folder / "kb", folder / "stop"
    children.run(kb, "build", {f"d{i}": text(f"d{i}", 0) for i in range(5)})
    readers = [children.start(kb, "read", str(stop)) for _ in range(3)]
    for generation, codec in enumerate(("fp16", "bf16", "fp16"), start=1):
        documents = {f"d{i}": text(f"d{i}", generation) for i in range(5)}
        for operation, *arguments in [
            ("sync", documents | {f"g{generation}": text(f"g{generation}", generation)}),
            ("delete", ["d1"]),
            ("compact",),
            ("convert", codec),
            ("vacuum",),
        ]:
            ended = children.run(kb, operation, *arguments)
            assert ended.done
            assert ended.error is None
        readers.append(children.start(kb, "read", str(stop)))
    stop.touch()
    for reader in readers:
        ended = reader.wait()
        assert ended.error is None
        assert set(ended.said) <= set(range(4))
    # Those that had their version open are gone, and with them the reason to keep it.
    children.run(kb, "vacuum")
    check_nothing_is_left_over(kb)


def test_a_second_writer_is_told_who_writes_and_may_wait(
    folder: Path, children: Forks, capsys: pytest.CaptureFixture[str]
) -> None:
    kb, stop = folder / "kb", folder / "stop"
    children.run(kb, "build", {f"d{i}": text(f"d{i}", 0) for i in range(3)})
    holder = children.start(kb, "hold", str(stop))
    assert holder.hear() == {"said": "holding"}
    for operation, *arguments in [
        ("add", {"new": text("new", 0)}),
        ("delete", ["d0"]),
        ("compact",),
        ("convert", "fp16"),
        ("vacuum",),
    ]:
        ended = children.run(kb, operation, *arguments)
        assert ended.error is not None
        assert ended.error[0] == "LockedError"
        assert f"(pid {holder.pid})" in ended.error[1]
    assert children.run(kb, "query", word("d0", 0)).said  # Reading goes on.
    command = ["delete", "d0", "--kb", str(kb)]
    assert _run(command) == 4
    assert f"being written by another process (pid {holder.pid})" in capsys.readouterr().err
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(_run, [*command, "--wait", "120"])
        time.sleep(0.2)
        stop.touch()
        assert waiting.result() == 0
    assert holder.wait().error is None
    check(kb, [{f"d{i}": text(f"d{i}", 0) for i in (1, 2)}])
