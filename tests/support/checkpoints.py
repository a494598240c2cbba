"""Small random checkpoints, of every setting that a published one may have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression.adapter import Adapter

__all__ = ["MakeCheckpoint", "random_checkpoint"]

MakeCheckpoint = Callable[..., Path]
"""The fixture `make_checkpoint`: a name, `seed=` and settings of `model_config.json` → folder."""


def random_checkpoint(folder: Path, tokenizers: Checkpoint, *, seed: int, **settings: Any) -> Path:
    """Write a checkpoint of random weights; its encoder (48 wide) is narrower than its decoder (64).

    Args:
        folder: Where to write it.
        tokenizers: The checkpoint whose tokenizers and chat template it takes.
        seed: Of the weights.
        **settings: Entries of `model_config.json` that differ from 4×, mean, causal, windows of 32.

    Returns:
        The folder.
    """
    torch.manual_seed(seed)
    config = {
        "compression_ratio": 4,
        "encoder_window_size": 32,
        "pooling": "mean",
        "encoder_mask_type": "causal",
        "boundary_overlap": 0,
        "adapter_type": "mlp",
        **settings,
    }
    shape: dict[str, Any] = {
        "vocab_size": 768,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "eos_token_id": 2,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
    }
    encoder = Qwen3Model(Qwen3Config(hidden_size=48, intermediate_size=96, **shape))
    decoder = Qwen3ForCausalLM(Qwen3Config(hidden_size=64, intermediate_size=128, **shape))
    encoder.save_pretrained(folder / "encoder")
    decoder.save_pretrained(folder / "decoder")
    group = config["compression_ratio"] if config["pooling"] == "concat" else 1
    (folder / "adapter").mkdir()
    adapter = Adapter(48 * group, 64, 64)
    save_file(adapter.state_dict(), folder / "adapter" / "adapter.safetensors")
    for part in ("encoder", "decoder"):
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tokenizers.path / part / file, folder / part / file)
    (folder / "model_config.json").write_text(json.dumps(config))
    return folder
