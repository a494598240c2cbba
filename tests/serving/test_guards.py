"""What stands before the routes: hosts, origins, sizes and numbers of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from lclm_rag import KnowledgeBase
from lclm_rag.serving import Limits, ServedBase, create_app
from lclm_rag.serving.guards import is_loopback
from support.served import served

PAGE = "https://intranet.example"
BODY = {"model": "towns", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def url(knowledge_base: KnowledgeBase) -> Iterator[str]:
    app = create_app(
        {"towns": ServedBase("towns", knowledge_base)},
        limits=Limits(body=2000, in_flight=1, max_tokens=100_000),
        hosts=("localhost", "rag.example"),
        origins=(PAGE,),
    )
    with served(app) as at:
        yield at


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "rag.example:443"],
)
def test_its_own_names_and_addresses_are_answered(url: str, host: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:80", "rag.example.", "", "[", "a b"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/metrics", "/docs"])
def test_a_rebound_name_is_not(url: str, host: str, path: str) -> None:
    response = httpx.get(f"{url}{path}", headers={"Host": host})
    assert response.status_code == 421
    assert "--allow-host" in response.json()["error"]["message"]


def test_pages_of_its_own_and_allowed_pages_may_ask(url: str) -> None:
    own = httpx.post(f"{url}/v1/chat/completions", json=BODY, headers={"Origin": url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    asked = httpx.post(f"{url}/v1/chat/completions", json=BODY, headers={"Origin": PAGE})
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Origin" in asked.headers["Vary"]
    assert "access-control-allow-credentials" not in asked.headers
    preflight = httpx.options(
        f"{url}/v1/chat/completions",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == PAGE


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "file://", f"{PAGE}.evil.example", ""],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "GET"])
def test_other_pages_may_not(url: str, origin: str, method: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    response = httpx.request(method, f"{url}/v1/models", headers=headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers
    assert "--cors" in response.json()["error"]["message"]


def test_no_other_page_may_unless_one_is_named(knowledge_base: KnowledgeBase) -> None:
    with served(create_app({"towns": ServedBase("towns", knowledge_base)})) as at:
        assert httpx.get(f"{at}/v1/models", headers={"Origin": PAGE}).status_code == 403
        assert httpx.get(f"{at}/v1/models", headers={"Origin": at}).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_while_it_comes(url: str, chunked: bool) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        yield json.dumps(BODY).encode()
        for _ in range(count):
            yield b" " * 100

    for count, status in ((3, 200), (300_000, 413)):
        content = pieces(count) if chunked else b"".join(pieces(min(count, 3000)))
        # The service does not read on, so the client may not be able to send the rest.
        try:
            response = httpx.post(
                f"{url}/v1/chat/completions",
                content=content,
                headers={"Content-Type": "application/json"},
            )
        except httpx.TransportError:
            assert status == 413
            continue
        assert response.status_code == status
        if status == 413:
            error = response.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert "2,000 bytes" in error["message"]


def test_a_question_too_many_is_told_when_to_come_again(url: str, endless_question: str) -> None:
    long = {
        **BODY,
        "messages": [{"role": "user", "content": endless_question}],
        "stream": True,
        "max_tokens": 8000,
        "context": "none",
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=long, timeout=60) as running:
        lines = running.iter_lines()
        next(lines)
        refused = httpx.post(f"{url}/v1/chat/completions", json=BODY)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        # Only questions are counted.
        assert httpx.get(f"{url}/v1/models").status_code == 200
        assert "lclm_rag_questions_in_flight 1.0" in httpx.get(f"{url}/metrics").text
    for _ in range(600):
        if httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=60).status_code == 200:
            break
    else:
        pytest.fail("The place of a client that went away is not free again.")


def test_answers_are_not_to_be_kept_or_guessed_at(url: str) -> None:
    for path in ("/v1/models", "/v1/nothing"):
        headers = httpx.get(f"{url}{path}").headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Request-Id"].startswith("req-")
    headers = httpx.post(f"{url}/v1/chat/completions", json={**BODY, "stream": True}).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Request-Id"].startswith("chatcmpl-")
    assert httpx.get(f"{url}/healthz").headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
