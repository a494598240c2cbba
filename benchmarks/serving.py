"""What the service costs and bears: `lclm-rag serve`'s application, one engine, one run.

\b
    python benchmarks/serving.py                    # ten minutes on two cores
    python benchmarks/serving.py --clients 1,8 --requests 500 --gone 30     # a minute

The service runs in this process, its clients in another one. Measured are, in this order:

\b
load       questions a second and time to the first word (streams), from latents and from pasted text
overhead   seconds from question to answer of `kb.aquery` and over HTTP, medians with 32 at once: with the
           engine, which shares the cores with service and clients, and with a decoder that answers after
           0.2 seconds without using them, as one on a GPU or a server does. Each client waits up to 0.2
           seconds between its questions, so that they do not come all at once
gone       clients that go away midway: what is left running afterwards
version    a new version committed while questions come: how many failed, and when it was served
memory     of the service's process, before and after many requests

The bundled checkpoint answers questions about 400 fact sheets, greedily.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
import uvicorn
from shared import machine, numbers, write_results

from lclm_rag import Completion, Document, KnowledgeBase, Sampling, SoftPrompt
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import Decoder, Outcome
from lclm_rag.decoding.decoder import Finished
from lclm_rag.evaluation.datasets.fact_sheets import fact_sheets, held_out_questions
from lclm_rag.serving import Limits, ServedBase, create_app, open_bases

CONTEXTS = ("latents", "text")
OVERHEAD_CLIENTS = 32
ELSEWHERE = 0.2
PAUSE = 0.2
SHORT = 12


@dataclass(frozen=True)
class Result:
    """One figure, or several that belong together.

    what: see the module. clients: at once. values: seconds, counts or bytes, by name.
    """

    what: str
    context: str
    clients: int
    values: dict[str, float]


@click.command(help=__doc__)
@click.option("--clients", default="1,8,32,128", show_default=True, callback=numbers)
@click.option("--requests", default=10_000, show_default=True, help="For the memory.")
@click.option("--gone", default=300, show_default=True, help="Clients that go away.")
@click.option("--decoder", default="vllm", show_default=True)
@click.option("--out", default="benchmarks/results/serving", show_default=True, type=Path)
@click.option("--as-clients", hidden=True)
def main(
    clients: list[int], requests: int, gone: int, decoder: str, out: Path, as_clients: str | None
) -> None:
    if as_clients is not None:  # The other process.
        print(json.dumps(asyncio.run(_as_clients(json.loads(as_clients)))))
        return
    options: dict[str, Any] = {}
    if decoder == "vllm":
        options = {"max_num_seqs": 128, "kv_cache_memory_bytes": 2**30}
    with tempfile.TemporaryDirectory() as folder:
        sheets = list(itertools.islice(fact_sheets(seed=2026, held_out=True), 400))
        with KnowledgeBase.create(Path(folder) / "kb") as kb:
            kb.add(sheet.document for sheet in sheets)
        questions = [q.question for q in held_out_questions(200, sheets, seed=2026)]
        location = str(Path(folder) / "kb")
        bases = open_bases({"sheets": location}, decoder=decoder, decoder_options=options)
        kb = bases["sheets"].kb
        app = create_app(bases, limits=Limits(in_flight=100_000))
        results: list[Result] = []

        def note(what: str, context: str, at_once: int, values: dict[str, float]) -> None:
            results.append(Result(what, context, at_once, values))
            print(what, context, at_once, json.dumps(values), flush=True)

        with _served(app) as url:
            ask = partial(_ask, url=url, questions=questions)
            for context in CONTEXTS:
                ask(way="stream", context=context, clients=8, count=40)  # To warm up.
                for at_once in clients:
                    got = ask(
                        way="stream", context=context, clients=at_once, count=max(100, 4 * at_once)
                    )
                    note("load", context, at_once, _load(got))
            note("overhead, engine", "latents", OVERHEAD_CLIENTS, _overhead(kb, questions, ask))
            ask(way="gone", context="latents", clients=100, count=gone)
            note("gone", "latents", 100, {"left": float(_left(kb)), "clients": float(gone)})
            note("version", "latents", 8, _version(location, kb, ask))
            process = psutil.Process()
            ask(way="whole", context="latents", clients=32, count=200)
            before = process.memory_info().rss
            ask(way="whole", context="latents", clients=32, count=requests)
            after = process.memory_info().rss
            values = {"before": float(before), "after": float(after), "requests": float(requests)}
            note("memory", "latents", 32, values)
        kb.close()
        kb = KnowledgeBase.open(location, decoder=_Elsewhere(kb.checkpoint))
        with _served(create_app({"sheets": ServedBase("sheets", kb)})) as url:
            ask = partial(_ask, url=url, questions=questions)
            seconds = _overhead(kb, questions, ask)
            note("overhead, decoder elsewhere", "latents", OVERHEAD_CLIENTS, seconds)
        kb.close()
    write_results(out, {"machine": machine(), "decoder": decoder}, results)


class _Elsewhere(Decoder):
    """A decoder that answers after a while, and needs no processor of this machine for it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.context_length = checkpoint, checkpoint.context_length

    async def acomplete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Outcome]:
        await asyncio.sleep(ELSEWHERE)
        return [Completion("Yes.", [5, 2], "stop", ELSEWHERE, ELSEWHERE) for _ in prompts]

    def complete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Outcome]:
        raise NotImplementedError

    def stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
    ) -> Generator[str]:
        raise NotImplementedError


@contextmanager
def _served(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def _ask(**how: Any) -> dict[str, Any]:
    """Have the other process ask."""
    command = [sys.executable, __file__, "--as-clients", json.dumps(how)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _overhead(
    kb: KnowledgeBase, questions: list[str], ask: Callable[..., dict[str, Any]]
) -> dict[str, float]:
    count = 12 * OVERHEAD_CLIENTS
    for _ in range(2):  # The first is to warm up.
        direct = asyncio.run(_direct(kb, questions, OVERHEAD_CLIENTS, count))
        http = ask(
            way="whole", context="latents", clients=OVERHEAD_CLIENTS, count=count, pause=PAUSE
        )
    seconds = {"aquery": statistics.median(direct), "http": statistics.median(http["seconds"])}
    return {**seconds, "overhead": seconds["http"] - seconds["aquery"]}


def _load(got: dict[str, Any]) -> dict[str, float]:
    first = sorted(got["first"])
    return {
        "per_second": len(got["seconds"]) / got["wall"],
        "first_median": statistics.median(first),
        "first_p95": first[int(0.95 * (len(first) - 1))],
        "failed": float(got["failed"]),
    }


async def _direct(kb: KnowledgeBase, questions: list[str], at_once: int, count: int) -> list[float]:
    seconds: list[float] = []

    async def one(number: int) -> None:
        started = time.perf_counter()
        question = questions[number % len(questions)]
        await kb.aquery(question, 4, expand="never", sampling=Sampling(max_tokens=SHORT))
        seconds.append(time.perf_counter() - started)

    await _workers(one, at_once, count, PAUSE)
    return seconds


async def _workers(
    one: Callable[[int], Awaitable[None]], at_once: int, count: int, pause: float
) -> None:
    left = iter(range(count))

    async def worker(chance: random.Random) -> None:
        for number in left:
            await asyncio.sleep(chance.uniform(0, pause))
            await one(number)

    await asyncio.gather(*(worker(random.Random(number)) for number in range(at_once)))


def _left(kb: KnowledgeBase) -> int:
    """The requests that are open in the engine, after two seconds."""
    time.sleep(2)
    engine = getattr(kb.decoder, "engine", None)
    return 0 if engine is None else int(engine.get_num_unfinished_requests())


def _version(
    location: str, kb: KnowledgeBase, ask: Callable[..., dict[str, Any]]
) -> dict[str, float]:
    """Commit a version from another process's place while questions come."""
    got: dict[str, Any] = {}
    asking = threading.Thread(
        target=lambda: got.update(ask(way="whole", context="latents", clients=8, count=1500))
    )
    asking.start()
    time.sleep(3)
    with KnowledgeBase.open(location) as writer:
        writer.add([Document("new", "The mayor of Newtown is Nadir Novak.")])
        committed, version = time.perf_counter(), writer.store.version
    while kb.store.version < version:
        time.sleep(0.01)
    served = time.perf_counter() - committed
    asking.join()
    return {"failed": float(got["failed"]), "requests": 1500.0, "served_after": served}


# --- the other process -----------------------------------------------------------------------------


async def _as_clients(how: dict[str, Any]) -> dict[str, Any]:
    seconds: list[float] = []
    first: list[float] = []
    failed = 0
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=how["url"], timeout=600, limits=limits) as client:

        async def one(number: int) -> None:
            nonlocal failed
            question = how["questions"][number % len(how["questions"])]
            body = {
                "model": "sheets",
                "messages": [{"role": "user", "content": question}],
                "top_k": 4,
                "expand": "never",
                "context": how["context"],
                "max_tokens": SHORT,
                "stream": how["way"] != "whole",
            }
            if how["way"] == "gone":
                body |= {"max_tokens": 4000, "messages": [{"role": "user", "content": "Ω" * 30}]}
                body |= {"context": "none"}
            started = time.perf_counter()
            try:
                if how["way"] == "whole":
                    answer = await client.post("/v1/chat/completions", json=body)
                    failed += answer.status_code != 200
                else:
                    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                        failed += answer.status_code != 200
                        begun = False
                        async for line in answer.aiter_lines():
                            if not begun and '"content": "' in line and '"content": ""' not in line:
                                begun = True
                                first.append(time.perf_counter() - started)
                                if how["way"] == "gone":
                                    return
            except httpx.HTTPError:
                failed += 1
            seconds.append(time.perf_counter() - started)

        began = time.perf_counter()
        await _workers(one, how["clients"], how["count"], how.get("pause", 0.0))
        wall = time.perf_counter() - began
    return {"seconds": seconds, "first": first, "failed": failed, "wall": wall}


if __name__ == "__main__":
    main()
