"""What build, add and sync share: the options for reading a corpus, and compressing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import (
    Finite,
    as_json,
    device_options,
    kb_option,
    together,
    wait_option,
)

if TYPE_CHECKING:
    from lclm_rag.connectors.corpora import ReadingLimits
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.types import AddReport

__all__ = [
    "LIMITS",
    "add_corpus",
    "corpus_limits",
    "corpus_options",
    "left_out_shown",
    "reading_options",
    "update_from",
]


def _names(context: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    """The names between the commas; no names for an empty text; None if the option is not given."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _bounds(context: click.Context, option: click.Parameter, value: str) -> int | tuple[int, int]:
    """The number in "8", or both numbers in "2-8"."""
    numbers = value.split("-")
    if not all(number.isdecimal() for number in numbers) or len(numbers) > 2:
        raise click.BadParameter("a number, or two as in 2-8", context, option)
    return int(value) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


# Of each limit: its name in `ReadingLimits`, its default and unit, and the option's help.
LIMITS = {
    "longest_line": ("line", 64, "MiB", "Most that a line of JSONL or a row of CSV may have."),
    "largest_file": ("file", 512, "MiB", "Most that a text, HTML, PDF or DOCX file may have."),
    "largest_unpacked": ("unpacked", 64, "MiB", "Most that the XML of a DOCX file may unpack to."),
    "convert_seconds": (
        "seconds",
        600,
        "SECONDS",
        "Most time for converting an HTML, PDF or DOCX file.",
    ),
    "convert_memory": ("memory", 2048, "MiB", "Most memory for converting it (on Linux)."),
}
_limit_options = together(
    *(
        click.option(
            f"--{name.replace('_', '-')}",
            type=click.IntRange(1, 1 << 20),
            default=default,
            show_default=True,
            metavar=unit,
            help=words,
        )
        for name, (_, default, unit, words) in LIMITS.items()
    )
)
reading_options = together(
    click.option(
        "--text-column",
        default="text",
        show_default=True,
        help="Column or field with the text of a record (JSONL, CSV, Parquet, …).",
    ),
    click.option(
        "--id-column",
        default="id",
        show_default=True,
        help="Column or field with the id of a record.",
    ),
    click.option(
        "--metadata-columns",
        metavar="NAME,NAME…",
        callback=_names,
        help="Columns to keep as metadata.  [default: all scalars and lists of scalars]",
    ),
    click.option(
        "--numbers",
        "number_columns",
        metavar="NAME,NAME…",
        callback=_names,
        help="Columns whose text becomes numbers, for filters such as year>=2020. CSV has only text.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["fail", "skip"]),
        default="fail",
        show_default=True,
        help="Whether a bad record ends the run with nothing changed, or is skipped and listed. On Ray the "
        "same goes for a document at which workers die.",
    ),
    _limit_options,
)


def corpus_limits(options: dict[str, Any]) -> ReadingLimits:
    """The limits on what one file of a corpus may cost, from the values of the options.

    Args:
        options: Values of options by name, those of `LIMITS` among them.

    Returns:
        The limits.
    """
    from lclm_rag.connectors.corpora import ReadingLimits
    from lclm_rag.connectors.corpora.limits import MIB

    given = {
        limit: options[name] * (MIB if unit == "MiB" else 1)
        for name, (limit, _, unit, _) in LIMITS.items()
    }
    return ReadingLimits(**given)


corpus_options = together(
    click.argument("corpus", nargs=-1, required=True),
    kb_option,
    reading_options,
    click.option(
        "--resume/--no-resume",
        default=True,
        show_default=True,
        help="Reuse what a killed run has compressed, or compress it again.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Compress in this process, or on a Ray cluster whose machines can all read CORPUS and --kb.",
    ),
    click.option(
        "--encoders",
        metavar="N[-M]",
        default="1",
        show_default=True,
        callback=_bounds,
        help="On Ray: the number of encoders; with N-M, from N to M as the work requires.",
    ),
    click.option(
        "--gpus-per-encoder",
        type=Finite(min=0),
        help="On Ray: GPUs of each encoder, waited for if need be; 0.5 lets two share one.  "
        "[default: 1 if there are any now]",
    ),
    click.option(
        "--cpus-per-encoder",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="On Ray: threads of each encoder without a GPU.",
    ),
    click.option(
        "--index-writers",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="On Ray: the most processes that put passages on a Qdrant server at once.",
    ),
    click.option(
        "--ray-address",
        metavar="ADDRESS",
        help="Address of the Ray cluster.  [default: RAY_ADDRESS, or Ray on this machine]",
    ),
    wait_option,
    device_options,
    click.option(
        "--token-budget",
        type=click.IntRange(min=1),
        help="Tokens in one batch of the encoder.  [default: 65,536 on a GPU, 4,096 on a CPU]",
    ),
    click.option(
        "--compile/--no-compile",
        "compiled",
        default=None,
        help="Compile the encoder: about half a minute at first, then faster.  [default: on a GPU, after 40 "
        "million tokens]",
    ),
    as_json,
)


def update_from(
    kb: str,
    corpus: tuple[str, ...],
    *,
    wait: float,
    device: str,
    dtype: str,
    token_budget: int | None,
    compiled: bool | None,
    delete_others: bool,
    **reading: Any,
) -> int:
    """Open a knowledge base and add a corpus to it, with the values of `corpus_options`.

    Args:
        kb: The knowledge base's folder or URL.
        corpus: The corpus, as for `lclm-rag build`.
        wait: Seconds to wait for another process that is writing.
        device: The encoder's device.
        dtype: The encoder's dtype.
        token_budget: Tokens in one batch of the encoder; None for the default.
        compiled: Whether to compile the encoder; None for the default.
        delete_others: Whether to delete documents that the corpus does not have.
        **reading: Further arguments of `add_corpus`.

    Returns:
        The exit code.
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(
        kb,
        device=device,
        dtype=dtype,
        compressor_options={"token_budget": token_budget, "compile": compiled},
        wait=wait,
    ) as knowledge_base:
        return add_corpus(knowledge_base, corpus, delete_others=delete_others, **reading)


def add_corpus(
    knowledge_base: KnowledgeBase,
    corpus: tuple[str, ...],
    text_column: str,
    id_column: str,
    metadata_columns: list[str] | None,
    number_columns: list[str] | None,
    on_error: Any,
    resume: bool,
    engine: str,
    encoders: int | tuple[int, int],
    gpus_per_encoder: float | None,
    cpus_per_encoder: int,
    index_writers: int,
    ray_address: str | None,
    as_json: bool,
    delete_others: bool = False,
    **limits: int,
) -> int:
    """Add a corpus to an open knowledge base, with the values of `corpus_options`, and print a report.

    The knowledge base is closed afterwards.

    Args:
        knowledge_base: The knowledge base.
        corpus: The corpus, as for `lclm-rag build`.
        text_column: The column with a record's text.
        id_column: The column with a record's id.
        metadata_columns: The columns to keep as metadata; None keeps all scalars and lists of scalars.
        number_columns: The columns whose text becomes numbers.
        on_error: "fail" or "skip".
        resume: Whether to reuse what a killed run has compressed.
        engine: "local" or "ray".
        encoders: On Ray: the number of encoders, or the least and the most.
        gpus_per_encoder: On Ray: the GPUs of each encoder; None means 1 if there are any now.
        cpus_per_encoder: On Ray: the threads of each encoder without a GPU.
        index_writers: On Ray: the most processes that put passages on a Qdrant server at once.
        ray_address: The Ray cluster's address.
        as_json: Whether the report is printed as JSON.
        delete_others: Whether to delete documents that the corpus does not have.
        **limits: The values of `LIMITS`.

    Returns:
        The exit code.

    Raises:
        click.UsageError: When options for Ray are given without Ray.
    """
    from lclm_rag.cli.progress import progress_bar
    from lclm_rag.connectors.corpora import (
        corpus_parts,
        count_documents,
        number_like_columns,
        read_corpus,
    )

    skipped: list[str] = []
    ignored: list[str] = []
    columns: dict[str, Any] = {
        "text_column": text_column,
        "id_column": id_column,
        "metadata_columns": metadata_columns,
        "number_columns": number_columns,
    }
    allowed = corpus_limits(limits)
    of_ray = (encoders, cpus_per_encoder, index_writers, gpus_per_encoder, ray_address)
    on_ray = None
    documents: Any = None
    if engine == "ray":
        from lclm_rag.ingestion.ray import RayEngine

        on_ray = RayEngine(
            encoders=encoders,
            gpus=gpus_per_encoder,
            cpus=cpus_per_encoder,
            address=ray_address,
            index_writers=index_writers,
            on_error=on_error,
            on_ignore=ignored.append,
        )
        documents = corpus_parts(corpus, **columns, limits=allowed)
    elif of_ray != (1, 1, 8, None, None):
        raise click.UsageError(
            "--encoders, --gpus-per-encoder, --cpus-per-encoder, --index-writers and --ray-address are for "
            "--engine ray."
        )
    if documents is None:
        documents = read_corpus(
            corpus,
            **columns,
            limits=allowed,
            on_error=on_error,
            on_skip=skipped.append,
            on_ignore=ignored.append,
        )
    for line in number_like_columns(corpus, **columns):
        say(line, err=True)
    was_auto = knowledge_base.settings.language == "auto"
    with left_out_shown(ignored, skipped), knowledge_base, progress_bar() as progress:
        total = count_documents(corpus)
        task = progress.add_task("compressing", total=total, note="")

        def show(report: AddReport) -> None:
            done = report.added + report.updated + report.unchanged + len(skipped)
            doing = "indexing" if done == total else "compressing"
            progress.update(
                task, description=doing, completed=done, note=f"{report.latents:,} latents"
            )

        if delete_others:
            report = knowledge_base.sync(
                documents,
                resume=resume,
                engine=on_ray,
                keep=lambda: bool(skipped),
                on_progress=show,
            )
        else:
            report = knowledge_base.add(documents, resume=resume, engine=on_ray, on_progress=show)
        skipped += report.skipped
    language = knowledge_base.settings.language
    if was_auto and language != "auto":
        say(f"The language of the texts: {language}; build --language names another.", err=True)
    if as_json:
        result = {**asdict(report), "skipped": skipped, "version": knowledge_base.store.version}
        say_json(result)
    else:
        gone = f"{report.deleted} deleted, " if delete_others else ""
        again = f" {report.reused:,} passages were there already." if report.reused else ""
        say(
            f"{knowledge_base.path}: {report.added} added, {report.updated} updated, {gone}"
            f"{report.unchanged} unchanged, {len(skipped)} skipped; {report.tokens:,} tokens in "
            f"{report.passages - report.reused:,} passages became {report.latents:,} latents.{again}"
        )
        if delete_others and skipped:
            say("Nothing was deleted, because records were skipped.", err=True)
        for worker in report.workers:
            rate = worker.tokens / worker.seconds if worker.seconds else 0.0
            say(f"  {worker.worker}: {worker.tokens:,} tokens, {rate:,.0f} a second", err=True)
    return EXIT_IN_PART if skipped else 0


@contextmanager
def left_out_shown(ignored: Sequence[str], skipped: Sequence[str]) -> Iterator[None]:
    """List at the end what was ignored or skipped, even if an error ends the work.

    Args:
        ignored: Sentences on what was left out by rule; may still grow within the context.
        skipped: Sentences on what was left out because of errors; may still grow within the context.
    """
    try:
        yield
    finally:
        for line in ignored:
            say(f"ignored {line}", err=True)
        for line in skipped:
            say(f"skipped {line}", err=True)
