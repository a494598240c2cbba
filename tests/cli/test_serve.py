"""lclm-rag serve: a process that starts, answers and ends as it should."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from lclm_rag import KnowledgeBase
from lclm_rag.cli.serve import _locations
from lclm_rag.serving.keys import add_key, remove_key
from support.commands import Run

LIMIT = 120
"""Seconds after which a process is taken to hang."""


@pytest.fixture(scope="module")
def kb(knowledge_base: KnowledgeBase) -> Path:
    return Path(str(knowledge_base.path))


class Service:
    """A running `lclm-rag serve`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._there = threading.Event()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        assert self._there.wait(LIMIT), self.lines
        assert process.poll() is None, self.lines
        (self.url,) = re.findall(r" at (http://\S+)/v1", self.lines[0])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("Ask:"):
                self._there.set()
        self._there.set()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(LIMIT)
        self._reading.join(LIMIT)
        return code


@contextmanager
def serving(*arguments: str | Path, **environment: str) -> Iterator[Service]:
    command = [sys.executable, "-m", "lclm_rag.cli", "serve", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        # Shells start background jobs, these tests among them, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield Service(process)
    finally:
        process.kill()
        process.wait()


def asking(question: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 8}
    return {"model": "towns", **body, **fields}


def alive(connection: HTTPConnection) -> bool:
    """Whether the service answers over a connection, which is not opened anew if it was closed."""
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    response.read()
    return response.status == 200


@pytest.mark.slow
def test_it_starts_answers_and_finishes_what_runs_when_it_is_ended(
    kb: Path, endless_question: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    key, other = add_key(keys, "alice"), add_key(keys, "bob")
    with serving(
        "--kb", f"towns={kb}", "--kb", kb, "--api-keys", keys, "--max-tokens", "1500"
    ) as service:
        url, headers = service.url, {"Authorization": f"Bearer {key}"}
        assert service.lines[0] == f"Serving towns, kb at {url}/v1"
        assert service.lines[1] == f"Page: {url}/"
        assert service.lines[2].startswith(f"Ask:  curl {url}/v1/chat/completions -H ")
        assert "Bearer $KEY" in service.lines[2]
        assert httpx.get(f"{url}/").headers["content-type"].startswith("text/html")
        idle = HTTPConnection(url.removeprefix("http://"))
        assert alive(idle)
        idle_since = time.monotonic()
        assert httpx.get(f"{url}/v1/models").status_code == 401
        models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
        assert [model["id"] for model in models] == ["towns", "kb"]
        assert httpx.get(f"{url}/readyz", timeout=60).json() == {"status": "ready"}
        question = "Who is the mayor of the town?"
        asked = httpx.post(f"{url}/v1/chat/completions", json=asking(question), headers=headers)
        assert asked.json()["citations"]
        assert asked.headers.get("server") is None

        # A key that is removed is refused, without a restart.
        removed = {"Authorization": f"Bearer {other}"}
        assert httpx.get(f"{url}/v1/models", headers=removed).status_code == 200
        remove_key(keys, "bob")
        for _ in range(600):
            if httpx.get(f"{url}/v1/models", headers=removed).status_code == 401:
                break
            time.sleep(0.05)
        else:
            pytest.fail("A removed key may still ask.")

        # uvicorn would close an idle connection after five seconds, perhaps just when a client uses it again.
        time.sleep(max(0.0, idle_since + 6 - time.monotonic()))
        assert alive(idle)
        idle.close()

        long = asking(endless_question, stream=True, max_tokens=1500, context="none")
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=long, headers=headers, timeout=LIMIT
        ) as running:
            lines = running.iter_lines()
            while "content" not in next(lines):
                pass
            service.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["usage"]["completion_tokens"] == 1500
        assert service.ended() == 143
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz")
    requests = [json.loads(line) for line in service.lines if line.startswith("{")]
    assert requests[-1]["generated"] == 1500
    assert {line.get("key") for line in requests} == {None, "alice", "bob"}
    assert question not in "\n".join(service.lines)
    assert not any("Traceback" in line for line in service.lines), service.lines


@pytest.mark.slow
def test_it_answers_when_nobody_takes_its_log_any_more(kb: Path) -> None:
    command = [sys.executable, "-m", "lclm_rag.cli", "serve", "--port", "0", "--kb", str(kb)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            (url,) = re.findall(r" at (http://\S+)/v1", process.stderr.readline())
            while not process.stderr.readline().startswith("Ask:"):
                pass
            process.stderr.close()
            for _ in range(2):
                assert httpx.get(f"{url}/v1/models", timeout=LIMIT).status_code == 200
        finally:
            process.kill()


@pytest.mark.slow
def test_what_takes_too_long_is_ended(kb: Path, endless_question: str) -> None:
    arguments = ("--grace", "0", "--max-tokens", "100000")
    with serving(*arguments, LCLM_RAG_KB=str(kb)) as service:
        assert service.lines[0].startswith("Serving kb at ")
        fields = {"model": "kb", "stream": True, "max_tokens": 8000, "context": "none"}
        body = asking(endless_question, **fields)
        url = f"{service.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=LIMIT) as running:
            lines = running.iter_lines()
            while "content" not in next(lines):
                pass
            assert service.end(signal.SIGINT) == 130
    assert service.lines[-1] == "Interrupted."
    assert not any("Traceback" in line for line in service.lines), service.lines


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("--kb", "{kb}", "--host", "0.0.0.0"),
            2,
            "Other machines can reach 0.0.0.0: name the keys",
        ),
        (("--kb", "{kb}", "--host", "::"), 2, "Other machines can reach ::: name the keys"),
        (("--kb", "{kb}", "--host", "rag.example"), 2, "--no-auth if everybody may"),
        (("--kb", "{kb}", "--api-keys", "{keys}", "--no-auth"), 2, "exclude each other"),
        (("--kb", "{kb}", "--api-keys", "{tmp}/none"), 2, "does not exist"),
        (("--kb", "{kb}", "--api-keys", "{kb}/kb.json"), 1, "is no file of API keys"),
        ((), 2, "Name the knowledge bases to serve with --kb"),
        (("--kb", "a={kb}", "--kb", "a={tmp}"), 2, "Two knowledge bases are named 'a'"),
        (("--kb", "{tmp}"), 1, "is not a knowledge base"),
        (("--kb", "{kb}", "--port", "{taken}"), 1, "Port {taken} of 127.0.0.1 cannot be served"),
    ],
)
def test_an_error_is_one_sentence(
    run: Run,
    kb: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.delenv("LCLM_RAG_KB", raising=False)
    keys, empty = tmp_path / "keys.json", tmp_path / "empty"
    empty.mkdir()
    add_key(keys, "alice")
    with socket.create_server(("127.0.0.1", 0)) as other:
        facts = {"kb": kb, "keys": keys, "tmp": empty, "taken": other.getsockname()[1]}
        # Port 0 first: of two, the last one counts.
        filled = [argument.format(**facts) for argument in ("--port", "0", *arguments)]
        found, out, err = run("serve", *filled)
    assert (found, out) == (code, "")
    assert message.format(**facts) in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("kbs", "locations"),
    [
        (["manuals=kb/", "wiki=s3://b/kb"], {"manuals": "kb/", "wiki": "s3://b/kb"}),
        (["some/notes/"], {"notes": "some/notes/"}),
        (["s3://bucket/deep/notes/"], {"notes": "s3://bucket/deep/notes/"}),
        (["a=b=c"], {"a": "b=c"}),
    ],
)
def test_names_of_knowledge_bases(kbs: list[str], locations: dict[str, str]) -> None:
    assert _locations(kbs) == locations


@pytest.mark.parametrize("kb", ["a b=kb", "=kb", "kb=", "my notes", "s3://bucket/a=b", "ü=kb"])
def test_names_that_are_refused(kb: str) -> None:
    with pytest.raises(click.BadParameter):
        _locations([kb])


@pytest.mark.parametrize("module", ["uvicorn", "fastapi", "sse_starlette", "prometheus_client"])
def test_without_its_extra_it_says_so_in_one_line(kb: Path, module: str) -> None:
    arguments = ["serve", "--kb", str(kb)]
    code = f"import sys; sys.modules[{module!r}] = None; from lclm_rag.cli import main; main({arguments})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    (message,) = done.stderr.splitlines()
    assert message.startswith(f"Error: Serving needs {module}")
    assert "pip install 'lclm-rag[serve]'" in message
