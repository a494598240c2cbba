"""Small random causal language models, as folders in transformers' format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from lclm_rag.checkpoint import MEMORY, MEMORY_END, MEMORY_START, Checkpoint

__all__ = ["SPARE", "random_language_model"]

SPARE = ("<|spare_0|>", "<|spare_1|>", "<|spare_2|>")
"""Special tokens that nothing uses, in the order of their ids."""


def random_language_model(
    folder: Path,
    tokenizers: Checkpoint,
    *,
    kind: str = "qwen3",
    tied: bool = True,
    spare: bool = True,
    seed: int = 0,
    **shape: Any,
) -> Path:
    """Write a model of random weights, three layers of width 64.

    Args:
        folder: Where to write it.
        tokenizers: The checkpoint whose tokenizer and chat template it takes, without the memory tokens.
        kind: "qwen3" or "llama".
        tied: Whether the head is the embedding.
        spare: Whether the tokenizer has special tokens to spare.
        seed: Of the weights.
        **shape: Entries of its config.json.

    Returns:
        The folder.
    """
    torch.manual_seed(seed)
    config = {"qwen3": Qwen3Config, "llama": LlamaConfig}[kind](
        **{
            "vocab_size": 768,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "eos_token_id": 2,
            "initializer_range": 0.3,
            "tie_word_embeddings": tied,
            **shape,
        }
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    settings = {"eos_token_id": [2, 0], "do_sample": False, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    decoder = tokenizers.decoder_folder
    tokenizer = (decoder / "tokenizer.json").read_text()
    for old, new in zip((MEMORY_START, MEMORY, MEMORY_END), SPARE, strict=True):
        tokenizer = tokenizer.replace(json.dumps(old), json.dumps(new))
    if not spare:
        parsed = json.loads(tokenizer)
        parsed["added_tokens"] = [t for t in parsed["added_tokens"] if t["content"] not in SPARE]
        tokenizer = json.dumps(parsed)
    (folder / "tokenizer.json").write_text(tokenizer)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text((decoder / name).read_text())
    return folder
