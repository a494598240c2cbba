"""A checkpoint of a given shape with random weights: what it says is noise, what it costs is real."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression.adapter import Adapter

__all__ = [
    "PUBLISHED",
    "PUBLISHED_ENCODER",
    "SMALL",
    "THIRTY_MILLION",
    "TINY",
    "Shape",
    "make_checkpoint",
]


@dataclass(frozen=True)
class Shape:
    """encoder, decoder: the fields of their Qwen3 configs. positions: the decoder's context. shared: the
    fields of both."""

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    positions: int
    shared: dict[str, Any]


_FEW = {"num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4_096}


PUBLISHED = Shape(
    # Qwen3-Embedding-0.6B and Qwen3-4B-Instruct-2507, from their config.json.
    encoder={
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    decoder={
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    positions=262_144,
    shared={"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936},
)
PUBLISHED_ENCODER = replace(  # For compressing alone: its decoder is small.
    PUBLISHED,
    decoder={
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
    },
)
SMALL = Shape(  # The shares of the published shape, for machines without a GPU.
    encoder={
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    decoder={
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    },
    positions=32_768,
    shared=_FEW,
)
THIRTY_MILLION = Shape(  # An encoder of 30 million parameters, for the speed of compressing.
    encoder={
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 9,
        "num_attention_heads": 8,
    },
    decoder=SMALL.decoder,
    positions=32_768,
    shared=_FEW,
)
TINY = Shape(  # For trying a command out.
    encoder={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    decoder={
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    positions=4_096,
    shared={"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 4_096},
)


def make_checkpoint(folder: Path, shape: Shape, ratio: int, device: str = "cpu") -> Checkpoint:
    """Write it (bfloat16) in the published folder format, with the bundled checkpoint's tokenizers.

    The weights are drawn on the device, which takes four billion of them a minute on a CPU.
    """
    bundled = Checkpoint.open()
    torch.manual_seed(0)
    shared = {
        **shape.shared,
        "max_position_embeddings": shape.positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0},
        "tie_word_embeddings": True,
        "eos_token_id": None,
    }
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            encoder = Qwen3Model(Qwen3Config(**shared, **shape.encoder))
            decoder = Qwen3ForCausalLM(Qwen3Config(**shared, **shape.decoder))
            width = shape.decoder["hidden_size"]
            adapter = Adapter(shape.encoder["hidden_size"], width, width)
        encoder.save_pretrained(folder / "encoder")
        decoder.save_pretrained(folder / "decoder")
    finally:
        torch.set_default_dtype(torch.float32)
    (folder / "adapter").mkdir()
    save_file(adapter.state_dict(), folder / "adapter" / "adapter.safetensors")
    for part in ("encoder", "decoder"):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(bundled.path / part / name, folder / part / name)
    config = {
        "compression_ratio": ratio,
        "encoder_window_size": 1024,
        "pooling": "mean",
        "encoder_mask_type": "causal",
        "boundary_overlap": 0,
        "adapter_type": "mlp",
    }
    (folder / "model_config.json").write_text(json.dumps(config))
    return Checkpoint.open(folder)
