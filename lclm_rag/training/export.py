"""Write what was trained as a checkpoint folder, and make sure that it can be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.checkpoint_files import LORA_CONFIG, LORA_WEIGHTS
from lclm_rag.compression import Compressor
from lclm_rag.decoding import Sampling, all_answered
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.errors import CheckpointError
from lclm_rag.prompting import PromptPassage, PromptTemplate, assemble
from lclm_rag.training.model import TrainedLCLM
from lclm_rag.training.placing import new_folder
from lclm_rag.types import PassageKey

__all__ = ["export"]


def export(model: TrainedLCLM, out: str | Path, dtype: torch.dtype = torch.bfloat16) -> Checkpoint:
    """Write a model in the published format. It is opened and asked once before it is put in place.

    Args:
        model: The model.
        out: The checkpoint's folder, which must be new or empty.
        dtype: The dtype of the weights.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: When `out` is not empty, or the checkpoint that was written gives latents or an
            answer that is not finite.
    """
    start = model.checkpoint
    with new_folder(Path(out).expanduser()) as made:
        for path in (start.path / "model_config.json", *start.path.glob("*.toml")):
            shutil.copyfile(path, made / path.name)
        parts = {"encoder": start.encoder_model_folder, "decoder": start.decoder_model_folder}
        for name, source in parts.items():
            (made / name).mkdir()
            for path in source.iterdir():
                is_weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
                if (
                    path.is_file()
                    and not is_weights
                    and path.name not in (LORA_CONFIG, LORA_WEIGHTS)
                ):
                    shutil.copyfile(path, made / name / path.name)
        model.save(made, dtype)
        _ask(Checkpoint.open(made))
    return Checkpoint.open(out)


def _ask(checkpoint: Checkpoint) -> None:
    """Compress a passage and answer from it, as a user will."""
    text = "The meeting begins at nine."
    (latents,) = Compressor.from_pretrained(checkpoint, "cpu", "float32").compress([text])
    if not bool(latents.isfinite().all()):
        raise CheckpointError("The checkpoint that was trained makes latents that are not finite.")
    template = PromptTemplate.of(checkpoint)
    passage = PromptPassage(PassageKey("passage", 0), text, latents)
    ends = template.ends("When does the meeting begin?")
    prompt = assemble(template, [passage], ends, checkpoint.context_length - 8).prompt
    decoder = TransformersDecoder.from_pretrained(checkpoint, "cpu", "float32")
    all_answered(decoder.complete([prompt], Sampling(max_tokens=8)))
