"""`generate` gives what the paper's own code gives for the same checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lclm_rag import Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.decoding import all_answered
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.decoding.vllm import VLLMDecoder
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from lclm_rag.generation import generate, markup_prompts
from support.checkpoints import MakeCheckpoint
from support.reference import Reference

PLAIN = "<|memory_start|>{}<|memory_end|> {}"


def prompts(sheets: list[FactSheet]) -> list[str]:
    one = [PLAIN.format(s.document.text, s.questions[0].question) for s in sheets[:6]]
    two = PLAIN.format(sheets[7].document.text, PLAIN.format(sheets[8].document.text, "Who?"))
    return [*one, two, "No memory at all?", PLAIN.format("x", "Tiny.")]


SETTINGS: dict[str, dict[str, Any]] = {
    "overlap": {"boundary_overlap": 3},
    "attn_mlp": {
        "encoder_mask_type": "bidirectional",
        "boundary_overlap": 8,
        "adapter_type": "attn_mlp",
        "num_adapter_layers": 2,
    },
    "mlp_attn": {"encoder_mask_type": "bidirectional", "adapter_type": "mlp_attn"},
}


@pytest.mark.parametrize("which", ["bundled", *SETTINGS])
def test_latents_and_greedy_tokens_equal_the_plain_way(
    which: str,
    sheets: list[FactSheet],
    checkpoint: Checkpoint,
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder = checkpoint.path if which == "bundled" else make_checkpoint(**SETTINGS[which])
    reference = Reference(folder)
    compressor = Compressor.from_pretrained(folder, device="cpu")
    decoder = TransformersDecoder.from_pretrained(folder, device="cpu")
    texts = prompts(sheets)
    soft = markup_prompts(texts, compressor)
    completions = all_answered(generate(texts, compressor, decoder, Sampling(max_tokens=12)))
    for text, prompt, completion in zip(texts, soft, completions, strict=True):
        latents, tokens = reference.generate(text, 12)
        assert completion.token_ids == tokens
        if prompt.latents:
            torch.testing.assert_close(torch.cat(prompt.latents), latents, atol=1e-4, rtol=1e-4)


def test_vllm_generates_the_same_with_the_adapter_in_its_engine(
    items_decoder: VLLMDecoder,
    decoder: TransformersDecoder,
    compressor: Compressor,
    sheets: list[FactSheet],
) -> None:
    texts, sampling = prompts(sheets), Sampling(max_tokens=12)
    ours = all_answered(generate(texts, compressor, decoder, sampling))
    theirs = all_answered(generate(texts, compressor, items_decoder, sampling))
    assert [c.token_ids for c in theirs] == [c.token_ids for c in ours]
    assert markup_prompts(texts, compressor, "encoder")[0].space == "encoder"


def test_a_list_of_messages_is_rendered_by_the_chat_template(compressor: Compressor) -> None:
    as_messages = [{"role": "user", "content": PLAIN.format("Some text.", "What?")}]
    as_text = PLAIN.format("Some text.", "What?")
    a, b = markup_prompts([as_messages, as_text], compressor)
    assert a.token_ids == b.token_ids


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<|memory_start|>text", "without its partner"),
        ("text<|memory_end|>", "without its partner"),
        ("<|memory_start|> <|memory_end|>", "nothing between"),
    ],
)
def test_broken_markup_is_refused_by_the_prompts_number(
    compressor: Compressor, prompt: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"Prompt 2: .*{message}"):
        markup_prompts(["fine", prompt], compressor)
