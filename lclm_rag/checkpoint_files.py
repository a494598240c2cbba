"""Where the parts of a checkpoint are: the names of their folders, and which files are fetched when."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from lclm_rag.errors import CheckpointError

__all__ = [
    "ANSWERING",
    "BUILDING",
    "LORA_CONFIG",
    "LORA_WEIGHTS",
    "NAMES",
    "Part",
    "model_weights",
    "newest",
    "part_folder",
]

Part = Literal["encoder", "adapter", "decoder"]

NAMES: dict[Part, tuple[str, ...]] = {
    "encoder": ("encoder", "embedder"),
    "adapter": ("adapter", "projectors"),
    "decoder": ("decoder", "llm"),
}
"""The names of each part's folder: today's, and that of older checkpoints."""

LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_SMALL = ("*.json", "*.jinja", "*.txt")

BUILDING = [
    "model_config.json",
    "*.toml",  # A frame of its own.
    *(f"{folder}/{file}" for names in NAMES.values() for folder in names for file in _SMALL),
    *(f"{folder}/*.safetensors" for folder in NAMES["encoder"] + NAMES["adapter"]),
]
"""The files of a checkpoint on the hub that make latents: no weights of the decoder."""

ANSWERING = [f"{folder}/*.safetensors" for folder in NAMES["decoder"]]
"""The files that are also needed to answer: the decoder's weights."""


def newest(folder: Path) -> Path:
    """Find where the parts are: in a folder, or in the newest `checkpoint_N` that training left in it.

    Args:
        folder: The folder that the user named.

    Returns:
        The folder with the parts.
    """
    if any((folder / name).is_dir() for names in NAMES.values() for name in names):
        return folder
    numbered = [
        (int(found[1]), path)
        for path in folder.iterdir()
        if (found := re.fullmatch(r"checkpoint_(\d+)", path.name)) and path.is_dir()
    ]
    return max(numbered)[1] if numbered else folder


def part_folder(checkpoint: Path, part: Part) -> Path:
    """Find the folder of a part by its name, today's or an older one.

    Args:
        checkpoint: The checkpoint's folder.
        part: The part.

    Returns:
        The folder, which may not exist.

    Raises:
        CheckpointError: When there are two.
    """
    there = [checkpoint / name for name in NAMES[part] if (checkpoint / name).is_dir()]
    if len(there) > 1:
        names = " and ".join(path.name for path in there)
        raise CheckpointError(
            f"{checkpoint} has two folders for the {part}, {names}; remove the one that is not meant."
        )
    return there[0] if there else checkpoint / NAMES[part][0]


def model_weights(folder: Path) -> list[Path]:
    """The files with weights of a model's folder, without those of LoRA, in the order of their names."""
    return [path for path in sorted(folder.glob("*.safetensors")) if path.name != LORA_WEIGHTS]
