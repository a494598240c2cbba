"""Questions over HTTP, as the clients that people use send them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from lclm_rag import Answer, DecoderError, KnowledgeBase, Sampling
from lclm_rag.decoding import Decoder
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion
from lclm_rag.serving import Limits, ServedBase, create_app
from support.scripted import Scripted
from support.served import served

LIMITS = Limits(question=500, messages=6, top_k=8, max_tokens=100_000)


@pytest.fixture(scope="module")
def url(knowledge_base: KnowledgeBase) -> Iterator[str]:
    with served(create_app({"towns": ServedBase("towns", knowledge_base)}, limits=LIMITS)) as at:
        yield f"{at}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def asking(question: str) -> dict[str, Any]:
    return {"model": "towns", "messages": [{"role": "user", "content": question}]}


@pytest.fixture(scope="module")
def known(questions: list[FactQuestion], knowledge_base: KnowledgeBase) -> Answer:
    """A question with what the library itself answers."""
    return knowledge_base.query(questions[0].question, 4, sampling=Sampling(max_tokens=512))


def test_a_knowledge_base_is_a_model(client: openai.OpenAI, knowledge_base: KnowledgeBase) -> None:
    (model,) = client.models.list().data
    assert model.id == "towns"
    assert model.model_extra is not None
    assert model.model_extra["documents"] == 400
    assert model.model_extra["passages"] == len(knowledge_base)
    assert client.models.retrieve("towns") == model
    with pytest.raises(openai.NotFoundError, match="no knowledge base 'other'; there are: towns"):
        client.models.retrieve("other")


def test_an_answer_with_its_citations(client: openai.OpenAI, known: Answer) -> None:
    got = client.chat.completions.create(**asking(known.question), extra_body={"top_k": 4})
    assert got.choices[0].message.content == known.text
    assert got.choices[0].finish_reason == "stop"
    assert got.usage is not None
    assert got.usage.prompt_tokens == known.usage.positions
    assert got.usage.completion_tokens == known.usage.generated_tokens
    assert got.usage.model_extra is not None
    assert got.usage.model_extra["source_tokens"] == known.usage.source_tokens
    assert got.usage.model_extra["latents"] == known.usage.latents
    assert got.model_extra is not None
    cited = [(c["document"], c["passage"]) for c in got.model_extra["citations"]]
    assert cited == [(hit.key.document_id, hit.key.ordinal) for hit in known.sources]
    first = got.model_extra["citations"][0]
    hit = known.sources[0]
    assert (first["text"], first["span"]) == (hit.text, [hit.start, hit.end])
    assert (first["metadata"], first["verbatim"]) == (hit.metadata, False)
    assert got.model_extra["grounding"] == {
        "found": list(known.grounding.found),
        "missing": list(known.grounding.missing),
    }


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_shows_what_was_found_the_words_and_what_they_rest_on(
    include_usage: bool, client: openai.OpenAI, known: Answer
) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = list(
        client.chat.completions.create(
            **asking(known.question), stream=True, extra_body={"top_k": 4}, **options
        )
    )
    extras = [chunk.model_extra or {} for chunk in chunks]
    assert [c["document"] for c in extras[0]["retrieved"]] == [
        hit.key.document_id for hit in known.sources
    ]
    words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(words) == known.text
    last = len(chunks) - 1 - include_usage
    assert chunks[last].choices[0].finish_reason == "stop"
    assert [c["text"] for c in extras[last]["citations"]] == [hit.text for hit in known.sources]
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == 1
    assert chunks[-1].usage == usages[0]
    assert usages[0].prompt_tokens == known.usage.positions
    assert usages[0].completion_tokens == known.usage.generated_tokens


def test_many_clients_at_once(
    url: str, questions: list[FactQuestion], knowledge_base: KnowledgeBase
) -> None:
    some = [question.question for question in questions[:24]]

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            asked = (
                client.chat.completions.create(**asking(question), max_tokens=12)
                for question in some
            )
            return [got.choices[0].message.content for got in await asyncio.gather(*asked)]

    short = Sampling(max_tokens=12)
    assert asyncio.run(ask()) == [knowledge_base.query(q, sampling=short).text for q in some]


def test_langchain_and_llama_index(url: str, known: Answer) -> None:
    chain = ChatOpenAI(base_url=url, api_key="none", model="towns", extra_body={"top_k": 4})  # type: ignore[arg-type]
    assert chain.invoke(known.question).content == known.text
    pieces = list(chain.stream(known.question))
    assert "".join(str(piece.content) for piece in pieces) == known.text
    usages = [p.usage_metadata for p in pieces if p.usage_metadata]
    assert sum(u["input_tokens"] for u in usages) == known.usage.positions
    llm = OpenAILike(
        model="towns",
        api_base=url,
        api_key="none",
        is_chat_model=True,
        additional_kwargs={"extra_body": {"top_k": 4}},
    )
    assert (
        llm.chat([ChatMessage(role="user", content=known.question)]).message.content == known.text
    )
    assert llm.complete(known.question).text == known.text
    streamed = list(llm.stream_chat([ChatMessage(role="user", content=known.question)]))
    assert streamed[-1].message.content == known.text


def test_a_body_as_open_webui_sends_it(
    url: str, known: Answer, knowledge_base: KnowledgeBase
) -> None:
    body = {
        "stream": True,
        "model": "towns",
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello! What would you like to know?"},
            {"role": "user", "content": [{"type": "text", "text": known.question}]},
        ],
        "params": {},
        "tool_servers": [],
        "features": {"image_generation": False, "code_interpreter": False, "web_search": False},
        "variables": {"{{USER_NAME}}": "User", "{{CURRENT_DATE}}": "2026-11-26"},
        "model_item": {"id": "towns", "object": "model", "owned_by": "lclm-rag"},
        "session_id": "x7",
        "chat_id": "c1",
        "id": "m1",
        "background_tasks": {"title_generation": True},
        "stream_options": {"include_usage": True},
        "tools": None,
        "top_k": 4,
    }
    with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    words = [choice["delta"].get("content", "") for c in chunks for choice in c["choices"]]
    before = [(m["role"], m["content"]) for m in body["messages"][:-1]]  # type: ignore[index]
    wanted = knowledge_base.query(
        known.question, 4, history=before, sampling=Sampling(max_tokens=512)
    )
    assert "".join(words) == wanted.text


def test_a_conversation(
    client: openai.OpenAI, knowledge_base: KnowledgeBase, known: Answer
) -> None:
    before: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": known.question},
        {"role": "assistant", "content": known.text},
    ]
    follow_up = "And what else is known of it?"
    got = client.chat.completions.create(
        model="towns",
        messages=[*before, {"role": "user", "content": follow_up}],
        max_tokens=16,
        extra_body={"top_k": 2},
    )
    turns = [(m["role"], m["content"]) for m in before[1:]]
    wanted = knowledge_base.query(follow_up, 2, history=turns, sampling=Sampling(max_tokens=16))
    assert got.choices[0].message.content == wanted.text
    assert got.model_extra is not None
    assert [c["document"] for c in got.model_extra["citations"]] == [
        hit.key.document_id for hit in wanted.sources
    ]
    # The system's message changes nothing, which is said.
    assert got.model_extra["history"] == {"searched": None, "left_out": 1}


def test_filters_expand_and_context(client: openai.OpenAI, known: Answer) -> None:
    def ask(**own: Any) -> Any:
        got = client.chat.completions.create(**asking(known.question), max_tokens=8, extra_body=own)
        assert got.model_extra is not None
        return got

    kinds = {c["metadata"]["kind"] for c in ask(filters={"kind": "place"}).citations}
    assert kinds == {"place"}
    assert {c["metadata"]["kind"] for c in ask(filters=["kind!=place"]).citations}.isdisjoint(kinds)
    assert [c["verbatim"] for c in ask(expand=2, top_k=3).citations].count(True) == 2
    third = ask(expand="never", top_k=3).citations[2]
    named = ask(expand=[f"{third['document']}#{third['passage']}"], top_k=3).citations
    assert [c["verbatim"] for c in named] == [False, False, True]
    with pytest.raises(openai.BadRequestError, match="names passages as document#number"):
        ask(expand=["mezuhar"])
    assert all(c["verbatim"] for c in ask(expand="always", top_k=2).citations)
    assert ask(context="none").citations == []
    asked_for = ask(expand="model", top_k=2)
    assert len(asked_for.citations) == 2


def test_where_nothing_is_found_it_is_said(client: openai.OpenAI, known: Answer) -> None:
    nothing = {"filters": {"kind": "no such kind"}}
    got = client.chat.completions.create(**asking(known.question), extra_body=nothing)
    assert got.choices[0].message.content == "No passage matches the filter."
    assert got.model_extra is not None
    assert (got.model_extra["citations"], got.usage and got.usage.prompt_tokens) == ([], 0)
    assert got.model_extra["reason"] == "No passage matches the filter."
    chunks = list(
        client.chat.completions.create(**asking(known.question), stream=True, extra_body=nothing)
    )
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert words == "No passage matches the filter."


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several answers": ({"n": 2}, "n is not supported here; leave it out"),
    "stop": ({"stop": ["\n"]}, "stop is not supported here"),
    "tools": ({"tools": [{"type": "function"}]}, "tools is not supported here"),
    "a penalty": ({"presence_penalty": 0.5}, "presence_penalty is not supported here"),
    "JSON": ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
    "hot": ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
    "too many passages": ({"top_k": 9}, "top_k is 9; at most 8 are allowed"),
    "no passages": ({"top_k": 0}, "top_k: Input should be greater than or equal to 1"),
    "too many tokens": ({"max_tokens": 100_001}, "at most 100,000 are allowed"),
    "no answer fits": ({"max_tokens": 99_999}, "positions"),
    "a huge seed": ({"seed": 2**64}, "seed: Input should be less than"),
    "no such expand": ({"expand": "some"}, "expand"),
    "a wrong filter": ({"filters": ["kind"]}, "kind"),
    "too long": ({"messages": [{"role": "user", "content": "x" * 501}]}, "The question has 501 ch"),
    "empty": ({"messages": [{"role": "user", "content": " "}]}, "The question is empty"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "a part of type 'image_url'; only text is answered",
    ),
    "no question": ({"messages": [{"role": "assistant", "content": "Yes."}]}, "The last message"),
    "no messages": ({"messages": []}, "messages: List should have at least 1 item"),
    "too many": ({"messages": [{"role": "user", "content": "x"}] * 7}, "messages is 7; at most 6"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_cannot_be_done_is_refused_in_openais_form(
    name: str, stream: bool, client: openai.OpenAI
) -> None:
    fields, message = REFUSED[name]
    body = {**asking("Who is the mayor?"), **fields, "stream": stream}

    def ask() -> None:
        got = client.post("/chat/completions", body=body, cast_to=httpx.Response)
        if "data: " in got.text:  # What is known only once the passages are.
            error = json.loads(got.text.split("data: ")[-2])["error"]
            raise openai.BadRequestError(error["message"], response=got, body=error)

    with pytest.raises(openai.BadRequestError, match=message) as refused:
        ask()
    assert refused.value.type == "invalid_request_error"


def test_no_json_and_no_route(url: str) -> None:
    for response in (
        httpx.post(f"{url}/chat/completions", content=b"{no json"),
        httpx.post(f"{url}/chat/completions", json=[]),
        httpx.get(f"{url}/chat/completions"),
        httpx.get(f"{url}/nowhere"),
    ):
        error = response.json()["error"]
        assert response.status_code in (400, 404, 405)
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


def generating() -> bool:
    return any(thread.name == "lclm-rag-stream" for thread in threading.enumerate())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_goes_away_ends_its_generation(
    stream: bool, url: str, endless_question: str
) -> None:
    body = {**asking(endless_question), "stream": stream, "max_tokens": 8000, "context": "none"}

    async def leave() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            asked = asyncio.create_task(client.post(f"{url}/chat/completions", json=body))
            while not generating():
                assert not asked.done(), asked.result().text
                await asyncio.sleep(0.01)
            asked.cancel()

    asyncio.run(leave())
    end = time.monotonic() + 60
    while generating() and time.monotonic() < end:
        time.sleep(0.05)
    assert not generating()


def test_a_decoder_that_fails_is_told_without_its_secrets(
    knowledge_base: KnowledgeBase, decoder: Decoder, known: Answer
) -> None:
    class Failing(Scripted):
        def complete(self, prompts: Any, sampling: Sampling) -> Any:
            raise DecoderError("http://10.0.0.7/v1 answered 500: secret")

    kb = KnowledgeBase.open(knowledge_base.path, decoder=Failing(decoder, []))
    with (
        served(create_app({"towns": ServedBase("towns", kb)})) as at,
        openai.OpenAI(base_url=f"{at}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="The decoder failed") as failed:
            client.chat.completions.create(**asking(known.question))
        assert failed.value.status_code == 503
        assert "secret" not in str(failed.value)
        with pytest.raises(openai.APIError, match="The decoder failed") as broken:
            list(client.chat.completions.create(**asking(known.question), stream=True))
        assert "secret" not in str(broken.value)
    kb.close()
