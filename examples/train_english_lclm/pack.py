"""Write what a trained checkpoint adds to SmolLM2-135M-Instruct: the own parts of the checkpoint `english`.

    lclm-rag train export runs/english/run runs/english/checkpoint --dtype float32
    python examples/train_english_lclm/pack.py --checkpoint runs/english/checkpoint

The decoder's LoRA weights, and the rows of its two memory tokens, become factors; so does the change of the
encoder's embeddings, which has one direction. The encoder's layers and the adapter are kept whole.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.english import DIFFERENCES, base_tensors, smollm2

OUT = Path(__file__).parents[2] / "lclm_rag" / "checkpoints" / "english"
RANK = 32
"""The most columns of a factor. The LoRA weights have 64, of which the weaker half changes no answer."""
NOISE = 1e-4
"""A singular value below this share of the largest one comes from rounding."""
DTYPE = torch.bfloat16


def differences(
    trained: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], rank: int
) -> dict[str, torch.Tensor]:
    """What must be added to a model's tensors, as `lclm_rag.english` reads it.

    Args:
        trained: The trained tensors by name.
        base: Those that they were before; a name that is not here is kept whole.
        rank: The most columns of a factor.

    Returns:
        The differences.
    """
    found: dict[str, torch.Tensor] = {}
    for name, value in trained.items():
        if name not in base:
            found[name] = value.to(DTYPE)
            continue
        change = value - base[name]
        if not change.any():
            continue
        if change.ndim != 2:
            found[name] = value.to(DTYPE)
            continue
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        kept = min(rank, int((s > NOISE * s[0]).sum()))
        root = s[:kept].sqrt()
        found[f"{name}.left"] = (u[:, :kept] * root).to(DTYPE).contiguous()
        found[f"{name}.right"] = (root[:, None] * v[:kept]).to(DTYPE).contiguous()
    return found


def pack(checkpoint: Checkpoint, out: Path, rank: int) -> None:
    """Write the own parts of a checkpoint.

    Args:
        checkpoint: What was trained, in float32.
        out: The folder, which is replaced.
        rank: The most columns of a factor.
    """
    with tempfile.TemporaryDirectory() as place:
        of_part = base_tensors(smollm2(), Path(place))
    shutil.rmtree(out, ignore_errors=True)
    (out / "adapter").mkdir(parents=True)
    shutil.copyfile(checkpoint.path / "model_config.json", out / "model_config.json")
    adapter = {name: value.to(DTYPE) for name, value in load_file(checkpoint.adapter_file).items()}
    save_file(adapter, out / "adapter" / "adapter.safetensors")
    for part, beneath in of_part.items():
        source, target = checkpoint.path / part, out / part
        target.mkdir()
        trained = load_file(source / "model.safetensors")
        save_file(differences(trained, beneath, rank), target / DIFFERENCES)
        for path in source.iterdir():
            # The tokenizer is the same in both.
            if path.suffix != ".safetensors" and (part, path.name) != ("encoder", "tokenizer.json"):
                shutil.copyfile(path, target / path.name)
        config = json.loads((target / "config.json").read_text("utf-8"))
        config["dtype"] = str(DTYPE).removeprefix("torch.")
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rank", type=int, default=RANK)
    options = parser.parse_args()
    pack(Checkpoint.open(options.checkpoint), options.out, options.rank)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
