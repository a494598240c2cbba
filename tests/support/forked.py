"""A process that has imported everything and loaded the encoder, and forks a child for each operation that a
test asks for: to be killed, to be hit by an error, or to run.

`python tests/support/forked.py SOCKET` is that process.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Small, so that a small knowledge base has several of each.
FRAGMENT_BYTES = 12_000
MERGED_BYTES = 30_000
PASSAGE_TOKENS = 48
PASSAGES_AT_ONCE = 6


@dataclass
class Ended:
    """How an operation ended.

    done: it ran to its end, its knowledge base closed. acknowledged: it had returned to its caller.
    said: what it returned. error: class and message of what it raised. calls: how often it came to each place
    where a fault can hit it (`_Faults`).
    """

    done: bool = False
    acknowledged: bool = False
    said: Any = None
    error: tuple[str, str] | None = None
    seconds: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)


class Child:
    """An operation on its way, in a process of its own."""

    def __init__(self, address: str, request: dict[str, Any]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self._lines = self._socket.makefile("rw")
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        self.pid: int = json.loads(self._lines.readline())["pid"]

    def kill(self) -> None:
        """It lives until `wait` at least, so that the pid is its own."""
        os.kill(self.pid, signal.SIGKILL)

    def hear(self) -> Any:
        """What it says next; None where it has ended."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def wait(self) -> Ended:
        ended = Ended()
        while not ended.done and (line := self.hear()) is not None:
            assert "failed" not in line, line["failed"]
            ended = Ended(**{**vars(ended), **line})
        self._lines.close()
        self._socket.close()
        while Path(f"/proc/{self.pid}").exists():  # Until then it may hold locks.
            time.sleep(0.001)
        return ended


@dataclass(frozen=True)
class Forks:
    """Starts children."""

    address: str

    def start(self, kb: Path, operation: str, *arguments: Any, **fault: Any) -> Child:
        """fault: see `_Faults`."""
        return Child(
            self.address,
            {"kb": str(kb), "operation": operation, "arguments": arguments, "fault": fault},
        )

    def run(self, kb: Path, operation: str, *arguments: Any, **fault: Any) -> Ended:
        return self.start(kb, operation, *arguments, **fault).wait()


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    address = str(folder / "socket")
    command = [sys.executable, __file__, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield Forks(address)
        finally:
            process.terminate()


# --- in the process that forks, and in its children ----------------------------------------------


class _Faults:
    """Counts the calls that change the folder of a knowledge base, and lets the chosen one not happen.

    A place is a call and a part of the folder: "os.link store/manifests". at, number: the place, and which
    call there, from 1. action: "kill"; an errno, "ENOSPC"; or "interrupt", as Ctrl-C does.
    """

    def __init__(
        self, kb: Path, at: str | None = None, number: int = 0, action: str = "kill"
    ) -> None:
        self.calls: Counter[str] = Counter()
        self._kb = os.fspath(kb)
        self._at = (at, number)
        self._action = action
        sys.addaudithook(self._heard)
        for name in ("fsync", "pwrite"):
            setattr(os, name, self._counted(f"os.{name}", getattr(os, name)))

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.link"):
            self._count(event, arguments[1])
        elif event in ("os.remove", "os.mkdir", "os.rmdir"):
            path, folder = arguments[0], arguments[-1]
            self._count(event, path if folder == -1 else f"{_path(folder)}/{path}")
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self._count(event, arguments[0])

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(descriptor: int, *arguments: Any) -> Any:
            self._count(name, _path(descriptor))
            return call(descriptor, *arguments)

        return counted

    def _count(self, call: str, path: Any) -> None:
        if not isinstance(path, str | os.PathLike) or self._kb not in os.fspath(path):
            return
        parts = os.fspath(path).removeprefix(self._kb).strip("/").split("/")
        # What is made up or a process id stands after a hyphen.
        place = f"{call} {'/'.join(part.partition('-')[0] for part in parts[:2])}"
        self.calls[place] += 1
        if (place, self.calls[place]) == self._at:
            if self._action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._action == "interrupt":
                raise KeyboardInterrupt
            raise OSError(getattr(errno, self._action), os.strerror(getattr(errno, self._action)))


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _operation(kb: Path, operation: str, arguments: list[Any], say: Callable[..., None]) -> None:
    from dataclasses import asdict

    from lclm_rag import Document, KnowledgeBase

    def documents(texts: dict[str, str]) -> list[Document]:
        return [Document(name, text, {"kind": "report"}) for name, text in texts.items()]

    if operation == "build":
        opened = KnowledgeBase.create(kb, passage_tokens=PASSAGE_TOKENS, device="cpu", resume=True)
    else:
        opened = KnowledgeBase.open(kb, device="cpu")
    with opened:
        opened.__dict__["compressor"] = _compressor()
        if operation == "hold":
            with opened._writing("add"):
                say(said="holding")
                _wait_for(arguments[0])
        said: Any = None
        match operation:
            case "build" | "add":
                said = asdict(opened.add(documents(arguments[0])))
            case "sync":
                said = asdict(opened.sync(documents(arguments[0])))
            case "delete":
                said = opened.delete(arguments[0])
            case "compact":
                opened.compact()
            case "convert":
                opened.convert(arguments[0])
            case "vacuum":
                said = opened.vacuum().removed
            case "query":
                said = [hit.text for hit in opened.retrieve(arguments[0], 1)]
            case "read":
                said = _read_until(opened, *arguments)
        say(acknowledged=True, said=said)


def _wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.01)


def _read_until(first: Any, stop: str) -> list[int]:
    """Read everything, over and over: newly opened, and from the version that was opened first. Returns the
    generations that were seen."""
    from lclm_rag import KnowledgeBase

    begun = _generation(first)
    seen = {begun}
    while not Path(stop).exists():
        with KnowledgeBase.open(first.path, device="cpu") as opened:
            seen.add(_generation(opened))
        assert _generation(first) == begun
    assert _generation(first) == begun
    return sorted(seen)


def _generation(opened: Any) -> int:
    """Of the documents in a knowledge base: all are of one, and are found by words that only they have."""
    import numpy as np

    found = set()
    for name in opened.store.document_ids(np.empty(0, np.uint64)):
        rows = opened.store.read(opened.store.document_keys(name))
        word = "".join(row.passage.text for row in rows).partition("edition is ")[2].split(".")[0]
        (hit,) = opened.retrieve(word, 1)
        assert (hit.key.document_id, word in hit.text) == (name, True)
        found.add(int(word.rpartition("x")[2]))
    (generation,) = found
    return generation


_loaded: list[Any] = []


def _compressor() -> Any:
    from lclm_rag.compression import Compressor

    if not _loaded:
        _loaded.append(Compressor.from_pretrained("bundled", device="cpu"))
    return _loaded[0]


def _serve(connection: socket.socket) -> None:
    lines = connection.makefile("rw")
    request = json.loads(lines.readline())

    def say(**facts: Any) -> None:
        lines.write(json.dumps(facts) + "\n")
        lines.flush()

    from lclm_rag.errors import LclmRagError

    faults = _Faults(Path(request["kb"]), **request["fault"])
    say(pid=os.getpid())
    error = None
    start = time.perf_counter()
    try:
        _operation(Path(request["kb"]), request["operation"], request["arguments"], say)
    except (LclmRagError, OSError, KeyboardInterrupt) as raised:
        error = (type(raised).__name__, str(raised))
    except BaseException:
        say(failed=traceback.format_exc())
    say(done=True, error=error, seconds=time.perf_counter() - start, calls=faults.calls)
    lines.readline()


def _main(address: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(1)
    import lclm_rag.indexing.session
    import lclm_rag.ingestion.passages
    import lclm_rag.store.maintenance
    import lclm_rag.store.writer

    lclm_rag.ingestion.passages._PASSAGES_AT_ONCE = PASSAGES_AT_ONCE
    lclm_rag.ingestion.passages._DOCUMENTS_AT_ONCE = PASSAGES_AT_ONCE
    lclm_rag.store.writer.FRAGMENT_BYTES = FRAGMENT_BYTES
    lclm_rag.store.writer.MERGED_BYTES = MERGED_BYTES
    lclm_rag.store.maintenance.MERGED_BYTES = MERGED_BYTES
    _compressor().compress(["Once, so that nothing is left to be loaded."])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                _serve(connection)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    _main(sys.argv[1])
