"""Small random checkpoints, of every setting that a published one may have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.compression.adapter import Adapter

__all__ = ["MakeCheckpoint", "as_lora", "random_checkpoint"]

MakeCheckpoint = Callable[..., Path]
"""The fixture `make_checkpoint`: a name, `seed=` and settings of `model_config.json` → folder."""


def random_checkpoint(folder: Path, tokenizers: Checkpoint, *, seed: int, **settings: Any) -> Path:
    """Write a checkpoint of random weights; its encoder (48 wide) is narrower than its decoder (64).

    Encoder and decoder also differ in heads and in the base of their rotations, which attention layers in the
    adapter take from one of them.

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
    narrow = Qwen3Config(hidden_size=48, intermediate_size=96, rope_theta=1e6, **shape)
    wide = Qwen3Config(hidden_size=64, intermediate_size=128, **shape | {"num_attention_heads": 2})
    Qwen3Model(narrow).save_pretrained(folder / "encoder")
    Qwen3ForCausalLM(wide).save_pretrained(folder / "decoder")
    group = config["compression_ratio"] if config["pooling"] == "concat" else 1
    (folder / "adapter").mkdir()
    adapter = Adapter(48 * group, 64, 64).state_dict()
    if config["adapter_type"] != "mlp":
        beside = narrow if config["adapter_type"] == "attn_mlp" else wide
        for i in range(config.get("num_adapter_layers", 1)):
            layer = Qwen3DecoderLayer(beside, i).state_dict()
            for name, tensor in layer.items():
                # Random norms, so that a norm in a wrong place shows.
                random = torch.rand_like(tensor) + 0.5 if tensor.dim() == 1 else tensor
                adapter[f"attention_layers.{i}.decoder_layer.{name}"] = random
    save_file(adapter, folder / "adapter" / "adapter.safetensors")
    for part in ("encoder", "decoder"):
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tokenizers.path / part / file, folder / part / file)
    (folder / "model_config.json").write_text(json.dumps(config))
    return folder


def as_lora(
    folder: Path, part: str, *, base: str = "base", seed: int = 1, added: int = 0, **config: Any
) -> Any:
    """Turn the weights of a checkpoint's part into the base of random LoRA weights, saved as peft does.

    Args:
        folder: The checkpoint.
        part: "encoder" or "decoder".
        base: Where the base's weights go, below the checkpoint's folder.
        seed: Of the LoRA weights.
        added: Tokens that are added to the base's vocabulary.
        **config: Options of `LoraConfig`.

    Returns:
        The model with its LoRA weights, not merged.
    """
    import peft

    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    (folder / part).rename(folder / base)
    (folder / part).mkdir()
    for name in tokenizer:
        (folder / base / name).rename(folder / part / name)
    kind = AutoModel if part == "encoder" else AutoModelForCausalLM
    model = kind.from_pretrained(folder / base, dtype=torch.float32)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added, mean_resizing=False)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options | config)).eval()
    torch.manual_seed(seed)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2)
    wrapped.save_pretrained(folder / part)
    settings = folder / part / "adapter_config.json"
    named = json.loads(settings.read_text()) | {"base_model_name_or_path": f"../{base}"}
    settings.write_text(json.dumps(named))
    return wrapped
