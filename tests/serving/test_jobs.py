"""Jobs: changes that take time, seen by who asked for them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from lclm_rag import KnowledgeBase
from lclm_rag.serving import Limits
from support.processes import LIMIT
from support.services import Serve, bearer, ended, keys, until

pytestmark = pytest.mark.slow  # All of them, half a minute.

MILL = {"id": "mill", "text": "The mill grinds rye."}


def lines(count: int) -> bytes:
    """A JSONL file."""
    return b"".join(
        b'{"id": "d%d", "text": "Number %d is in the register of wells."}\n' % (i, i)
        for i in range(count)
    )


def events_of(client: httpx.Client, job: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The events of a job, until they end."""
    found, kind = [], ""
    with client.stream("GET", f"jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((kind, json.loads(line.removeprefix("data: "))))
    return found


def test_an_upload_is_a_job_that_can_be_followed(client: httpx.Client) -> None:
    accepted = client.put("documents?filename=wells.jsonl", content=lines(700))
    job = accepted.json()
    assert (accepted.status_code, accepted.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (job["state"], job["operation"], job["model"]) == ("queued", "add", "towns")
    seen = events_of(client, job)
    assert [kind for kind, _ in seen] == ["progress"] * (len(seen) - 1) + ["end"]
    counts = [state["documents"] for _, state in seen]
    assert counts == sorted(counts)
    assert any(0 < count < 700 for count in counts)
    last = seen[-1][1]
    assert (last["state"], last["documents"], last["passages"]) == ("done", 700, 700)
    assert last["report"]["added"] == 700
    assert last["error"] is None
    assert client.get(f"jobs/{job['id']}").json() == last
    assert events_of(client, job) == [("end", last)]
    assert client.get("models/towns").json()["documents"] == 714


def test_jobs_are_done_in_their_order(client: httpx.Client) -> None:
    asked = [
        client.put("documents?filename=wells.jsonl", content=lines(300)).json(),
        client.put("documents", json=MILL).json(),
        client.delete("documents/mill?wait=false").json(),
        client.put("documents", json={**MILL, "id": "dam"}).json(),
    ]
    versions = [ended(client, job)["report"]["version"] for job in asked]
    assert versions == [2, 3, 4, 5]
    listed = client.get("jobs").json()["data"]
    assert [job["id"] for job in listed] == [job["id"] for job in reversed(asked)]


def test_a_job_that_fails_says_why(client: httpx.Client) -> None:
    job = client.put("documents?filename=a.jsonl", content=b'{"id": "a"}\n').json()
    failed = ended(client, job)
    assert failed["state"] == "failed"
    assert failed["error"].startswith("a.jsonl, line 1: no field 'text'")
    assert failed["report"] is None


def test_jobs_are_of_the_key_that_made_them(serve: Serve) -> None:
    holders = keys(anna={"write": True}, bert={"write": True})
    client = serve(keys=holders, writable=True, key="anna")
    job = client.put("documents?wait=true", json=MILL).json()
    for route in (f"jobs/{job['id']}", f"jobs/{job['id']}/events"):
        assert client.get(route).status_code == 200
        foreign = client.get(route, headers=bearer("bert"))
        missing = client.get(route.replace("job-", "job-0"), headers=bearer("bert"))
        assert foreign.status_code == missing.status_code == 404
        assert foreign.text.replace("job-", "job-0") == missing.text
        assert client.get(route, headers=bearer("nobody")).status_code == 401
    assert client.get("jobs", headers=bearer("bert")).json()["data"] == []
    assert [found["id"] for found in client.get("jobs").json()["data"]] == [job["id"]]


def test_another_writer_is_waited_for_while_questions_go_on(
    client: httpx.Client, copied_kb: KnowledgeBase
) -> None:
    with KnowledgeBase.open(copied_kb.path) as other:
        with other._writing("add"):
            job = client.put("documents", json=MILL).json()
            until(lambda: client.get(f"jobs/{job['id']}").json()["state"] == "running")
            found = client.post("search", json={"query": "ferry"}).json()["data"]
            assert len(found) == 1
            asked = {"model": "towns", "messages": [{"role": "user", "content": "The ferry?"}]}
            answer = client.post("chat/completions", json={**asked, "max_tokens": 4})
            assert answer.status_code == 200
            assert client.get(f"jobs/{job['id']}").json()["state"] == "running"
        assert ended(client, job)["state"] == "done"


def test_another_writer_that_does_not_end(serve: Serve, copied_kb: KnowledgeBase) -> None:
    client = serve(writable=True, limits=Limits(writer_wait=0.1))
    with KnowledgeBase.open(copied_kb.path) as other, other._writing("add"):
        refused = client.put("documents?wait=true", json=MILL)
        job = client.delete("documents/report?wait=false").json()
        sentence = "Another process is writing to 'towns'; try again when it is done."
        assert ended(client, job)["error"] == sentence
    assert refused.status_code == 409
    assert refused.json()["error"]["message"] == sentence
    assert int(refused.headers["retry-after"]) > 0
    assert client.put("documents?wait=true", json=MILL).status_code == 200


def test_who_waits_too_long_gets_the_job_as_it_is(serve: Serve, copied_kb: KnowledgeBase) -> None:
    client = serve(writable=True, limits=Limits(job_wait=0.05))
    with KnowledgeBase.open(copied_kb.path) as other, other._writing("add"):
        waited = client.put("documents?wait=true", json=MILL)
    assert waited.status_code == 202
    assert ended(client, waited.json())["state"] == "done"


def test_only_so_many_jobs_wait(serve: Serve, copied_kb: KnowledgeBase) -> None:
    client = serve(writable=True, limits=Limits(jobs=2))
    with KnowledgeBase.open(copied_kb.path) as other, other._writing("add"):
        jobs = [client.put("documents", json={**MILL, "id": name}).json() for name in "ab"]
        for refused in (client.put("documents", json=MILL), client.delete("documents/report")):
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0
            assert "2 changes wait already" in refused.json()["error"]["message"]
    assert [ended(client, job)["state"] for job in jobs] == ["done", "done"]
    assert client.put("documents?wait=true", json=MILL).status_code == 200


def test_only_so_many_ended_jobs_are_kept(serve: Serve) -> None:
    client = serve(writable=True, limits=Limits(jobs_kept=2))
    jobs = [
        client.put("documents?wait=true", json={**MILL, "id": name}).json()["id"] for name in "abc"
    ]
    assert [job["id"] for job in client.get("jobs").json()["data"]] == jobs[:0:-1]
    assert client.get(f"jobs/{jobs[0]}").status_code == 404


SERVICE = """
import sys, uvicorn
from lclm_rag.serving import ServedBase, create_app
from lclm_rag import KnowledgeBase

with KnowledgeBase.open(sys.argv[1], device="cpu") as kb:
    app = create_app({"towns": ServedBase("towns", kb)}, writable=True)
    kb.compressor
    uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.mark.slow
def test_a_service_that_is_stopped_leaves_nothing_half_done(built: Path, tmp_path: Path) -> None:
    kb, uploads = shutil.copytree(built, tmp_path / "kb"), tmp_path / "uploads"
    uploads.mkdir()
    port = free_port()
    command = [sys.executable, "-c", SERVICE, str(kb), str(port)]
    environment = {**os.environ, "TMPDIR": str(uploads)}
    with (
        subprocess.Popen(command, env=environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/v1/", timeout=LIMIT) as client,
    ):
        try:
            until(lambda: process.poll() is None and listens(client))
            job = client.put("documents?filename=wells.jsonl", content=lines(60_000)).json()
            queued = client.put("documents", json=MILL).json()
            until(lambda: client.get(f"jobs/{job['id']}").json()["passages"])
            with client.stream("GET", f"jobs/{queued['id']}/events") as waiting:
                process.terminate()
                told = waiting.read().decode()
            process.wait(LIMIT)
        finally:
            process.kill()
    last = json.loads(told.strip().rpartition("data: ")[2])
    assert last["state"] == "failed"
    assert last["error"] == (
        "The service was stopped before the job was done; 'towns' is as before."
    )
    assert not list(uploads.glob("lclm-rag-upload-*"))
    with KnowledgeBase.open(kb) as opened:
        assert opened.store.version == 1
        assert opened.retrieve("ferry")[0].text == "The ferry to Isola leaves at noon."


def listens(client: httpx.Client) -> bool:
    try:
        return client.get("models").status_code == 200
    except httpx.TransportError:
        return False
