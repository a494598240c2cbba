"""What every decoder promises: right tokens, batches and streams that agree, bad prompts refused."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from functools import partial

import pytest
import torch

from lclm_rag import ContextLengthError, KnowledgeBase, Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import Completion, Decoder, all_answered, load_decoder
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import PromptError
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion
from lclm_rag.prompting import SoftPrompt, Span
from support.processes import in_threads


def complete(decoder: Decoder, prompts: list[SoftPrompt], **sampling: object) -> list[Completion]:
    return all_answered(decoder.complete(prompts, Sampling(**sampling)))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["latents", "text", "none"])
def test_greedy_tokens_are_those_of_transformers(
    form: str,
    knowledge_base: KnowledgeBase,
    decoder: TransformersDecoder,
    each_decoder: Decoder,
    questions: list[FactQuestion],
) -> None:
    prompts = [knowledge_base.assemble(q.question, 4, context=form) for q in questions[:50]]  # type: ignore[arg-type]
    wanted = complete(decoder, prompts, max_tokens=24)
    got = complete(each_decoder, prompts, max_tokens=24)
    assert [c.token_ids for c in got] == [c.token_ids for c in wanted]
    assert [c.text for c in got] == [c.text for c in wanted]
    assert [c.finish_reason for c in got] == [c.finish_reason for c in wanted]


def test_embeddings_in_place_of_latents_answer_as_pasted_text_does(
    knowledge_base: KnowledgeBase, decoder: TransformersDecoder, questions: list[FactQuestion]
) -> None:
    """The decoder's own token embeddings, put in as if they were latents: the same tokens come out."""
    table = decoder.model.get_input_embeddings()
    memory = decoder.checkpoint.decoder_tokenizer.token_to_id("<|memory|>")
    pasted = [knowledge_base.assemble(q.question, 4, context="text") for q in questions[:10]]
    soft = []
    for prompt in pasted:
        span = Span(20, prompt.positions - 60)
        inside = prompt.token_ids[span.start : span.start + span.length]
        ids = list(prompt.token_ids)
        ids[span.start : span.start + span.length] = [memory] * span.length
        soft.append(SoftPrompt(ids, (table(torch.tensor(inside)).detach(),), (span,)))
    for a, b in zip(
        complete(decoder, pasted, max_tokens=24),
        complete(decoder, soft, max_tokens=24),
        strict=True,
    ):
        assert a.token_ids == b.token_ids


def test_a_batch_gives_what_each_prompt_gives_alone(
    knowledge_base: KnowledgeBase, each_decoder: Decoder, questions: list[FactQuestion]
) -> None:
    prompts = [
        knowledge_base.assemble(q.question, k, context=form)
        for q, k, form in zip(
            questions[:6], (1, 2, 3, 4, 8, 4), ("latents", "text", "none") * 2, strict=True
        )
    ]
    together = complete(each_decoder, prompts, max_tokens=16)
    for prompt, completion in zip(prompts, together, strict=True):
        (alone,) = complete(each_decoder, [prompt], max_tokens=16)
        assert alone.token_ids == completion.token_ids
        assert alone.text == completion.text
        assert 0 < alone.first_token <= alone.total


@pytest.mark.parametrize("form", ["latents", "text"])
def test_a_stream_joined_is_the_completion(
    form: str, knowledge_base: KnowledgeBase, each_decoder: Decoder, questions: list[FactQuestion]
) -> None:
    prompt = knowledge_base.assemble(questions[0].question, 4, context=form)  # type: ignore[arg-type]
    (completion,) = complete(each_decoder, [prompt], max_tokens=16)
    pieces = list(each_decoder.stream(prompt, Sampling(max_tokens=16)))
    assert len(pieces) > 1
    assert "".join(pieces) == completion.text

    async def in_an_event_loop() -> list[str]:
        return [piece async for piece in each_decoder.astream(prompt, Sampling(max_tokens=16))]

    # An engine may give tokens of several steps at once, so the pieces need not be the same.
    assert "".join(asyncio.run(in_an_event_loop())) == completion.text


def test_the_answer_ends_at_the_end_of_the_turn(
    knowledge_base: KnowledgeBase, each_decoder: Decoder, questions: list[FactQuestion]
) -> None:
    prompt = knowledge_base.assemble(questions[0].question, 4)
    (completion,) = complete(each_decoder, [prompt], max_tokens=64)
    end = knowledge_base.checkpoint.decoder_tokenizer.token_to_id("<|im_end|>")
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] == end
    assert "<|im_end|>" not in completion.text
    (cut,) = complete(each_decoder, [prompt], max_tokens=1)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 1)


def test_a_seed_means_the_same_in_a_batch_as_alone(
    knowledge_base: KnowledgeBase, each_decoder: Decoder
) -> None:
    questions = ("Say anything you like.", "Who signed it?", "Where, and in which year, was that?")
    prompts = [knowledge_base.assemble(question, 2) for question in questions]
    hot = {"max_tokens": 24, "temperature": 1.5, "seed": 7}
    together = complete(each_decoder, prompts, **hot)
    alone = [complete(each_decoder, [prompt], **hot)[0] for prompt in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_sampling_is_repeatable_by_its_seed(
    knowledge_base: KnowledgeBase, each_decoder: Decoder
) -> None:
    prompt = knowledge_base.assemble("Say anything you like.", 2)

    def sample(seed: int) -> list[int]:
        return complete(each_decoder, [prompt], max_tokens=24, temperature=2.0, seed=seed)[
            0
        ].token_ids

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(5)}) > 1
    # Also where others ask at the same time.
    expected = {seed: sample(seed) for seed in range(4)}
    wait = in_threads(*(partial(sample, seed) for seed in expected))
    assert wait() == list(expected.values())


def one_latent(row: torch.Tensor, **changes: object) -> SoftPrompt:
    return SoftPrompt([1, 1], (row,), (Span(0, 1),), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (SoftPrompt([]), "prompt is empty"),
        (SoftPrompt([1] * 16380), "context holds 16384"),
        (SoftPrompt([1, 768]), "token id 768; the decoder's vocabulary ends at 767"),
        (SoftPrompt([1, -1]), "token id -1"),
        (one_latent(torch.ones(1, 7)), "position 0 are 7 wide; in decoder space"),
        (one_latent(torch.full((1, 192), torch.nan)), "not finite as float32"),
        (one_latent(torch.full((1, 192), 1e300, dtype=torch.float64)), "not finite as float32"),
        (one_latent(torch.zeros(1, 192)), "a row of zeros"),
        (one_latent(torch.ones(1, 192, dtype=torch.int32)), "must be floating point"),
    ],
)
def test_a_bad_prompt_is_refused_and_the_others_are_answered(
    each_decoder: Decoder,
    decoder: TransformersDecoder,
    knowledge_base: KnowledgeBase,
    questions: list[FactQuestion],
    bad: SoftPrompt,
    message: str,
) -> None:
    if (
        "server" in type(each_decoder).__module__
    ):  # Which casts to a dtype that the client cannot know.
        message = message.removesuffix(" as float32")
        if bad.latents and bad.latents[0].dtype == torch.float64:
            return
    good = knowledge_base.assemble(questions[0].question, 2)
    sampling = Sampling(max_tokens=16)
    refused, answered = each_decoder.complete([bad, good], sampling)
    assert isinstance(refused, PromptError)
    assert message in str(refused)
    assert isinstance(answered, Completion)
    assert answered.token_ids == complete(decoder, [good], max_tokens=16)[0].token_ids
    with pytest.raises(PromptError, match=message):
        next(each_decoder.stream(bad, sampling))


def test_encoder_space_is_refused_where_there_is_no_adapter(
    each_decoder: Decoder, knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    prompt = knowledge_base.assemble(questions[0].question, 2, space="encoder")
    assert prompt.space == "encoder"
    (result,) = each_decoder.complete([prompt], Sampling(max_tokens=16))
    if each_decoder.takes_encoder_space:
        assert isinstance(result, Completion)
        projected = knowledge_base.assemble(questions[0].question, 2)
        assert result.token_ids == complete(each_decoder, [projected], max_tokens=16)[0].token_ids
    else:
        assert "this decoder has no adapter" in str(result)


def test_a_context_that_is_full_is_told_apart(each_decoder: Decoder) -> None:
    (result,) = each_decoder.complete([SoftPrompt([1] * 16380)], Sampling(max_tokens=5))
    assert isinstance(result, ContextLengthError)


def test_an_unknown_decoder_or_option_is_refused_before_anything_is_loaded(
    checkpoint: Checkpoint,
) -> None:
    with pytest.raises(ValueError, match="Unknown decoder 'llama'; use transformers, vllm, or"):
        load_decoder("llama", checkpoint)
    with pytest.raises(ValueError, match="transformers decoder has no option 'x'"):
        load_decoder("transformers", checkpoint, x=1)
    with pytest.raises(ValueError, match="no option 'x'; it has model, api_key, timeout"):
        load_decoder("http://127.0.0.1:9/v1", checkpoint, x=1)


@pytest.mark.vllm
def test_an_unknown_option_of_vllm_is_refused_before_anything_is_loaded(
    checkpoint: Checkpoint,
) -> None:
    with pytest.raises(ValueError, match="vLLM's engine has no option 'x'"):
        load_decoder("vllm", checkpoint, x=1)


def test_an_answer_counts_alike_whatever_decodes(
    request: pytest.FixtureRequest,
    each_decoder: Decoder,
    knowledge_base: KnowledgeBase,
    questions: list[FactQuestion],
) -> None:
    with KnowledgeBase.open(knowledge_base.path, decoder=knowledge_base.decoder) as kb:
        wanted = kb.query(questions[1].question, 4)
        kb._decoder = each_decoder
        answer = kb.query(questions[1].question, 4)
        again = kb.query(questions[1].question, 4)
        streamed = "".join(kb.stream(questions[1].question, 4))
    assert answer.text == wanted.text == streamed
    assert dataclasses.replace(answer.usage, cached_positions=0) == wanted.usage
    assert 0 < answer.timings.first_token <= answer.timings.total
    if request.node.get_closest_marker("vllm"):
        assert again.usage.cached_positions == (again.usage.positions - 1) // 32 * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
    ],
)
def test_sampling_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


def test_a_context_that_an_engine_option_shortened_is_filled_no_further(
    knowledge_base: KnowledgeBase, decoder: TransformersDecoder, questions: list[FactQuestion]
) -> None:
    short = copy.copy(decoder)
    short.context_length = 300
    usual, knowledge_base._decoder = knowledge_base.decoder, short
    try:
        answer = knowledge_base.query(questions[0].question, 20, sampling=Sampling(max_tokens=16))
    finally:
        knowledge_base._decoder = usual
    assert answer.left_out
    assert 200 < answer.usage.positions <= 300 - 16
