"""Train the bundled checkpoint: data, start, reading, latents, export, each a command of the library.

    python examples/train_tiny_lclm/train.py --work runs/tiny

Interrupt it at will: it goes on where it was.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from data import RECORDS, write_data
from start import write_decoder

RECIPES = Path(__file__).parent


def train(work: Path, records: int = RECORDS, steps: int | None = None) -> Path:
    """Do what is not done yet. Gives the trained checkpoint's folder.

    `steps`: the most steps of a stage, to try it out.
    """
    write_data(work, records)
    if not (work / "decoder").is_dir():
        write_decoder(work / "decoder.part")
        (work / "decoder.part").rename(work / "decoder")
    decoder = work / "decoder"
    for name in ("reading", "latents"):
        start, trained = work / f"start-{name}", work / name
        recipe = (RECIPES / f"{name}.toml").read_text()
        if steps is not None:
            recipe = re.sub(
                r"^steps = (\d+)", lambda m: f"steps = {min(steps, int(m[1]))}", recipe, flags=re.M
            )
        (work / f"{name}.toml").write_text(recipe)
        if not start.is_dir():
            settings = "--layers 2 --ratio 4 --window 1024 --frame numbered"
            _command("start", decoder, start, *settings.split())
        if not trained.is_dir():
            run = work / f"{name}-run"
            _command("run", work / f"{name}.toml", "--out", run, "--device", "cpu")
            _command("export", run, trained)
        decoder = trained / "decoder"
    return work / "latents"


def _command(*words: str | Path) -> None:
    line = ["train", *map(str, words)]
    print("lclm-rag", *line, flush=True)
    subprocess.run([sys.executable, "-m", "lclm_rag.cli", *line], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, help="at most so many in a stage, to try it out")
    arguments = parser.parse_args()
    print(f"{train(arguments.work, steps=arguments.steps)} is the checkpoint.")
