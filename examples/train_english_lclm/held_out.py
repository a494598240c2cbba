"""How much of paragraphs that were never trained on does a run's last state give back? Teacher-forced.

\b
    python examples/train_english_lclm/held_out.py --run runs/english/run --texts runs/english/held_out.jsonl

For the first 32 and the first 128 tokens of 100 paragraphs of other genres: the share of tokens that greedy
decoding would choose when asked to repeat the passage, and the loss in nats a token, from latents and from
the same passage as text.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import click
import torch
from paragraphs import read_lines

from lclm_rag.prompting import PromptTemplate
from lclm_rag.training.examples import Ask, Questions
from lclm_rag.training.objectives import REPEAT, answer, reconstruct
from lclm_rag.training.packing import pack
from lclm_rag.training.recipe import read_recipe
from lclm_rag.training.run import restored

LENGTHS = (32, 128)


@click.command(help=__doc__)
@click.option("--run", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--texts", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--count", default=100, show_default=True, help="Paragraphs.")
@click.option("--out", type=Path, help="A JSON file for the figures.")
def main(run: Path, texts: Path, count: int, out: Path | None) -> None:
    recipe = read_recipe(run / "recipe.toml")
    model, progress = restored(recipe, run)
    checkpoint = model.checkpoint
    model.write_memory_rows()
    template, tokenizer = PromptTemplate.of(checkpoint), checkpoint.inert_decoder_tokenizer
    lines = read_lines(texts)
    step = max(1, len(lines) // count)  # Evenly over the sources, which follow each other.
    paragraphs = [line["text"] for line in lines[::step]]
    found = []
    for length in LENGTHS:
        encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in paragraphs]
        long_enough = [tokenizer.decode(ids[:length]) for ids in encoded if len(ids) >= length]
        for context in ("latents", "text"):
            right, losses = [], []
            with torch.inference_mode():
                for text in itertools.islice(long_enough, count):
                    if context == "latents":
                        block = reconstruct(checkpoint, template, text)
                    else:
                        asks = (Ask(REPEAT, text),)
                        block = answer(checkpoint, template, Questions((text,), asks), [1])
                    batch = pack([block], checkpoint.config, model.placeholder, model.marker_id)
                    of = model(batch)
                    right.append(of.right)
                    losses.append(of.tokens)
            figures = {
                "tokens": length,
                "context": context,
                "paragraphs": len(right),
                "right": float(torch.cat(right).float().mean()),
                "loss": float(torch.cat(losses).mean()),
            }
            found.append(figures)
            print(
                f"{length:4} tokens from {context:8} {figures['right']:.1%} right, "
                f"{figures['loss']:.2f} nats"
            )
    if out is not None:
        done = recipe.steps_before(progress.stage) + progress.step
        about = {"step": done, "source_tokens": progress.source_tokens}
        out.write_text(json.dumps({**about, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
