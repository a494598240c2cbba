"""Locks that somebody holds for too long: who it is, and no waiting without a word or an end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from lclm_rag import Document, KnowledgeBase, LockedError
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.storage import locks
from lclm_rag.storage.locks import gate, holder
from lclm_rag.store.locks import write_lock
from support.commands import Run

GATES = ("store/readers/gate", "index/private/gate")

# Says that it has the lock, and stops itself.
_HOLD = """
import fcntl, os, signal, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextmanager
def stopped_holder(path: Path) -> Iterator[int]:
    """The pid of a stopped process that has locked a file."""
    command = [sys.executable, "-c", _HOLD, str(path), "a secret argument"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_WORD_AFTER", 0.05)
    monkeypatch.setattr(locks, "_GATE_SECONDS", 0.1)


@pytest.fixture
def kb(tmp_path: Path, decoder: TransformersDecoder) -> Path:
    with KnowledgeBase.create(tmp_path / "kb", decoder=decoder) as kb:
        kb.add([Document("town", "zqaw is a town.")])
    return tmp_path / "kb"


@pytest.mark.parametrize("name", GATES)
def test_a_gate_that_a_stopped_process_holds_ends_a_command_with_its_pid_and_what_to_do(
    kb: Path, run: Run, impatient: None, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with stopped_holder(kb / name) as pid:
        code, out, err = run("search", "zqaw", "--kb", kb)
        assert (code, out) == (4, "")
        said = f"by another process (pid {pid}), {_program(pid)}, which is stopped: kill -CONT {pid} lets it"
        assert f"{kb / name}, which nobody needs for longer than a moment, has been locked" in err
        assert said in err
        assert "secret" not in err
        # And it was said before that there is something to wait for.
        assert f"Waiting for {kb / name}, which is locked {said}" in caplog.text
    assert run("search", "zqaw", "--kb", kb)[0] == 0


def test_a_writer_that_is_stopped_is_named(kb: Path, run: Run) -> None:
    with stopped_holder(kb / "store/lock") as pid:
        code, _, err = run("delete", "town", "--kb", kb)
        program = _program(pid)
    assert code == 4
    assert f"being written by another process (pid {pid}), {program}, which is stopped: kill" in err


def _program(pid: int) -> str:
    """The name of a process's program: python, or python3.11 by the link that it was started by."""
    return Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()).name


def test_a_gate_that_is_free_again_after_a_while_is_passed(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    held = FileLock(tmp_path / "gate", thread_local=False)
    held.acquire()

    class Releases(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            held.release()

    handler = Releases()
    logging.getLogger("lclm_rag.storage.locks").addHandler(handler)
    try:
        with gate(tmp_path):
            assert len(caplog.messages) == 1
    finally:
        logging.getLogger("lclm_rag.storage.locks").removeHandler(handler)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["/venv/bin/python3.12", "/venv/bin/lclm-rag", "query", "A secret?"], "lclm-rag query"),
        (["lclm-rag", "vacuum", "--kb", "secret"], "lclm-rag vacuum"),
        (["/usr/bin/python3", "/home/ada/nightly.py", "secret"], "nightly.py"),
        (["/usr/bin/python3", "-c", "secret"], "python3"),
        (["/usr/bin/flock", "/a/lock", "sleep"], "flock"),
        ([""], ""),
    ],
)
def test_the_program_that_holds_a_lock_is_named_and_no_arguments(
    arguments: list[str], shown: str
) -> None:
    assert locks._program(arguments) == shown


def test_a_lock_of_which_the_system_does_not_tell_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_local_holder", lambda path: None)  # As without /proc.
    assert holder(tmp_path / "gate") == "another process, on this machine or another"
    with write_lock(tmp_path, 0.0):
        noted = pytest.raises(LockedError, match=rf"by another process \(pid {os.getpid()}\); wait")
        with noted, write_lock(tmp_path, 0.0):
            pass
