"""estimate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.corpus import left_out_shown, reading_options
from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.machine_tables import show_machines
from lclm_rag.cli.machines import MACHINE_OPTIONS, as_plain, machine_options, planned
from lclm_rag.cli.options import as_json

if TYPE_CHECKING:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.estimate.store import CorpusSize, Split, StorePlan

__all__ = ["estimate"]

_READING_OPTIONS = (
    "text_column",
    "id_column",
    "metadata_columns",
    "number_columns",
    "on_error",
    "contextual_headers",
)
_QUESTIONS_PER_SECOND = 10.0
_PASSAGE_TOKENS = 512


@click.command()
@click.argument("corpus", nargs=-1)
@reading_options
@click.option(
    "--checkpoint",
    help="Folder, hub id (fetched whole) or 'bundled': its sizes, and tokens counted with its "
    "tokenizer.  [default: the sizes of latent-context/0.6b-4b-LCLM-{4,8,16}x]",
)
@click.option(
    "--bytes-per-token",
    type=click.FloatRange(min=0, min_open=True),
    help="Do not tokenize: so many bytes of UTF-8 are a token.  [default: 4.5 without --checkpoint]",
)
@click.option(
    "--passage-tokens",
    type=click.IntRange(min=1),
    help="Longest passage.  [default: one window; 512 with --passages]",
)
@click.option(
    "--contextual-headers",
    is_flag=True,
    help="Passages have title and headings in front; only where tokens are counted.",
)
@click.option(
    "--utilization",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.4,
    show_default=True,
    help="Share of a GPU's peak that the encoder reaches, and the decoder.",
)
@machine_options
@as_json
@click.pass_context
def estimate(
    context: click.Context,
    /,
    corpus: tuple[str, ...],
    checkpoint: str | None,
    bytes_per_token: float | None,
    passage_tokens: int | None,
    contextual_headers: bool,
    utilization: float,
    passages: int | None,
    questions_per_second: float | None,
    as_json: bool,
    **options: Any,
) -> int:
    """What compressing a CORPUS will take: tokens, latents, disk for each codec, hours on a GPU.

    Reads the whole corpus and compresses nothing; no GPU, no model. CORPUS is as for lclm-rag build.

    With --questions-per-second it goes on to the machines: the store's files, GPUs to compress by a
    deadline, Qdrant's memory and servers, vLLM's GPUs and what a question costs as latents and as pasted
    text, and which limit comes next. With --passages in place of a CORPUS nothing is read.

    Without --checkpoint the sizes are those of the published 0.6B-4B models, at ratios of 4, 8 and 16,
    and tokens are guessed from the bytes of the text: 4.5 a token is about right for English prose;
    code and most other languages have fewer bytes a token, and so more tokens. With --checkpoint the
    passages are those that build would make, and their tokens are counted: slower, but exact. Both
    together: the checkpoint's sizes, and tokens from bytes.

    \b
    Examples:
      lclm-rag estimate articles.jsonl.gz --text-column body --id-column url
      lclm-rag estimate code.parquet --bytes-per-token 3 --utilization 0.3
      lclm-rag estimate notes/ --checkpoint models/0.6b-4b-LCLM-16x --passage-tokens 512
      lclm-rag estimate notes/ --questions-per-second 5 --gpu L4 --gpu-hour-price 0.8
      lclm-rag estimate --passages 100M --questions-per-second 100 --deadline-hours 48
    """
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.estimate.shapes import PUBLISHED, LclmShape
    from lclm_rag.estimate.store import BYTES_PER_TOKEN, equal_passages, gpu_hours, plan_store

    _check_usage(context, corpus, passages, questions_per_second, checkpoint)
    opened = None if checkpoint is None else Checkpoint.open(checkpoint)
    shapes = PUBLISHED if opened is None else (LclmShape.of(opened),)
    skipped: list[str] = []
    if passages is None:
        longest = passage_tokens or shapes[0].config.encoder_window_size
        split, token_bytes = _splitter(opened, longest, bytes_per_token, contextual_headers)
        reading = {name: options[name] for name in _READING_OPTIONS[:-1]}
        size, skipped = _measured(corpus, split, reading)
    else:
        longest = passage_tokens or _PASSAGE_TOKENS
        token_bytes = BYTES_PER_TOKEN if bytes_per_token is None else bytes_per_token
        size = equal_passages(passages, longest, token_bytes)
        questions_per_second = questions_per_second or _QUESTIONS_PER_SECOND
    plans = [plan_store(size, shape, space) for shape in shapes for space in ("encoder", "decoder")]
    machines = None
    if questions_per_second is not None:
        machines = planned(size, opened, questions_per_second, utilization, options)
    if as_json:
        result: dict[str, Any] = {
            "documents": size.documents,
            "text_bytes": size.text_bytes,
            "source_tokens": size.tokens,
            "bytes_per_token": token_bytes,
            "passages": size.passages,
            "passage_tokens": longest,
            "utilization": utilization,
            "stores": [
                {**asdict(plan), "gpu_hours": gpu_hours(plan.flops, utilization)} for plan in plans
            ],
            "skipped": skipped,
        }
        if machines is not None:
            result["machines"] = as_plain(*machines)
        click.echo(json.dumps(result))
        return EXIT_IN_PART if skipped else 0
    _show_size(size, longest, token_bytes)
    if passages is None:
        _show_stores(plans)
        _show_hours(plans, utilization)
        _show_assumptions(plans, token_bytes, utilization)
    if machines is not None:
        show_machines(size, *machines, [shape.name for shape in shapes])
    return EXIT_IN_PART if skipped else 0


def _check_usage(
    context: click.Context,
    corpus: tuple[str, ...],
    passages: int | None,
    questions_per_second: float | None,
    checkpoint: str | None,
) -> None:
    """Wrong usage where an option would do nothing."""

    def given(names: tuple[str, ...]) -> str | None:
        default = click.core.ParameterSource.DEFAULT
        found = (name for name in names if context.get_parameter_source(name) is not default)
        name = next(found, None)
        options = {option.name: option.opts[0] for option in context.command.params}
        return None if name is None else options[name]

    if bool(corpus) == (passages is not None):
        raise click.UsageError("Give either a CORPUS or --passages.")
    if passages is not None and (option := given(_READING_OPTIONS)):
        raise click.UsageError(f"{option} is for reading a CORPUS; with --passages there is none.")
    if passages is None and questions_per_second is None and (option := given(MACHINE_OPTIONS)):
        raise click.UsageError(f"{option} is for the machines: give --questions-per-second, too.")
    if checkpoint is not None and given(("ratio",)):
        raise click.UsageError("--ratio is for the published sizes; --checkpoint has its own.")


def _measured(
    corpus: tuple[str, ...], split: Split, reading: dict[str, Any]
) -> tuple[CorpusSize, list[str]]:
    """The size of a corpus, and what of it was skipped."""
    from lclm_rag.cli.progress import progress_bar
    from lclm_rag.connectors.corpora import count_documents, read_corpus
    from lclm_rag.estimate.store import measure_corpus

    skipped: list[str] = []
    ignored: list[str] = []
    documents = read_corpus(corpus, **reading, on_skip=skipped.append, on_ignore=ignored.append)
    with left_out_shown(ignored, skipped), progress_bar() as progress:
        task = progress.add_task("reading", note="")
        total = count_documents(corpus)
        size = measure_corpus(progress.track(documents, total, task_id=task), split)
    return size, skipped


def _splitter(
    checkpoint: Checkpoint | None,
    passage_tokens: int,
    bytes_per_token: float | None,
    contextual_headers: bool,
) -> tuple[Split, float | None]:
    """What splits documents, and the bytes that it takes for a token; None where it counts tokens."""
    from lclm_rag.estimate.store import BYTES_PER_TOKEN, split_by_bytes, split_by_tokenizer

    if checkpoint is not None and bytes_per_token is None:
        split = split_by_tokenizer(
            checkpoint, passage_tokens, contextual_headers=contextual_headers
        )
        return split, None
    if contextual_headers:
        raise click.UsageError(
            "--contextual-headers is for counted tokens: give --checkpoint and no "
            "--bytes-per-token, or leave it out."
        )
    assumed = BYTES_PER_TOKEN if bytes_per_token is None else bytes_per_token
    return split_by_bytes(passage_tokens, assumed), assumed


def _show_size(size: CorpusSize, passage_tokens: int, bytes_per_token: float | None) -> None:
    from rich.filesize import decimal

    how = "counted" if bytes_per_token is None else f"at {bytes_per_token:g} bytes a token"
    click.echo(f"{'documents':16}{size.documents:,}")
    click.echo(f"{'text':16}{decimal(size.text_bytes)}")
    click.echo(f"{'source tokens':16}{size.tokens:,}, {how}")
    click.echo(f"{'passages':16}{size.passages:,}, of at most {passage_tokens:,} tokens")


def _show_stores(plans: list[StorePlan]) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    from lclm_rag.cli.progress import stdout

    # Codecs of the same size share a column.
    columns: dict[tuple[int, ...], list[str]] = {}
    for codec in plans[0].bytes:
        columns.setdefault(tuple(plan.bytes[codec] for plan in plans), []).append(codec)
    table = Table(title="\nThe store on disk, text included")
    table.add_column("ratio", justify="right")
    table.add_column("space, width")
    table.add_column("latents", justify="right")
    for codecs in columns.values():
        table.add_column(", ".join(codecs), justify="right")
    for plan, sizes in zip(plans, zip(*columns, strict=True), strict=True):
        table.add_row(
            f"{plan.compression_ratio}x",
            f"{plan.space} {plan.width}",
            f"{plan.latents:,}",
            *map(decimal, sizes),
        )
    stdout.print(table)


def _show_hours(plans: list[StorePlan], utilization: float) -> None:
    from rich.table import Table

    from lclm_rag.cli.progress import stdout
    from lclm_rag.estimate.store import PEAK_TFLOPS, gpu_hours

    flops = max(plan.flops for plan in plans)
    table = Table(title=f"\nCompressing: {flops:.2e} FLOPs")
    table.add_column("GPU")
    table.add_column("peak TFLOP/s", justify="right")
    table.add_column("one GPU takes", justify="right")
    for name, hours in gpu_hours(flops, utilization).items():
        table.add_row(name, f"{PEAK_TFLOPS[name]:,.0f}", _time(hours))
    stdout.print(table)


def _time(hours: float) -> str:
    if hours * 60 < 1:
        return "< 1 min"
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def _show_assumptions(
    plans: list[StorePlan], bytes_per_token: float | None, utilization: float
) -> None:
    from lclm_rag.cli.progress import stdout

    names = list(dict.fromkeys(plan.checkpoint for plan in plans))
    assumed = [f"the encoder reaches {utilization:.0%} of the GPU's peak in dense bfloat16"]
    if bytes_per_token is not None:
        assumed.append(
            f"a token is {bytes_per_token:g} bytes of text (English prose about 4.5, code and most "
            "other languages fewer)"
        )
        assumed.append("passages are full (build ends them with a sentence, and makes some more)")
    stdout.print(
        f"\nSizes of {', '.join(names)}.\nAssumed: {'; '.join(assumed)}.\n"
        "FLOPs are those of the costliest row above. Not counted: the passage index (with BM25 about as "
        "large as the text), and the time to read, split and write.",
        soft_wrap=True,
        markup=False,
    )
