"""The transformers decoder: soft prompts are right, batches and streams agree, bad prompts are refused."""

from __future__ import annotations

import pytest
import torch

from lclm_rag import KnowledgeBase, Sampling
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.evaluation.fact_sheets import FactQuestion
from lclm_rag.prompting import SoftPrompt, Span


def test_embeddings_in_place_of_latents_answer_as_pasted_text_does(
    knowledge_base: KnowledgeBase, decoder: TransformersDecoder, questions: list[FactQuestion]
) -> None:
    """The decoder's own token embeddings, put in as if they were latents: the same tokens come out."""
    table = decoder.model.get_input_embeddings()
    memory = decoder.checkpoint.decoder_tokenizer.token_to_id("<|memory|>")
    pasted = [knowledge_base.assemble(q.question, 4, form="text") for q in questions[:10]]
    soft = []
    for prompt in pasted:
        span = Span(20, prompt.positions - 60)
        inside = prompt.token_ids[span.start : span.start + span.length]
        ids = list(prompt.token_ids)
        ids[span.start : span.start + span.length] = [memory] * span.length
        soft.append(SoftPrompt(ids, (table(torch.tensor(inside)).detach(),), (span,)))
    sampling = Sampling(max_tokens=24)
    for a, b in zip(
        decoder.complete(pasted, sampling), decoder.complete(soft, sampling), strict=True
    ):
        assert a.token_ids == b.token_ids


def test_a_batch_gives_what_each_prompt_gives_alone(
    knowledge_base: KnowledgeBase, decoder: TransformersDecoder, questions: list[FactQuestion]
) -> None:
    prompts = [
        knowledge_base.assemble(q.question, k, form=form)
        for q, k, form in zip(
            questions[:6], (1, 2, 3, 4, 8, 4), ("latents", "text", "none") * 2, strict=True
        )
    ]
    together = decoder.complete(prompts, Sampling(max_tokens=16))
    for prompt, completion in zip(prompts, together, strict=True):
        alone = decoder.complete([prompt], Sampling(max_tokens=16))[0]
        assert alone.token_ids == completion.token_ids
        assert alone.text == completion.text


def test_a_stream_joined_is_the_completion(
    knowledge_base: KnowledgeBase, decoder: TransformersDecoder, questions: list[FactQuestion]
) -> None:
    prompt = knowledge_base.assemble(questions[0].question, 4)
    pieces = list(decoder.stream(prompt, Sampling(max_tokens=16)))
    assert "".join(pieces) == decoder.complete([prompt], Sampling(max_tokens=16))[0].text


def test_closing_a_stream_ends_the_generation(
    knowledge_base: KnowledgeBase, decoder: TransformersDecoder
) -> None:
    prompt = knowledge_base.assemble("Tell me a very long story, please.", 2)
    stream = decoder.stream(prompt, Sampling(max_tokens=5000, temperature=5.0, seed=1))
    next(stream)
    stream.close()  # Would take minutes if the generation went on: close waits for its thread.


def test_the_answer_ends_at_the_end_of_the_turn(
    knowledge_base: KnowledgeBase, decoder: TransformersDecoder, questions: list[FactQuestion]
) -> None:
    prompt = knowledge_base.assemble(questions[0].question, 4)
    completion = decoder.complete([prompt], Sampling(max_tokens=64))[0]
    end = decoder.checkpoint.decoder_tokenizer.token_to_id("<|im_end|>")
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] == end
    assert "<|im_end|>" not in completion.text
    cut = decoder.complete([prompt], Sampling(max_tokens=1))[0]
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 1)


def test_sampling_is_repeatable_by_its_seed(
    knowledge_base: KnowledgeBase, decoder: TransformersDecoder
) -> None:
    prompt = knowledge_base.assemble("Say anything you like.", 2)

    def sample(seed: int) -> list[int]:
        return decoder.complete([prompt], Sampling(max_tokens=24, temperature=3.0, seed=seed))[
            0
        ].token_ids

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (SoftPrompt([]), "prompt is empty"),
        (SoftPrompt([1] * 16380), "context holds 16384"),
        (
            SoftPrompt([1, 1], (torch.zeros(1, 7),), (Span(0, 1),)),
            "7 wide, the decoder's embeddings 192",
        ),
        (SoftPrompt([1, 1], (torch.full((1, 192), torch.nan),), (Span(0, 1),)), "not finite"),
    ],
)
def test_a_prompt_that_would_break_or_be_cut_is_refused(
    decoder: TransformersDecoder, prompt: SoftPrompt, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decoder.complete([prompt], Sampling(max_tokens=16))
    with pytest.raises(ValueError, match=message):
        next(decoder.stream(prompt, Sampling(max_tokens=16)))


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
