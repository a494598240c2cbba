"""train: make an LCLM."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.formatting import duration, say, say_json
from lclm_rag.cli.options import as_json

if TYPE_CHECKING:
    from lclm_rag.training.recipe import Recipe

__all__ = ["train"]

RECIPE = "recipe.toml"


@click.group()
def train() -> None:
    """Make an LCLM for a decoder, a language or a domain of your own. Needs pip install 'lclm-rag[train]'.

    \b
    Examples:
      lclm-rag train start HuggingFaceTB/SmolLM2-135M-Instruct start/ --ratio 4
      lclm-rag train run recipe.toml --out runs/mine --dry-run
      lclm-rag train run recipe.toml --out runs/mine
      lclm-rag train status runs/mine
      lclm-rag train export runs/mine checkpoint/

    The guide "Train an LCLM" in the documentation describes recipes and data.
    """


@train.command()
@click.argument("decoder")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--encoder", help="A model to start the encoder from.  [default: the decoder's layers]"
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="The decoder's first layers that the encoder starts as, if --encoder is not given.",
)
@click.option(
    "--ratio",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Source tokens to one latent.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens that the encoder reads at once.",
)
@click.option("--pooling", type=click.Choice(["mean", "concat", "eos"]))
@click.option(
    "--adapter",
    type=click.Choice(["mlp", "attn_mlp", "mlp_attn"]),
    default="mlp",
    show_default=True,
)
@click.option(
    "--mask", type=click.Choice(["causal", "bidirectional"]), default="causal", show_default=True
)
@click.option("--overlap", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--frame", help="The frame to train in: a name or a .toml file.")
@click.option(
    "--identity",
    is_flag=True,
    help="Begin with latents that are nearly the decoder's own token embeddings.",
)
def start(decoder: str, out: Path, **settings: Any) -> None:
    """Make a checkpoint of a DECODER to train from: a folder, a hub id or a GGUF file.

    If DECODER is the folder of a checkpoint, its parts are kept, and only --ratio can be another one.

    \b
    Examples:
      lclm-rag train start Qwen/Qwen3-4B-Instruct-2507 start/ --encoder Qwen/Qwen3-Embedding-0.6B --ratio 16
      lclm-rag train start SmolLM2-135M-Instruct.Q8_0.gguf start/ --ratio 2 --identity
      lclm-rag train start checkpoint-4x/ start-8x/ --ratio 8
    """
    from lclm_rag.checkpoint import OWN

    if decoder in OWN or (Path(decoder).expanduser() / "model_config.json").is_file():
        _start_with_ratio(decoder, out, settings["ratio"])
        return
    from lclm_rag.training.start import start_checkpoint

    made = start_checkpoint(decoder, out, **settings)
    config = made.config
    say(
        f"{out}: a latent for {config.compression_ratio} tokens, {config.pooling} pooling, "
        f"{config.adapter_type} adapter; the decoder takes {made.context_length:,} positions. It answers "
        "from text, and has latents to learn."
    )


@train.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--stop-at",
    type=click.IntRange(min=1),
    metavar="STEP",
    help="End after so many steps in all; the next run goes on.",
)
@click.option("--dry-run", is_flag=True, help="Say what it takes, and train nothing.")
@click.option("--gpu", default="H100 SXM", show_default=True, help="The GPU of --dry-run.")
@as_json
def run(
    recipe: Path,
    out: Path,
    device: str,
    stop_at: int | None,
    dry_run: bool,
    gpu: str,
    as_json: bool,
) -> None:
    """Train by a RECIPE, or go on with a run that was stopped or killed.

    \b
    Examples:
      lclm-rag train run recipe.toml --out runs/mine --dry-run --gpu "H100 SXM"
      lclm-rag train run recipe.toml --out runs/mine
      torchrun --nproc-per-node 8 -m lclm_rag.cli train run recipe.toml --out runs/mine
    """
    from lclm_rag.cli.progress import progress_bar
    from lclm_rag.training.run import carry_out

    read = _recipe(recipe)
    if dry_run:
        _show_plan(read, gpu, as_json)
        return
    _keep_recipe(recipe, out)
    with progress_bar() as progress:
        task = progress.add_task("steps", total=stop_at or read.steps, note="")

        def on_step(at: Any, record: dict[str, Any]) -> None:
            losses = [f"{name} {f['loss']:.2f}" for name, f in record["objectives"].items()]
            note = f"{read.stages[at.stage].name}: {', '.join(losses)}"
            done = read.steps_before(at.stage) + at.step
            progress.update(task, completed=done, note=note)

        def on_evaluation(record: dict[str, Any]) -> None:
            _say_evaluation(record, as_json)

        carry_out(
            read, out, device=device, stop_at=stop_at, on_step=on_step, on_evaluation=on_evaluation
        )


@train.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the curves, too: a .png, .svg or .pdf file (needs lclm-rag[eval]).",
)
@as_json
def status(folder: Path, plot: Path | None, as_json: bool) -> None:
    """Show how far a run is: steps, losses, and the answers of its evaluations.

    \b
    Examples:
      lclm-rag train status runs/mine
      lclm-rag train status runs/mine --plot curves.png
    """
    from lclm_rag.training.status import read_status

    found = read_status(_recipe(folder / RECIPE), folder)
    if plot is not None:
        from lclm_rag.training.plots import draw_curves

        draw_curves(folder, plot)
    if as_json:
        say_json(found)
        return
    say(f"{found['step']:,} of {found['steps']:,} steps, in stage {found['stage']}")
    say(
        f"{found['source_tokens']:,} source tokens compressed, {found['learned_tokens']:,} tokens learned in "
        f"{duration(found['seconds'])}; {found['skipped']} steps were not finite"
    )
    rate = f"{found['tokens_per_second']:,.0f} tokens a second"
    if found["matrix_share"] is not None:
        rate += f", {100 * found['matrix_share']:.0f}% of the rate of a large matrix product"
    say(rate)
    for name, figures in found["objectives"].items():
        say(f"  {name:14s} loss {figures['loss']:.3f}, {100 * figures['right']:.1f}% right")
    for record in found["evaluations"]:
        say(_evaluation_line(record))


@train.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("questions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@as_json
def evaluate(folder: Path, questions: Path, device: str, as_json: bool) -> None:
    """Answer QUESTIONS with the last state of a run, from latents, text and nothing.

    A line of QUESTIONS: {"passages": [...], "question": "...", "answers": ["..."]}.

    \b
    Example:
      lclm-rag train evaluate runs/mine questions.jsonl
    """
    from lclm_rag.prompting import PromptTemplate
    from lclm_rag.training.evaluate import evaluate as answers
    from lclm_rag.training.evaluate import read_questions
    from lclm_rag.training.run import restored

    read, asked = _recipe(folder / RECIPE), read_questions(questions)
    model, progress = restored(read, folder, device)
    template = PromptTemplate.of(model.checkpoint)
    found = answers(model, template, asked, max_tokens=read.max_tokens)
    done = read.steps_before(progress.stage) + progress.step
    record = {"step": done, "stage": read.stages[progress.stage].name, **found}
    _say_evaluation(record, as_json)


@train.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="The dtype of the weights.",
)
def export(folder: Path, out: Path, dtype: str) -> None:
    """Write the last state of a run as a checkpoint, which is opened and asked before it is put in place.

    \b
    Example:
      lclm-rag train export runs/mine checkpoint/
    """
    import torch

    from lclm_rag.training.export import export as write
    from lclm_rag.training.run import restored

    model, progress = restored(_recipe(folder / RECIPE), folder)
    made = write(model, out, getattr(torch, dtype))
    say(f"{out}: the state after step {progress.step} of stage {progress.stage + 1}; use it with")
    say(f"  lclm-rag build notes/ --kb kb/ --checkpoint {made.path}")


def _start_with_ratio(checkpoint: str, out: Path, ratio: int) -> None:
    from lclm_rag.training.ratio import change_ratio

    context = click.get_current_context()
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    others = sorted(given - {"decoder", "out", "ratio"})
    if others:
        raise click.UsageError(
            f"{checkpoint} is a checkpoint: of its settings, only --ratio can be another one, not "
            f"--{others[0]}."
        )
    made = change_ratio(checkpoint, out, ratio)
    say(f"{out}: {checkpoint} with a latent for {made.config.compression_ratio} tokens.")


def _recipe(path: Path) -> Recipe:
    try:
        from lclm_rag.training.recipe import read_recipe
    except ImportError as error:
        raise click.ClickException(
            f"Training needs more packages ({error.name}): pip install 'lclm-rag[train]'."
        ) from error
    try:
        return read_recipe(path)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _keep_recipe(recipe: Path, out: Path) -> None:
    """Put a copy of the recipe into the run's folder. It may change, but not in what was begun."""
    kept = out / RECIPE
    if kept.exists():
        if kept.samefile(recipe):
            return
        from lclm_rag.training.loop import stages_begun

        count = stages_begun(out)
        old, new = (_begun(_recipe(path), count) for path in (kept, recipe))
        if old != new:
            raise click.ClickException(
                f"{out} is a run of another recipe, which it keeps as {RECIPE}: start, seed and stages that "
                "were begun must stay. Use that recipe, or another --out."
            )
    out.mkdir(parents=True, exist_ok=True)
    text = recipe.read_text("utf-8")
    if _recipe(recipe).folder == recipe.parent.resolve():
        text = f"folder = {json.dumps(str(recipe.parent.resolve()))}\n{text}"
    # Under torchrun all processes do it.
    written = out / f"{RECIPE}.{os.getpid()}"
    written.write_text(text, "utf-8")
    written.replace(kept)


def _begun(recipe: Recipe, stages: int) -> tuple[Any, ...]:
    """What decides the steps of a recipe's first stages."""
    return (recipe.place(recipe.start), recipe.seed, recipe.folder, recipe.stages[:stages])


def _show_plan(recipe: Recipe, gpu: str, as_json: bool) -> None:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.cli.progress import stdout
    from lclm_rag.estimate.devices import GPUS
    from lclm_rag.training.plan import plan
    from lclm_rag.training.run import mixtures

    if gpu not in GPUS:
        raise click.BadParameter(f"Unknown GPU {gpu!r}; use {', '.join(GPUS)}.", param_hint="--gpu")
    checkpoint = Checkpoint.open(recipe.place(recipe.start))
    stages = plan(recipe, checkpoint, mixtures(recipe, checkpoint))
    if as_json:
        say_json([vars(stage) for stage in stages])
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        "stage",
        box=SIMPLE_HEAD,
        title=f"From {checkpoint.name}, on one {gpu} at 40% of its peak",
        title_justify="left",
    )
    for heading in (
        "steps",
        "source tokens",
        "learned",
        "PFLOP",
        "time",
        "memory, GB",
    ):
        table.add_column(heading, justify="right")
    for stage in stages:
        memory = stage.weight_bytes + stage.activation_bytes
        table.add_row(
            stage.name,
            f"{stage.steps:,}",
            f"{stage.source_tokens:,}",
            f"{stage.learned_tokens:,}",
            f"{stage.flops / 1e15:,.2f}",
            duration(3600 * GPUS[gpu].hours(stage.flops, 0.4)),
            f"{memory / 1e9:,.1f}",
        )
    if len(stages) > 1:
        flops = sum(stage.flops for stage in stages)
        table.add_section()
        table.add_row(
            "all",
            f"{recipe.steps:,}",
            f"{sum(stage.source_tokens for stage in stages):,}",
            f"{sum(stage.learned_tokens for stage in stages):,}",
            f"{flops / 1e15:,.2f}",
            duration(3600 * GPUS[gpu].hours(flops, 0.4)),
            "",
        )
    stdout.print(table)


def _say_evaluation(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(record)
    else:
        say(_evaluation_line(record))


def _evaluation_line(record: dict[str, Any]) -> str:
    shares = [
        f"{name} {100 * record[name]['exact']:.1f}% exact, {100 * record[name]['contains']:.1f}% contained"
        for name in ("latents", "text", "none")
        if name in record
    ]
    return f"step {record['step']:,}: " + "; ".join(shares)
