"""`rerank`, `mmr` and `neighbours` of requests: what is done, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from lclm_rag import KnowledgeBase
from support.random_classifiers import save_cross_encoder
from support.services import LONG, Serve

ASKED = {"model": "towns", "messages": [{"role": "user", "content": "What says the report?"}]}
ASKED |= {"top_k": 3, "max_tokens": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_cross_encoder(tmp_path_factory.mktemp("models") / "cross-encoder", [LONG]))


def error(response: httpx.Response) -> tuple[int, str, str]:
    body = response.json()["error"]
    return response.status_code, body["param"], body["message"]


def test_hits_are_reranked_if_a_request_wants_it(
    serve: Serve, copied_kb: KnowledgeBase, model: str
) -> None:
    client = serve(reranker=model)
    query = {"query": "What says the report?", "top_k": 3}
    for wanted, rerank in ((None, None), (False, None), (True, model)):
        got = client.post("search", json={**query, "rerank": wanted}).json()
        hits = copied_kb.retrieve(query["query"], 3, rerank=rerank)  # type: ignore[call-overload]
        assert [h["passage"] for h in got["data"]] == [h.key.ordinal for h in hits]
        assert [h["score"] for h in got["data"]] == pytest.approx([h.score for h in hits])
    got = client.post("chat/completions", json={**ASKED, "rerank": True}).json()
    sources = copied_kb.query("What says the report?", 3, rerank=model).sources
    assert [c["score"] for c in got["citations"]] == pytest.approx([h.score for h in sources])


def test_neighbours_are_in_what_is_cited(serve: Serve) -> None:
    client = serve()
    (hit,) = client.post(
        "search", json={"query": "report number 60", "top_k": 1, "neighbours": 1}
    ).json()["data"]
    start, end = hit["span"]
    assert hit["text"] == LONG[start:end]
    assert hit["neighbours"]
    got = client.post("chat/completions", json={**ASKED, "top_k": 1, "neighbours": 1}).json()
    assert got["citations"][0]["neighbours"]
    with client.stream(
        "POST", "chat/completions", json={**ASKED, "top_k": 1, "neighbours": 1, "stream": True}
    ) as stream:
        events = [json.loads(x[6:]) for x in stream.iter_lines() if x.startswith("data: {")]
    assert events[0]["retrieved"][0]["neighbours"] == got["citations"][0]["neighbours"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"rerank": True}, "rerank", "This service has no reranker; leave rerank out."),
        ({"rerank": "org/model"}, "rerank", "rerank: Input should be a valid boolean."),
        ({"neighbours": 9}, "neighbours", "neighbours is 9; at most 8 are allowed."),
        ({"neighbours": -1}, "neighbours", "greater than or equal to 0"),
        ({"mmr": 2}, "mmr", "less than or equal to 1"),
        ({"mmr": 0.5}, None, "create the knowledge base with an embedder"),
    ],
)
def test_what_is_not_to_be_had_is_refused(
    client: httpx.Client, tmp_path: Path, fields: dict[str, Any], param: str | None, message: str
) -> None:
    for path, body in (("search", {"query": "report"}), ("chat/completions", ASKED)):
        status, about, said = error(client.post(path, json={**body, **fields}))
        assert (status, about) == (400, param)
        assert message in said
        assert str(tmp_path) not in said
