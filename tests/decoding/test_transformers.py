"""Prompts that wait for transformers' decoder together are decoded together, and nobody is kept waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lclm_rag import KnowledgeBase, Sampling
from lclm_rag.decoding import Completion, all_answered
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import DecoderError
from lclm_rag.prompting import SoftPrompt

QUESTIONS = ("Who signed it?", "Where, and in which year, was that?", "Say anything you like.")


@pytest.fixture
def prompts(knowledge_base: KnowledgeBase) -> list[SoftPrompt]:
    return [knowledge_base.assemble(question, 2) for question in QUESTIONS]


@pytest.fixture
def batches(
    decoder: TransformersDecoder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """(the size of each batch, what lets the first of them begin)."""
    from threading import Event

    begin, sizes = Event(), list[int]()
    generate = decoder.model.generate

    def watched(**inputs: Any) -> Any:
        sizes.append(len(inputs["inputs_embeds"]))
        assert begin.wait(60)
        return generate(**inputs)

    monkeypatch.setattr(decoder.model, "generate", watched)
    yield sizes, begin.set
    begin.set()


async def begun(sizes: list[int]) -> None:
    while not sizes:
        await asyncio.sleep(0.01)


def test_what_waits_together_is_decoded_together_streams_too(
    decoder: TransformersDecoder,
    prompts: list[SoftPrompt],
    batches: tuple[list[int], Callable[[], None]],
) -> None:
    sizes, begin = batches
    short, long = Sampling(max_tokens=3), Sampling(max_tokens=16)

    async def ask() -> tuple[list[Any], list[Completion]]:
        finished: list[Completion] = []
        first = asyncio.create_task(decoder.acomplete(prompts[:1], long))
        await begun(sizes)

        async def streamed(prompt: SoftPrompt) -> str:
            return "".join([p async for p in decoder.astream(prompt, long, finished.append)])

        rest = [
            asyncio.create_task(decoder.acomplete(prompts[1:2], short)),
            *(asyncio.create_task(streamed(prompt)) for prompt in prompts),
        ]
        await asyncio.sleep(0.3)  # All of them wait by now.
        begin()
        return [await first, *[await task for task in rest]], finished

    got, finished = asyncio.run(ask())
    assert sizes == [1, 4]
    alone = [all_answered(decoder.complete([prompt], long))[0] for prompt in prompts]
    (cut,) = all_answered(decoder.complete(prompts[1:2], short))
    assert got[0][0].token_ids == alone[0].token_ids
    assert (got[1][0].token_ids, got[1][0].finish_reason) == (cut.token_ids, cut.finish_reason)
    assert got[2:] == [completion.text for completion in alone]
    assert sorted(c.token_ids for c in finished) == sorted(c.token_ids for c in alone)


def test_a_short_question_does_not_wait_behind_a_long_batch_job(
    decoder: TransformersDecoder,
    prompts: list[SoftPrompt],
    batches: tuple[list[int], Callable[[], None]],
) -> None:
    sizes, begin = batches
    order: list[str] = []

    async def ask() -> None:
        async def job(name: str, count: int) -> None:
            await decoder.acomplete([prompts[0]] * count, Sampling(max_tokens=2))
            order.append(name)

        many = asyncio.create_task(job("many", 60))
        await begun(sizes)
        one = asyncio.create_task(job("one", 1))
        await asyncio.sleep(0.3)
        begin()
        await asyncio.gather(many, one)

    asyncio.run(ask())
    assert order == ["one", "many"]
    assert max(sizes) <= 16


def test_one_prompt_that_fails_does_not_spoil_its_batch(
    decoder: TransformersDecoder, prompts: list[SoftPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_fitting", None)
    generate = decoder.model.generate
    longest = max(prompt.positions for prompt in prompts)

    def failing(**inputs: Any) -> Any:
        if inputs["inputs_embeds"].shape[1] >= longest:
            raise torch.OutOfMemoryError("out of memory")
        return generate(**inputs)

    monkeypatch.setattr(decoder.model, "generate", failing)
    outcomes = decoder.complete(prompts, Sampling(max_tokens=4))
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if prompt.positions == longest:
            assert isinstance(outcome, DecoderError)
            assert "transformers failed to decode: out of memory" in str(outcome)
        else:
            assert isinstance(outcome, Completion)


@pytest.mark.parametrize("after", [0, 2])
def test_without_memory_for_a_batch_its_halves_are_decoded_and_later_batches_are_no_larger(
    after: int,
    decoder: TransformersDecoder,
    prompts: list[SoftPrompt],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """after: the tokens of each prompt that there is memory for."""
    monkeypatch.setattr(decoder, "_fitting", None)
    eight = [prompts[0]] * 8
    (alone,) = all_answered(decoder.complete(eight[:1], Sampling(max_tokens=6)))
    forward, sizes = decoder.model.forward, list[int]()

    def full(**inputs: Any) -> Any:
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        rows = len(ids if embeds is None else embeds)
        sizes.append(rows)
        if rows > 3 and sizes.count(rows) > after:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    monkeypatch.setattr(decoder.model, "forward", full)
    outcomes = all_answered(decoder.complete(eight, Sampling(max_tokens=6)))
    assert [outcome.token_ids for outcome in outcomes] == [alone.token_ids] * 8
    assert "Out of memory on cpu with 8 prompts" in caplog.text
    assert dict.fromkeys(sizes) == dict.fromkeys([8, 4, 2])
    sizes.clear()
    all_answered(decoder.complete(eight, Sampling(max_tokens=6)))
    assert max(sizes) == 2


def test_a_stream_that_has_begun_ends_where_memory_does(
    decoder: TransformersDecoder,
    prompts: list[SoftPrompt],
    batches: tuple[list[int], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder, "_fitting", None)
    forward, calls = decoder.model.forward, list[int]()
    sizes, begin = batches

    def full(**inputs: Any) -> Any:
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        rows = len(ids if embeds is None else embeds)
        calls.append(rows)
        if rows == 2 and calls.count(2) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    monkeypatch.setattr(decoder.model, "forward", full)
    sampling = Sampling(max_tokens=8)

    async def read() -> list[str]:
        return [piece async for piece in decoder.astream(prompts[0], sampling)]

    async def ask() -> tuple[Any, Any]:
        first = asyncio.create_task(decoder.acomplete(prompts[:1], sampling))
        await begun(sizes)  # The two below wait together.
        stream = asyncio.create_task(read())
        whole = asyncio.create_task(decoder.acomplete(prompts[:1], sampling))
        await asyncio.sleep(0.3)
        begin()
        (outcome,) = await first
        results = await asyncio.gather(stream, whole, return_exceptions=True)
        assert isinstance(outcome, Completion)
        (again,) = results[1]
        assert again.token_ids == outcome.token_ids
        return results[0], again

    broken, _ = asyncio.run(ask())
    assert isinstance(broken, DecoderError)
    assert "out of memory. Ask with fewer passages, or free memory." in str(broken)


def test_what_is_sampled_otherwise_is_decoded_by_itself(
    decoder: TransformersDecoder,
    prompts: list[SoftPrompt],
    batches: tuple[list[int], Callable[[], None]],
) -> None:
    sizes, begin = batches
    ways = [Sampling(max_tokens=4, temperature=t, seed=s) for t in (0.0, 0.7) for s in (1, 2)]

    async def ask() -> list[Any]:
        first = asyncio.create_task(decoder.acomplete(prompts[:1], ways[0]))
        await begun(sizes)
        tasks = [asyncio.create_task(decoder.acomplete(prompts[:1], way)) for way in ways]
        await asyncio.sleep(0.3)
        begin()
        await first
        return [(await task)[0].token_ids for task in tasks]

    together = asyncio.run(ask())
    assert sizes == [1, 2, 2]
    alone = [all_answered(decoder.complete(prompts[:1], way))[0].token_ids for way in ways]
    assert together == alone
