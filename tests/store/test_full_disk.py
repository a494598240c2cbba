"""A full disk: one clear sentence, the last version whole, and the same command works once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lclm_rag.store import LatentStore
from support.forked import Ended, Forks
from support.texts import Texts, check, check_nothing_is_left_over, text, word

pytestmark = pytest.mark.slow

SIZE = 64 * 2**20
# From not a byte to what is enough for all but the passage index, which asks for 16 MiB.
ROOM = (0, 20_000, 60_000, 200_000, 800_000, 4_000_000, 17_500_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def on_a_full_disk(children: Forks, room: int, kb: Path, operation: str, *arguments: Any) -> Ended:
    """Run it with so much room; it must not die of it, as a write to a mapped file would make it."""
    filling = kb.parent / "filling"
    free = shutil.disk_usage(kb.parent).free - room
    with filling.open("wb") as f:
        os.posix_fallocate(f.fileno(), 0, max(free, 1))
    try:
        ended = children.run(kb, operation, *arguments)
        assert ended.done
        if ended.error is not None:
            kind, message = ended.error
            assert kind in ("StoreError", "PassageIndexError", "KnowledgeBaseError")
            assert "disk" in message
            assert "\n" not in message
        if (kb / "kb.json").exists():
            store = LatentStore.open(kb / "store")
            assert len(list(store.passages())) == len(store)
            store.close()
    finally:
        filling.unlink()
    return ended


@pytest.mark.parametrize("operation", ["add", "delete", "compact", "convert"])
def test_a_change_on_a_full_disk(disk: Path, children: Forks, operation: str) -> None:
    kb = disk / "kb"
    held: Texts = {f"d{i}": text(f"d{i}", 0) for i in range(12)}
    children.run(kb, "build", held)
    for edition, room in enumerate(ROOM, start=1):
        arguments: list[Any] = []
        after = held
        if operation == "add":
            after = held | {f"d{i}": text(f"d{i}", edition) for i in range(5)}
            arguments = [after]
        if operation == "delete":
            arguments = [[f"d{edition}"]]
            after = {name: t for name, t in held.items() if name != f"d{edition}"}
        if operation == "convert":
            arguments = [("bf16", "fp16")[edition % 2]]
        if operation == "compact":  # So that there is something to be left out.
            held = after = {name: t for name, t in held.items() if name != f"d{edition}"}
            assert children.run(kb, "delete", [f"d{edition}"]).error is None
        before = version(kb)
        ended = on_a_full_disk(children, room, kb, operation, *arguments)
        committed = version(kb) > before
        if ended.error is None:
            assert committed
        elif "nothing was committed" in ended.error[1]:
            assert not committed
        else:
            assert "What is committed stands" in ended.error[1]
        check(kb, [after if committed else held])
        if not committed:
            again = children.run(kb, operation, *arguments)
            assert again.error is None
        held = check(kb, [after])
    assert children.run(kb, "vacuum").error is None
    check_nothing_is_left_over(kb)


def test_a_build_on_a_full_disk_goes_on_when_there_is_room(disk: Path, children: Forks) -> None:
    for number, room in enumerate(ROOM):
        kb = disk / f"kb{number}"
        documents = {f"d{i}": text(f"d{i}", 0) for i in range(12)}
        ended = on_a_full_disk(children, room, kb, "build", documents)
        assert ended.error is not None or room == ROOM[-1]
        if (kb / "kb.json").exists():
            check(kb, [{}, documents])
        if not (kb / "kb.json").exists() or version(kb) == 0:
            assert children.run(kb, "build", documents).error is None
        check(kb, [documents])
        shutil.rmtree(kb)


def test_vacuum_makes_room_where_there_is_none(disk: Path, children: Forks) -> None:
    kb = disk / "kb"
    held = {f"d{i}": text(f"d{i}", 0) for i in range(12)}
    children.run(kb, "build", held)
    for edition in range(3):
        held |= {f"d{i}": text(f"d{i}", edition + 1) for i in range(5)}
        children.run(kb, "add", held)
        ended = on_a_full_disk(children, 0, kb, "vacuum")
        assert ended.error is None
        assert ended.said
        check(kb, [held])


def test_a_question_on_a_full_disk_is_answered_or_refused_in_a_sentence(
    disk: Path, children: Forks
) -> None:
    kb = disk / "kb"
    children.run(kb, "build", {f"d{i}": text(f"d{i}", 0) for i in range(12)})
    for room in ROOM:
        ended = on_a_full_disk(children, room, kb, "query", word("d7", 0))
        if ended.error is None:
            assert word("d7", 0) in ended.said[0]


def version(kb: Path) -> int:
    store = LatentStore.open(kb / "store")
    store.close()
    return store.version
