"""What a service shows of itself: health, metrics, spans and the log; never text of anybody."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from lclm_rag import DecoderError, KnowledgeBase, Sampling
from lclm_rag.decoding import Decoder
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion
from lclm_rag.serving import ServedBase, create_app
from support.scripted import Scripted
from support.served import served

LOG = "lclm_rag.serving.requests"


@pytest.fixture
def app(knowledge_base: KnowledgeBase) -> FastAPI:
    return create_app({"towns": ServedBase("towns", knowledge_base)})


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with served(app) as at:
        yield at


def body(question: str, **fields: Any) -> dict[str, Any]:
    asked = {"model": "towns", "messages": [{"role": "user", "content": question}]}
    return {**asked, "max_tokens": 8, **fields}


def samples(url: str) -> dict[tuple[str, ...], float]:
    """The value of each sample by its name and the values of its labels, in the order of their names."""
    response = httpx.get(f"{url}/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(r.getMessage()) for r in caplog.records if r.name == LOG]


def test_what_answers_take_is_counted(url: str, questions: list[FactQuestion]) -> None:
    before = samples(url)
    assert before["lclm_rag_answers_total", "towns", "no_passages"] == 0
    assert before["lclm_rag_positions_saved_total", "towns"] == 0
    ask = f"{url}/v1/chat/completions"
    usages = [httpx.post(ask, json=body(questions[0].question)).json()["usage"]]
    streamed = httpx.post(ask, json=body(questions[1].question, stream=True)).text
    usages.append(json.loads(streamed.split("data: ")[-2])["usage"])
    nothing = {"filters": {"kind": "no such kind"}}
    assert httpx.post(ask, json=body("Who is the mayor of the town?", **nothing)).status_code == 200
    after = samples(url)

    def total(name: str) -> int:
        return sum(int(usage[name]) for usage in usages)

    positions = "lclm_rag_prompt_positions"
    assert after[f"{positions}_count", "towns"] == 2
    assert after[f"{positions}_sum", "towns"] == total("prompt_tokens")
    assert after["lclm_rag_first_token_seconds_count", "towns"] == 2
    assert 0 < after["lclm_rag_first_token_seconds_sum", "towns"] < 60
    assert after["lclm_rag_latents_total", "towns"] == total("latents") > 0
    assert after["lclm_rag_source_tokens_total", "towns"] == total("source_tokens")
    saved = total("source_tokens") - total("latents")
    assert after["lclm_rag_positions_saved_total", "towns"] == saved > 0
    assert after["lclm_rag_generated_tokens_total", "towns"] == total("completion_tokens")
    answers = {
        result: after["lclm_rag_answers_total", "towns", result] for result in ("complete", "cut")
    }
    assert sum(answers.values()) == 2
    assert after["lclm_rag_answers_total", "towns", "no_passages"] == 1
    route = "/v1/chat/completions"
    assert after["lclm_rag_requests_total", "towns", "POST", route, "200"] == 3
    assert after["lclm_rag_request_seconds_count", route] == 3
    assert after["lclm_rag_questions_in_flight",] == 0
    assert after["lclm_rag_base_version", "towns"] == 1


def test_no_label_is_a_clients_string(url: str) -> None:
    word = "xyzzy"
    for method, path in (
        ("GET", f"/{word}"),
        ("GET", f"/v1/models/{word}"),
        ("PROPFIND", "/v1/models"),
        ("GET", f"/v1/models?{word}={word}"),
    ):
        httpx.request(method, f"{url}{path}", headers={"X-Request-Id": word, "User-Agent": word})
    fields = {"model": word, "filters": {word: word}}
    httpx.post(f"{url}/v1/chat/completions", json={**body(word), **fields})
    httpx.get(f"{url}/v1/models", headers={"Host": word})
    text = httpx.get(f"{url}/metrics").text
    assert word not in text.lower()
    found = samples(url)
    assert found["lclm_rag_requests_total", "", "GET", "/v1/models/{name}", "404"] == 1
    assert found["lclm_rag_requests_total", "", "GET", "other", "404"] == 1
    assert found["lclm_rag_requests_total", "", "GET", "other", "421"] == 1
    assert found["lclm_rag_requests_total", "", "other", "/v1/models", "405"] == 1


def test_each_application_counts_for_itself(knowledge_base: KnowledgeBase, url: str) -> None:
    httpx.get(f"{url}/v1/models")
    with served(create_app({"other": ServedBase("other", knowledge_base)})) as at:
        assert ("lclm_rag_requests_total", "", "GET", "/v1/models", "200") not in samples(at)
        assert "towns" not in httpx.get(f"{at}/metrics").text


def test_the_log_has_a_line_for_each_request_and_no_text(
    url: str, caplog: pytest.LogCaptureFixture, questions: list[FactQuestion]
) -> None:
    caplog.set_level(logging.INFO, "lclm_rag")
    question = questions[0].question
    got = [
        httpx.post(f"{url}/v1/chat/completions?secret=xyzzy", json=body(question, stream=stream))
        for stream in (False, True)
    ]
    httpx.get(f"{url}/v1/models/xyzzy")
    httpx.get(f"{url}/healthz")  # Of machines that ask all the time: not at this level.
    whole, streamed, missing = logged(caplog)
    answer = got[0].json()
    assert whole["id"] == answer["id"] == got[0].headers["X-Request-Id"]
    assert whole["time"][:2] == "20"
    assert (whole["method"], whole["route"]) == ("POST", "/v1/chat/completions")
    assert (whole["base"], whole["status"], whole.get("key")) == ("towns", 200, None)
    assert whole["positions"] == answer["usage"]["prompt_tokens"]
    assert whole["latents"] == answer["usage"]["latents"]
    assert whole["generated"] == answer["usage"]["completion_tokens"]
    assert whole["cached"] == 0
    assert whole["passages"] == 8
    assert 0 < whole["first_token"] <= whole["seconds"] < 60
    assert streamed["streamed"] is True
    assert "streamed" not in whole
    changing = ("id", "time", "seconds", "first_token", "streamed")
    alike = [{k: v for k, v in line.items() if k not in changing} for line in (whole, streamed)]
    assert alike[0] == alike[1]
    assert set(missing) == {"time", "id", "method", "route", "status", "seconds"}
    assert missing["status"] == 404
    everything = "\n".join(record.getMessage() for record in caplog.records)
    assert "xyzzy" not in everything
    assert question not in everything
    for cited in answer["citations"]:
        assert cited["text"][:40] not in everything


class Slow(Scripted):
    """Says that it has begun and waits."""

    def __init__(self, like: Decoder) -> None:
        super().__init__(like, [])
        self.begun = threading.Event()
        self.end = threading.Event()

    def complete(self, prompts: Any, sampling: Sampling) -> Any:
        self.begun.set()
        assert self.end.wait(60)
        self.reply("Ada")
        return super().complete(prompts, sampling)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_went_away_is_logged_and_is_no_error(
    stream: bool,
    knowledge_base: KnowledgeBase,
    decoder: Decoder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    slow = Slow(decoder)

    async def leave(url: str) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            asking = asyncio.create_task(
                client.post(
                    f"{url}/v1/chat/completions",
                    json=body("Who is the mayor of the town?", stream=stream),
                )
            )
            await asyncio.to_thread(slow.begun.wait, 60)
            asking.cancel()

    kb = KnowledgeBase.open(knowledge_base.path, decoder=slow)
    with served(create_app({"towns": ServedBase("towns", kb)})) as url:
        asyncio.run(leave(url))
        for _ in range(600):
            if logged(caplog):
                break
            time.sleep(0.05)
        slow.end.set()
        (line,) = logged(caplog)
        assert (line["status"], line["base"]) == (499, "towns")
        route = "/v1/chat/completions"
        assert samples(url)["lclm_rag_requests_total", "towns", "POST", route, "499"] == 1
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
    kb.close()


class Broken(Scripted):
    def complete(self, prompts: Any, sampling: Sampling) -> Any:
        raise DecoderError("http://10.0.0.7/v1 does not answer.")


def test_a_service_is_ready_while_its_decoder_answers(
    app: FastAPI, url: str, knowledge_base: KnowledgeBase, decoder: Decoder
) -> None:
    assert httpx.get(f"{url}/healthz").json() == {"status": "alive"}
    response = httpx.get(f"{url}/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
    app.state.readiness.begin_to_close()
    response = httpx.get(f"{url}/readyz")
    assert response.status_code == 503
    assert response.json()["reason"] == "The service is shutting down."
    assert httpx.get(f"{url}/healthz").status_code == 200

    kb = KnowledgeBase.open(knowledge_base.path, decoder=Broken(decoder, []))
    with served(create_app({"towns": ServedBase("towns", kb)})) as at:
        response = httpx.get(f"{at}/readyz")
        assert response.status_code == 503
        assert "towns does not answer: http://10.0.0.7/v1" in response.json()["reason"]
        # What a proxy passes on comes from elsewhere.
        passed_on = httpx.get(f"{at}/readyz", headers={"X-Forwarded-For": "10.0.0.9"})
        assert passed_on.status_code == 503
        failed = httpx.post(
            f"{at}/v1/chat/completions", json=body("Who is the mayor of the town?", stream=True)
        )
        assert failed.status_code == 200
        route = "/v1/chat/completions"
        assert samples(at)["lclm_rag_requests_total", "towns", "POST", route, "503"] == 1
    kb.close()


def test_probes_share_a_check(knowledge_base: KnowledgeBase, decoder: Decoder) -> None:
    counting = Scripted(decoder, ["a"] * 9)
    kb = KnowledgeBase.open(knowledge_base.path, decoder=counting)
    with served(create_app({n: ServedBase(n, kb) for n in ("towns", "again")})) as at:
        for _ in range(5):
            assert httpx.get(f"{at}/readyz").status_code == 200
    assert len(counting.prompts) == 1
    kb.close()


def test_a_question_is_a_span_with_its_steps(
    url: str, questions: list[FactQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry import trace

    exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    got = httpx.post(
        f"{url}/v1/chat/completions",
        json=body(questions[0].question),
        headers={"traceparent": parent},
    ).json()
    for _ in range(600):
        *steps, span = exporter.get_finished_spans() or [None]
        if span is not None and span.name == "chat towns":
            break
        time.sleep(0.05)
    assert [step.name for step in steps] == ["retrieve", "load", "assemble", "decode"]
    assert span.parent.span_id == 0xB7AD6B7169203331
    assert all(step.parent.span_id == span.context.span_id for step in steps)
    times = [(step.start_time, step.end_time) for step in steps]
    assert span.start_time <= times[0][0]
    assert all(start <= end for start, end in times)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(times))
    assert times[-1][1] <= span.end_time
    usage = got["usage"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "towns",
        "gen_ai.request.max_tokens": 8,
        "gen_ai.response.id": got["id"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "lclm_rag.latents": usage["latents"],
        "lclm_rag.passages": 8,
    }
    assert expected.items() <= dict(span.attributes).items()
    everything = " ".join(each.to_json() for each in (*steps, span))
    assert questions[0].question not in everything
    assert got["citations"][0]["text"][:40] not in everything

    exporter.clear()
    httpx.post(
        f"{url}/v1/chat/completions",
        json=body("Who is the mayor of the town?", max_tokens=4000, stream=True),
    )
    for _ in range(600):
        if exporter.get_finished_spans():
            break
        time.sleep(0.05)
    *_, span = exporter.get_finished_spans()
    assert span.attributes["lclm_rag.context"] == "latents"
