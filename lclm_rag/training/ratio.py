"""A start for another ratio: a trained checkpoint that is to pool more tokens, or fewer, to a latent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.errors import CheckpointError
from lclm_rag.training.placing import new_folder

__all__ = ["change_ratio"]


def change_ratio(checkpoint: str | Path, out: str | Path, ratio: int) -> Checkpoint:
    """Copy a checkpoint, with another ratio. Its parts stay as they are, to be trained on from there.

    Args:
        checkpoint: A folder, a hub id, "english" or "bundled".
        out: The new checkpoint's folder, which must be new or empty.
        ratio: Source tokens that one latent is to stand for.

    Returns:
        The new checkpoint.

    Raises:
        CheckpointError: When the checkpoint is not found or incomplete, its adapter works for its own ratio
            alone (pooling "concat"), or `out` is not empty.
        ValueError: When the ratio is below 1 or no divisor of the window.
    """
    opened = Checkpoint.open(checkpoint)
    config = opened.config
    if config.pooling == "concat":
        raise CheckpointError(
            f"{opened.name} has pooling concat, whose adapter reads {config.compression_ratio} tokens at "
            "once; start anew from its decoder and its encoder."
        )
    if ratio < 1 or config.encoder_window_size % ratio:
        raise ValueError(
            f"ratio must be a divisor of the window of {config.encoder_window_size} tokens, not {ratio}."
        )
    with new_folder(Path(out).expanduser()) as made:
        shutil.copytree(opened.encoder_model_folder, made / "encoder")
        shutil.copytree(opened.decoder_model_folder, made / "decoder")
        (made / "adapter").mkdir()
        shutil.copyfile(opened.adapter_file, made / "adapter" / "adapter.safetensors")
        for frame in opened.path.glob("*.toml"):
            shutil.copyfile(frame, made / frame.name)
        settings = json.loads((opened.path / "model_config.json").read_text("utf-8"))
        settings["compression_ratio"] = ratio
        (made / "model_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        Checkpoint.open(made)
    return Checkpoint.open(out)
