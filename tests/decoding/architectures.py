"""An engine for each architecture whose latents vLLM takes as items. `make test-architectures`; not part of
`make test`, which starts one engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lclm_rag import Sampling
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression import Compressor
from lclm_rag.decoding import all_answered
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.decoding.vllm import VLLMDecoder
from lclm_rag.decoding.vllm.engine import latent_architecture
from lclm_rag.decoding.vllm.plugin import LATENT_ARCHITECTURES
from lclm_rag.evaluation.datasets.fact_sheets import FactSheet
from lclm_rag.prompting import PromptPassage, PromptTemplate, SoftPrompt, assemble
from support.checkpoints import MakeCheckpoint

DECODERS = {
    "Qwen3ForCausalLM": (Qwen3Config, Qwen3ForCausalLM),
    "LlamaForCausalLM": (LlamaConfig, LlamaForCausalLM),
}


def test_every_architecture_is_here() -> None:
    assert DECODERS.keys() == LATENT_ARCHITECTURES.keys()


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Qwen3ForCausalLM", {}),
        ("LlamaForCausalLM", {}),
        # Attention layers must see a passage as a whole: here one of a single window, there of several.
        ("Qwen3ForCausalLM", {"adapter_type": "attn_mlp", "encoder_window_size": 1024}),
        ("Qwen3ForCausalLM", {"adapter_type": "attn_mlp", "num_adapter_layers": 2}),
    ],
)
def test_items_and_mixed_prompts_give_the_tokens_of_transformers(
    architecture: str,
    settings: dict[str, Any],
    make_checkpoint: MakeCheckpoint,
    sheets: list[FactSheet],
) -> None:
    """Random weights; encoder and decoder differ in width, so that the adapter's place shows."""
    folder = make_checkpoint(**settings)
    config, model = DECODERS[architecture]
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 768,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "eos_token_id": 2,
    }
    torch.manual_seed(1)
    model(config(**shape)).save_pretrained(folder / "decoder")
    checkpoint = Checkpoint.open(folder)
    assert latent_architecture(checkpoint) == LATENT_ARCHITECTURES[architecture]

    compressor = Compressor.from_pretrained(checkpoint, device="cpu")
    template = PromptTemplate.of(checkpoint)

    def prompts(space: Any) -> list[SoftPrompt]:
        made = []
        for sheet in sheets[:10]:
            (latents,) = compressor.compress([sheet.document.text], space=space)
            passage = PromptPassage((sheet.document.id, 0), sheet.document.text, latents)  # type: ignore[arg-type]
            frame = template.ends(sheet.questions[0].question)
            made.append(assemble(template, [passage], frame, 1000, space).prompt)
        return made

    sampling = Sampling(max_tokens=12)
    decoder = TransformersDecoder.from_pretrained(checkpoint, device="cpu")
    wanted = [c.token_ids for c in all_answered(decoder.complete(prompts("decoder"), sampling))]
    assert len({tuple(tokens) for tokens in wanted}) > 5
    items = VLLMDecoder.from_pretrained(
        checkpoint, "cpu", enforce_eager=True, kv_cache_memory_bytes=2**27
    )
    try:
        assert items.inputs == "items"
        for asked, space in (
            (items, "encoder"),
            (items, "decoder"),
            (items.with_inputs("mixed"), "decoder"),
        ):
            got = all_answered(asked.complete(prompts(space), sampling))
            assert [c.token_ids for c in got] == wanted, (asked.inputs, space)
    finally:
        items.close()
