"""A start: a checkpoint made from any causal language model, ready to be trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lclm_rag.adapter_tensors import attention_config
from lclm_rag.checkpoint import (
    MEMORY,
    MEMORY_END,
    MEMORY_START,
    AdapterType,
    Checkpoint,
    MaskType,
    ModelConfig,
    Pooling,
)
from lclm_rag.compression.adapter import Adapter
from lclm_rag.compression.attention import PackedEncoder
from lclm_rag.errors import CheckpointError
from lclm_rag.model_source import model_folder
from lclm_rag.own_code import load_tokenizer
from lclm_rag.prompting.frames import FRAMES, load_frame
from lclm_rag.prompting.template import PromptTemplate
from lclm_rag.torch_setup import load_transformers_model, resolve_dtype, seeded, without_progress
from lclm_rag.training.placing import new_folder
from lclm_rag.training.start_tokens import name_memory_tokens, take_tokenizer
from lclm_rag.training.start_weights import (
    embed_memory_tokens,
    first_layers,
    identity_adapter,
    quiet_layers,
    start_adapter,
    usual_norm,
)

__all__ = ["start_checkpoint"]

Dtype = Literal["float32", "bfloat16", "float16"]

_CPU = torch.device("cpu")


def start_checkpoint(
    decoder: str | Path,
    out: str | Path,
    *,
    encoder: str | Path | None = None,
    layers: int = 4,
    ratio: int = 4,
    window: int = 1024,
    pooling: Pooling | None = None,
    adapter: AdapterType = "mlp",
    num_adapter_layers: int = 1,
    mask: MaskType = "causal",
    overlap: int = 0,
    frame: str | Path | None = None,
    identity: bool = False,
    dtype: Dtype = "bfloat16",
) -> Checkpoint:
    """Make a checkpoint of a causal language model, to train it from there.

    The decoder is the model itself: it answers from text as before, and cannot read latents yet. The memory
    tokens are special tokens of its tokenizer that nothing uses, renamed; if it has none to spare, they are
    added, and the embeddings grow.

    Latents have about the norm of the decoder's token embeddings from the start. With `identity` they nearly
    are token embeddings: at ratio 1 the decoder reads them like text; at a higher ratio each is the sum of
    its group's embeddings, all but the first rotated. What the encoder's layers add is small then.

    The same arguments give the same checkpoint.

    Args:
        decoder: A model with a chat template: a folder, a hub id, or a GGUF file.
        out: The checkpoint's folder, which must be new or empty.
        encoder: A model, as for `decoder`; None takes the decoder's embeddings and first layers.
        layers: How many of the decoder's layers; has no effect if an encoder is given.
        ratio: Source tokens that one latent stands for.
        window: Tokens that the encoder reads at once; a multiple of `ratio`.
        pooling: How a group of hidden states becomes one latent; default: "mean", and "concat" with
            `identity`.
        adapter: The adapter's architecture.
        num_adapter_layers: The number of its attention layers; not used by "mlp".
        mask: Whether a token sees those before it ("causal") or its whole window ("bidirectional").
        overlap: Tokens of the previous window that are read again, as context only.
        frame: The frame to train in: a name, or the path of a TOML file, which is copied; None names none.
        identity: Whether latents begin as token embeddings. It needs the decoder's own layers, pooling
            "concat" and adapter "mlp".
        dtype: The dtype of the weights that are written.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: When a model is not found, cannot be loaded or cannot be part of a checkpoint, or
            `out` is not empty.
        ValueError: When a setting is not valid.
        ImportError: When a model is a GGUF file, but gguf is not installed.
    """
    if pooling is None:
        pooling = "concat" if identity else "mean"
    config = ModelConfig(ratio, window, pooling, mask, overlap, adapter, num_adapter_layers)
    _check_settings(config, layers, dtype)
    if identity:
        _check_identity(config, encoder)
    named = None if frame is None else load_frame(frame).name
    with new_folder(Path(out).expanduser()) as made:
        (made / "adapter").mkdir()
        settings = {name: value for name, value in asdict(config).items() if name != "frame"}
        if named is not None:
            path = Path(named).expanduser()
            settings["frame"] = named if named in FRAMES else path.name
            if named not in FRAMES:
                shutil.copyfile(path, made / path.name)
        (made / "model_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        with seeded(_CPU), without_progress():
            _write_parts(made, decoder, encoder, layers, config, identity, dtype)
        PromptTemplate.of(Checkpoint.open(made))
    return Checkpoint.open(out)


def _check_settings(config: ModelConfig, layers: int, dtype: str) -> None:
    """The checks of `ModelConfig`, in the words of the arguments."""
    for name, value, known in (
        ("pooling", config.pooling, Pooling),
        ("adapter", config.adapter_type, AdapterType),
        ("mask", config.encoder_mask_type, MaskType),
        ("dtype", dtype, Dtype),
    ):
        if value not in get_args(known):
            raise ValueError(f"Unknown {name} {value!r}; use {', '.join(get_args(known))}.")
    for name, number, least in (
        ("layers", layers, 1),
        ("ratio", config.compression_ratio, 1),
        ("window", config.encoder_window_size, 1),
        ("num_adapter_layers", config.num_adapter_layers, 1),
        ("overlap", config.boundary_overlap, 0),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {number!r}.")
    if config.encoder_window_size % config.compression_ratio:
        raise ValueError(
            f"window must be a multiple of ratio {config.compression_ratio}, not "
            f"{config.encoder_window_size}."
        )
    if config.pooling == "concat" and config.adapter_type == "attn_mlp":
        raise ValueError("adapter 'attn_mlp' does not go with pooling 'concat'.")


def _check_identity(config: ModelConfig, encoder: str | Path | None) -> None:
    if encoder is not None:
        raise ValueError(
            "identity=True needs the decoder's own embeddings: it does not go with an encoder."
        )
    if (config.pooling, config.adapter_type) != ("concat", "mlp"):
        raise ValueError("identity=True needs pooling 'concat' and adapter 'mlp'.")


def _write_parts(
    made: Path,
    decoder: str | Path,
    encoder: str | Path | None,
    layers: int,
    config: ModelConfig,
    identity: bool,
    dtype: str,
) -> None:
    """Write the folders of encoder, adapter and decoder."""
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoModelForCausalLM

    kind = resolve_dtype(dtype, "cpu")
    source = model_folder(decoder, made.parent / "decoder", kind)
    take_tokenizer(source, made / "decoder", chat=True)
    model = load_transformers_model(AutoModelForCausalLM, source, _CPU, kind)
    _check_decoder(model, source)
    vocabulary = _write_decoder(model, source, made / "decoder")
    norm, shape = usual_norm(model), model.config.to_dict()
    if encoder is None:
        reader = first_layers(model, layers)
        if identity:
            quiet_layers(reader, vocabulary)
        shutil.copytree(
            made / "decoder",
            made / "encoder",
            ignore=lambda _, names: {n for n in names if not _of_tokenizer(n)},
        )
    else:
        folder = model_folder(encoder, made.parent / "encoder", kind)
        take_tokenizer(folder, made / "encoder", chat=False)
        reader = load_transformers_model(AutoModel, folder, _CPU, kind)
    reader.save_pretrained(made / "encoder")
    width = _check_encoder(reader, made / "encoder", config)
    if identity:
        started = identity_adapter(width, config.compression_ratio, norm)
    else:
        started = _adapter(config, reader.config.to_dict(), shape)
        start_adapter(started, norm)
    tensors = {name: tensor.to(kind) for name, tensor in started.state_dict().items()}
    save_file(tensors, made / "adapter" / "adapter.safetensors")


def _check_decoder(model: Any, source: Path) -> None:
    config = model.config.to_dict()
    for name in ("hidden_size", "vocab_size", "max_position_embeddings", "num_hidden_layers"):
        if not isinstance(config.get(name), int):
            raise CheckpointError(
                f"{type(model).__name__} in {source} has no {name} in its config.json; use a decoder such "
                "as Qwen3, Llama or Mistral."
            )
    with torch.inference_mode():
        one, other = (model(input_ids=torch.tensor([[5, 6, last]])).logits for last in (7, 8))
    changed = (one - other).float()[0].norm(dim=1)
    if not changed[:2].max() <= 0.01 * changed[2]:  # Rounding alone may differ.
        raise CheckpointError(
            f"{type(model).__name__} in {source} is not causal: what it says of a token depends on later "
            "ones. A decoder must be a causal language model."
        )


def _write_decoder(model: Any, source: Path, folder: Path) -> int:
    """Write the decoder with its memory tokens. Returns how many token ids its tokenizer has."""
    from tokenizers import Tokenizer
    from transformers import GenerationConfig

    configs = [n for n in ("config.json", "generation_config.json") if (source / n).is_file()]
    for name in configs:
        shutil.copyfile(source / name, folder / name)
    given = name_memory_tokens(folder)
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    ids = {token: vocabulary[token] for token in (MEMORY_START, MEMORY, MEMORY_END)}
    added = [ids[token] for token, renamed in given.items() if renamed is None]
    embed_memory_tokens(model, list(ids.values()), added)
    if "generation_config.json" in configs:
        # Theirs is copied: transformers refuses to save some that are published.
        model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    if "generation_config.json" in configs:
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    return len(vocabulary)


def _of_tokenizer(name: str) -> bool:
    return "token" in name or name == "chat_template.jinja"


def _check_encoder(encoder: Any, folder: Path, config: ModelConfig) -> int:
    """Check that an encoder can read such windows. Returns its width."""
    written = json.loads((folder / "config.json").read_text("utf-8"))
    width, longest = written.get("hidden_size"), written.get("max_position_embeddings")
    if not isinstance(width, int):
        raise CheckpointError(
            f"The encoder, {type(encoder).__name__}, has no hidden_size in its config.json; use one such "
            "as Qwen3, Llama or Mistral."
        )
    marks = config.encoder_window_size // config.compression_ratio
    length = config.encoder_window_size + (marks if config.pooling == "eos" else 0)
    length += config.boundary_overlap * (1 if config.is_causal else 2)
    if isinstance(longest, int) and length > longest:
        raise ValueError(
            f"window must be smaller: the encoder has {longest:,} positions, and {length:,} are needed."
        )
    if config.pooling == "eos":
        _require_pad_token(folder)
    PackedEncoder(encoder, length, causal=config.is_causal)
    return width


def _require_pad_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        raise ValueError("pooling 'eos' needs an encoder whose tokenizer has a pad token.")


def _adapter(config: ModelConfig, encoder: dict[str, Any], decoder: dict[str, Any]) -> Adapter:
    """An adapter between two models, given by their configurations."""
    group = config.compression_ratio if config.pooling == "concat" else 1
    width, kind = int(decoder["hidden_size"]), config.adapter_type
    layers = None
    if kind == "attn_mlp":
        layers = attention_config(encoder, "encoder")
    elif kind == "mlp_attn":
        layers = attention_config(decoder, "decoder")
    wide = int(encoder["hidden_size"]) * group
    return Adapter(wide, width, width, kind, config.num_adapter_layers, layers)
