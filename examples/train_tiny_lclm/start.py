"""Write the decoder from which everything starts: Qwen3's architecture, four layers, random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizer import train_tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

WIDTH = 192
LAYERS = 4


def write_decoder(folder: Path) -> None:
    """Write an untrained decoder with its tokenizer, the same one each time."""
    tokenizer = train_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=16384,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    decoder = Qwen3ForCausalLM(config)
    decoder.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    decoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
