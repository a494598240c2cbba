"""Where a model to start from is: a folder, the hub, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lclm_rag.errors import CheckpointError
from lclm_rag.hub import fetch, is_hub_id
from lclm_rag.own_code import load_tokenizer, refuse_own_code

__all__ = ["model_folder"]


def model_folder(name: str | Path, place: Path, dtype: torch.dtype) -> Path:
    """Find the folder of a model in transformers' format.

    Args:
        name: A folder, a hub id (fetched, unless it is in the cache), or a GGUF file (converted).
        place: Where a GGUF file is converted to.
        dtype: The dtype that it is converted to.

    Returns:
        The folder.

    Raises:
        CheckpointError: When there is no such model, or it cannot be fetched or converted, or
            it needs code of its own.
        ImportError: When it is a GGUF file, but gguf or accelerate is not installed.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} is not the folder of a model: config.json is missing.")
        refuse_own_code(path)
        return path
    if path.is_file() and path.suffix.lower() == ".gguf":
        _convert(path, place, dtype)
        return place
    if not is_hub_id(str(name)) or path.suffix.lower() == ".gguf":
        raise CheckpointError(
            f"There is no model {str(name)!r}; give a folder, a hub id such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct, or a GGUF file."
        )
    wanted = ["*.json", "*.jinja", "*.txt", "*.safetensors", "tokenizer.model"]
    try:
        folder = fetch(str(name), allow_patterns=wanted, ignore_patterns=["*/*"])
    except OSError as error:
        raise CheckpointError(
            f"Model {str(name)!r} is neither a folder nor could it be fetched from the hub: {error}."
        ) from error
    refuse_own_code(folder)
    return folder


def _convert(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write a GGUF file as a folder in transformers' format, not quantized."""
    import transformers
    from transformers import AutoModelForCausalLM

    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{file} needs {error.name}: pip install 'lclm-rag[train]'.") from error
    options: dict[str, Any] = {"gguf_file": file.name}
    # Newer versions of transformers would keep the weights packed where they have a kernel for them.
    packed = getattr(transformers, "GgufConfig", None)
    unpacked = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            **options,
            **unpacked,
        )
        tokenizer = load_tokenizer(file.parent, **options)
    except CheckpointError:
        raise
    except Exception as error:  # gguf and transformers raise what they like.
        raise CheckpointError(f"{file} cannot be read as a GGUF file: {error}") from error
    # What is left says that the model is quantized, and forbids that it is saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
