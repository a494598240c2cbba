"""`lclm-rag mcp`, as a client that starts it sees it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from lclm_rag import Document, KnowledgeBase
from lclm_rag.cli.main import _run
from lclm_rag.connectors.mcp import TOP_K, _progress, mcp_server
from lclm_rag.errors import KnowledgeBaseError, PassageIndexError
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from support.commands import Run

COMMAND = [sys.executable, "-m", "lclm_rag.cli", "mcp", "--kb"]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


def client(kb: Path, *options: str) -> Client:
    return Client(StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], str(kb), *options]))


@pytest.fixture
def closed_kb(small_kb: KnowledgeBase) -> Path:
    """Five fact sheets and a document of several passages, for another process."""
    small_kb.close()
    return small_kb.path


@pytest.mark.slow
def test_an_agent_searches_asks_and_expands(
    small_kb: KnowledgeBase, sheets: list[FactSheet], caplog: pytest.LogCaptureFixture
) -> None:
    question = sheets[3].questions[0].question
    text = "".join(f"Sentence {i} is about zebras and lions. " for i in range(400))
    small_kb.add([Document("long", text, {"lang": "en", "year": 2021})])
    hits, wanted = small_kb.retrieve(question, 2), small_kb.query(question, 2)
    last = len(small_kb) - 6
    assert last >= 2
    small_kb.close()

    async def session() -> tuple[Any, ...]:
        async with client(small_kb.path, "--top-k", "2") as agent:

            async def call(tool: str, **arguments: Any) -> Any:
                result = await agent.call_tool(tool, arguments)
                assert not result.is_error, result.content
                # Clients of either kind get the same.
                assert json.loads(result.content[0].text) == result.structured_content
                return result.structured_content

            return (
                await call("search", query=question),
                await call("ask", question=question),
                await call("search", query="zebras", top_k=9, filters=["lang=en", "year>=2020"]),
                await call("search", query="zebras", filters=["year<2020"]),
                await call("expand", document_id="long", ordinal=1, before=1, after=99),
                await call("expand", document_id="long", ordinal=1),
                await agent.call_tool("ask", {"question": "why " * 20_000}),
                await call("fields"),
            )

    searched, answered, filtered, nothing, whole, one, refused, fields = asyncio.run(session())
    assert [p["text"] for p in searched["passages"]] == [hit.text for hit in hits]
    assert searched["passages"][0] == {
        "document_id": sheets[3].document.id,
        "ordinal": 0,
        "start": hits[0].start,
        "end": hits[0].end,
        "score": hits[0].score,
        "metadata": dict(sheets[3].document.metadata),
        "text": sheets[3].document.text,
    }
    assert answered["answer"] == wanted.text
    assert [s["document_id"] for s in answered["sources"]] == [
        hit.key.document_id for hit in wanted.sources
    ]
    assert sheets[3].document.text.startswith(answered["sources"][0]["excerpt"])
    assert answered["usage"]["latents"] == wanted.usage.latents
    assert {p["document_id"] for p in filtered["passages"]} == {"long"}
    assert nothing == {"passages": []}
    assert (whole["first_ordinal"], whole["last_ordinal"]) == (0, last)
    assert whole["text"] == text
    assert one["text"] == text[one["start"] : one["end"]]
    assert len(one["text"]) < len(text)
    assert fields["fields"][-1] == {"name": "year", "kinds": ["number"], "documents": 1}
    assert [field["name"] for field in fields["fields"]] == ["kind", "lang", "name", "year"]
    assert refused.is_error
    assert refused.content[0].text.endswith("Shorten it.")
    # As loading and running models does not write to stdout: the client logs what is no message.
    assert not caplog.records


def test_tools_say_what_they_take_and_errors_what_is_wrong(closed_kb: Path) -> None:
    wrong = [
        ("search", {"query": "x", "top_k": 0}, "top_k must be at least 1, not 0."),
        ("search", {"query": "x", "filters": ["nonsense"]}, "The filter 'nonsense' cannot be read"),
        ("search", {"query": " "}, "The question is empty."),
        ("expand", {"document_id": "nobody", "ordinal": 3}, "There is no passage nobody#3"),
        ("expand", {"document_id": "nobody", "ordinal": 3, "after": -1}, "cannot be negative"),
        ("search", {}, "search: query: Field required."),
        (
            "search",
            {"query": "x", "top_k": "many"},
            "search: top_k: Input should be a valid integer",
        ),
        (
            "search",
            {"query": "x", "topk": 3},
            "search has no argument 'topk'; it takes query, top_k, filters.",
        ),
        ("fields", {"of": "x", "k": 1}, "fields has no argument 'of', 'k'; it takes no arguments."),
        (
            "expand",
            {"document_id": "d", "ordinal": 0, "n" * 5_000: 1},
            "nnn…'; it takes document_id",
        ),
    ]

    async def session() -> tuple[Any, list[Any], Any]:
        async with client(closed_kb, "--top-k", "3") as agent:
            tools = (await agent.list_tools()).tools
            errors = [await agent.call_tool(tool, given) for tool, given, _ in wrong]
            return tools, errors, await agent.call_tool("search", {"query": "x"})

    tools, errors, still = asyncio.run(session())
    assert {tool.name for tool in tools} == {"search", "ask", "expand", "fields"}
    for tool in tools:
        assert tool.description
        assert tool.output_schema
        assert tool.annotations.read_only_hint
        assert tool.title
        assert tool.input_schema["additionalProperties"] is False
        for argument in tool.input_schema["properties"].values():
            assert len(argument["description"]) > len(argument["title"]) > 3
    (search,) = (tool for tool in tools if tool.name == "search")
    assert search.input_schema["properties"]["top_k"]["minimum"] == 1
    assert search.input_schema["properties"]["top_k"]["default"] == 3
    assert search.input_schema["required"] == ["query"]
    for (_, _, message), result in zip(wrong, errors, strict=True):
        assert result.is_error
        assert message in result.content[0].text
        assert len(result.content[0].text.splitlines()) == 1
    assert not still.is_error


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_an_agent_tells_servers_apart_and_hears_what_can_be_filtered(
    small_kb: KnowledgeBase, mode: str
) -> None:
    async def greeting(**options: Any) -> tuple[Any, str, set[str]]:
        async with Client(mcp_server(small_kb, **options), mode=mode) as agent:
            tools = {tool.description for tool in (await agent.list_tools()).tools}
            assert agent.server_info is not None
            assert agent.instructions is not None
            return agent.server_info, agent.instructions, tools

    async def both() -> list[Any]:
        return [
            await greeting(name="towns", description="Town guides of 2026"),
            await greeting(),
        ]

    (info, told, tools), (plain, of_itself, _) = asyncio.run(both())
    assert (info.name, info.description) == ("towns", "Town guides of 2026")
    assert told.startswith("towns: Town guides of 2026. 5 documents, 5 passages.")
    assert "`filters` can name kind (string), name (string); `fields`" in told
    assert all("Of towns: Town guides of 2026" in description for description in tools)
    assert plain.name == "kb"  # The folder's.
    assert of_itself.startswith("kb: A knowledge base of documents. 5 documents")


def test_it_follows_what_others_write(small_kb: KnowledgeBase) -> None:
    writer, path = small_kb, small_kb.path

    async def session() -> tuple[Any, ...]:
        with KnowledgeBase.open(path) as kb:
            server = mcp_server(kb)

            async def zebras(agent: Client) -> list[str]:
                found = await agent.call_tool("search", {"query": "zebras"})
                return [p["document_id"] for p in found.structured_content["passages"]]

            async with Client(server) as agent:
                before = await zebras(agent)
                writer.add([Document("savanna", "Zebras live here.", {"area": "east"})])
                after = await zebras(agent)
                writer.delete(["savanna"])
                gone = await zebras(agent)
            writer.add([Document("coast", "Seals live here.", {"depth": 3})])
            async with Client(server) as another:
                told = another.instructions
        with KnowledgeBase.open(path, version=2) as earlier:
            async with Client(mcp_server(earlier)) as agent:
                then = await zebras(agent)
        return before, after, gone, told, then

    before, after, gone, told, then = asyncio.run(session())
    assert (before, after, gone, then) == ([], ["savanna"], [], ["savanna"])
    assert "6 documents" in told
    assert "depth (number)" in told


def test_a_version_that_cannot_be_read_leaves_the_one_before(
    small_kb: KnowledgeBase,
    sheets: list[FactSheet],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> bool:
        raise PassageIndexError("the disk is full")

    monkeypatch.setattr(small_kb, "follow", fail)

    async def call() -> Any:
        async with Client(mcp_server(small_kb)) as agent:
            return await agent.call_tool("search", {"query": sheets[1].name, "top_k": 1})

    found = asyncio.run(call())
    assert found.structured_content["passages"][0]["document_id"] == sheets[1].document.id
    assert "The server stays at version 1: the disk is full" in caplog.text


def test_an_agent_sees_that_its_question_is_worked_on(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    question = sheets[3].questions[0].question
    reports: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, total, message))

    async def call() -> tuple[Any, Any]:
        async with Client(mcp_server(small_kb)) as agent:
            given = {"question": question}
            watched = await agent.call_tool("ask", given, progress_callback=on_progress)
            return watched, await agent.call_tool("ask", given)

    watched, unwatched = asyncio.run(call())
    wanted = small_kb.query(question)
    for result in (watched, unwatched):
        assert result.structured_content["answer"] == wanted.text
        assert result.structured_content["usage"]["positions"] == wanted.usage.positions
    assert "Answering" in [message for _, _, message in reports]
    seconds = [progress for progress, _, _ in reports]
    assert seconds == sorted(set(seconds))


def test_reports_of_progress_end_with_the_answer_whenever_that_is() -> None:
    class Listener:
        async def report_progress(self, progress: float, message: str) -> None:
            pass

    async def answers() -> None:
        for i in range(300):
            async with _progress(Listener()) as now:  # type: ignore[arg-type]
                for pause in (3, 5, 2):
                    now("Answering")
                    if i % pause == 0:
                        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(answers(), 60))


def test_a_server_without_a_name_or_with_too_many_passages_is_refused(
    small_kb: KnowledgeBase, run: Run
) -> None:
    for options, message in (
        ({"name": " "}, "The name of an MCP server cannot be empty"),
        ({"top_k": 0}, "top_k over MCP must be at least 1, not 0."),
        ({"top_k": 65}, "top_k over MCP must be at most 64, not 65."),
    ):
        with pytest.raises(ValueError, match=message):
            mcp_server(small_kb, **options)
    code, _, said = run("mcp", "--kb", small_kb.path, "--top-k", str(TOP_K + 1))
    assert code == 2
    assert f"1<=x<={TOP_K}" in said


@pytest.mark.slow
def test_an_answer_that_takes_long_holds_nothing_up(closed_kb: Path, endless_question: str) -> None:
    """Other calls are answered meanwhile, and the client may leave: 8000 tokens would take minutes."""

    async def session() -> bool:
        async with client(closed_kb, "--max-tokens", "8000") as agent:
            await agent.call_tool(
                "ask", {"question": "mayor", "top_k": 1}
            )  # The decoder is loaded.
            endless = {"question": f"{endless_question} mayor", "top_k": 1}
            asking = asyncio.create_task(agent.call_tool("ask", endless))
            await agent.call_tool("search", {"query": "mayor"})
            meanwhile = not asking.done()
            asking.cancel()
            return meanwhile

    assert asyncio.run(session())


def start(kb: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, str(kb), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Shells start background jobs, these tests among them, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def say(server: subprocess.Popen[bytes], *messages: dict[str, Any]) -> None:
    assert server.stdin is not None
    server.stdin.write("".join(json.dumps(message) + "\n" for message in messages).encode())
    server.stdin.flush()


def test_stdout_holds_the_protocol_alone_and_the_end_of_stdin_ends_it(closed_kb: Path) -> None:
    call = {"name": "search", "arguments": {"query": "Who?", "top_k": 0}}
    with start(closed_kb) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        say(server, INITIALIZE)
        lines = [server.stdout.readline()]
        say(server, {"jsonrpc": "2.0", "method": "notifications/initialized"})
        say(server, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call})
        lines.append(server.stdout.readline())
        server.stdin.close()
        lines += server.stdout.readlines()
        said = server.stderr.read()
    assert (server.returncode, said) == (0, b"")
    assert [json.loads(line)["id"] for line in lines] == [0, 1]


def test_an_interruption_ends_it_with_130_though_it_waits_for_stdin(closed_kb: Path) -> None:
    with start(closed_kb) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        say(server, INITIALIZE)
        server.stdout.readline()
        server.send_signal(signal.SIGINT)
        said = server.stderr.read().decode()
    assert server.returncode == 130
    assert said.splitlines()[-1] == "Interrupted."


def test_over_http(closed_kb: Path, sheets: list[FactSheet]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def session(url: str) -> Any:
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5):
                    break
            except OSError:
                await asyncio.sleep(0.2)
        async with Client(url) as agent:
            return await agent.call_tool("search", {"query": sheets[1].document.text, "top_k": 1})

    with start(closed_kb, "--http", str(port)) as server:
        found = asyncio.run(session(f"http://127.0.0.1:{port}/mcp"))
        server.terminate()
    assert server.returncode == 143
    assert found.structured_content["passages"][0]["text"] == sheets[1].document.text


def test_what_keeps_it_from_starting_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["mcp", "--kb", str(tmp_path)]) == 1
    assert "is not a knowledge base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tool", "given", "message"),
    [
        (
            "expand",
            {"document_id": "d", "ordinal": 0, "after": 10**12},
            "after must be at most 256.",
        ),
        ("expand", {"document_id": "d", "ordinal": 0, "before": 10**30}, "before must be at most"),
        ("expand", {"document_id": "d" * 5_000, "ordinal": 0}, "document_id has 5,000 characters"),
        ("expand", {"document_id": "d", "ordinal": 10**30}, "There is no passage d#1000000"),
        ("search", {"query": "x", "top_k": 10**12}, "top_k must be at most 64."),
        ("search", {"query": "x" * 3_000_000}, "query has 3,000,000 characters; at most 32,000"),
        ("ask", {"question": "x" * 3_000_000}, "question has 3,000,000 characters; at most 32,000"),
        ("ask", {"question": "x", "top_k": 65}, "top_k must be at most 64."),
        ("search", {"query": "x", "filters": ["a=b"] * 33}, "filters may hold at most 32"),
        ("ask", {"question": "x", "filters": ["a" * 2_001]}, "filters may hold at most 32"),
    ],
)
def test_what_is_out_of_bounds_is_refused_before_any_work(
    small_kb: KnowledgeBase,
    monkeypatch: pytest.MonkeyPatch,
    tool: str,
    given: dict[str, Any],
    message: str,
) -> None:
    def no_work(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was worked on")

    for method in ("retrieve", "rounds", "read_passages"):
        monkeypatch.setattr(small_kb, method, no_work)

    async def call() -> Any:
        async with Client(mcp_server(small_kb)) as agent:
            return await agent.call_tool(tool, given)

    result = asyncio.run(call())
    assert result.is_error
    assert message in result.content[0].text


@pytest.mark.parametrize(
    "error",
    [
        PassageIndexError("the index in /srv/secret/kb cannot be read"),
        KnowledgeBaseError("/srv/secret/kb is closed"),
        OSError(5, "Input/output error", "/srv/secret/kb/store/1.arrow"),
        RuntimeError("/srv/secret"),
    ],
)
def test_no_client_hears_of_the_servers_folders(
    small_kb: KnowledgeBase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(small_kb, "retrieve", fail)

    async def call() -> list[Any]:
        async with Client(mcp_server(small_kb)) as agent:
            missing = {"document_id": "nobody", "ordinal": 3}
            return [
                await agent.call_tool("search", {"query": "x"}),
                await agent.call_tool("expand", missing),
            ]

    failed, missing = (result.content[0].text for result in asyncio.run(call()))
    assert "secret" not in failed
    assert failed.endswith("This failed; the server's log says why.")
    assert "secret" in caplog.text
    assert missing.endswith("There is no passage nobody#3.")


def test_requests_that_clients_drop_cost_nothing(closed_kb: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    head += "Accept: application/json, text/event-stream\r\n"
    body = json.dumps(INITIALIZE)

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=30)

    def answer_to(request: str) -> str:
        with connect() as connection:
            connection.sendall(request.encode())
            answer = ""
            while not answer.partition("\r\n\r\n")[2]:
                answer += connection.recv(4_000).decode()
            return answer

    with start(closed_kb, "--http", str(port)) as server:
        while server.poll() is None:
            try:
                connect().close()
                break
            except OSError:
                time.sleep(0.2)
        dropped = [connect() for _ in range(50)]
        for connection in dropped:
            connection.sendall(f"{head}Content-Length: 100000\r\n\r\n{{".encode())
        for connection in dropped:
            connection.close()
        answered = answer_to(f"{head}Content-Length: {len(body)}\r\n\r\n{body}")
        large = answer_to(f"{head}Content-Length: 3000000\r\n\r\n")
        server.terminate()
        assert server.stderr is not None
        said = server.stderr.read().decode()
    assert answered.startswith("HTTP/1.1 200")
    assert large.startswith("HTTP/1.1 413")
    assert "larger than 1,048,576 bytes" in large
    assert [line for line in said.splitlines() if "Serving at" not in line] == []
