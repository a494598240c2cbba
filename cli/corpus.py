"""build, add, sync, delete."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.options import (
    CODEC,
    as_json,
    device_options,
    filter_option,
    kb_option,
    parsed_filter,
    together,
    wait_option,
)
from lclm_rag.errors import KnowledgeBaseError

if TYPE_CHECKING:
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.types import AddReport

__all__ = ["add", "build", "delete", "left_out_shown", "reading_options", "sync"]


def _names(context: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    """The names between commas; none for an empty text, None where the option is not given."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _bounds(context: click.Context, option: click.Parameter, value: str) -> int | tuple[int, int]:
    """ "8" as a number, "2-8" as both."""
    numbers = value.split("-")
    if not all(number.isdecimal() for number in numbers) or len(numbers) > 2:
        raise click.BadParameter("a number, or two as in 2-8", context, option)
    return int(value) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


reading_options = together(
    click.option(
        "--text-column",
        default="text",
        show_default=True,
        help="Where records (JSONL, CSV, Parquet, …) have their text.",
    ),
    click.option(
        "--id-column", default="id", show_default=True, help="Where records have their id."
    ),
    click.option(
        "--metadata-columns",
        metavar="NAME,NAME…",
        callback=_names,
        help="Keep only these of a record as metadata.  [default: all scalars and lists of scalars]",
    ),
    click.option(
        "--numbers",
        "number_columns",
        metavar="NAME,NAME…",
        callback=_names,
        help="Texts in these columns become numbers, for filters such as year>=2020; CSV has only texts.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["fail", "skip"]),
        default="fail",
        show_default=True,
        help="A bad record ends the run with nothing changed, or is left out and listed; on Ray also a "
        "document at which workers die.",
    ),
)
_corpus_options = together(
    click.argument("corpus", nargs=-1, required=True),
    kb_option,
    reading_options,
    click.option(
        "--resume/--no-resume",
        default=True,
        show_default=True,
        help="Take over what a run that was killed has compressed, or compress it again.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Compress in this process, or on a Ray cluster whose machines all see CORPUS and --kb.",
    ),
    click.option(
        "--encoders",
        metavar="N[-M]",
        default="1",
        show_default=True,
        callback=_bounds,
        help="On Ray: so many encoders, or from N to M as there is work.",
    ),
    click.option(
        "--gpus-per-encoder",
        type=click.FloatRange(min=0),
        help="On Ray: 0.5 lets two share one.  [default: 1 where there are any]",
    ),
    click.option(
        "--cpus-per-encoder",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="On Ray: threads of an encoder without a GPU.",
    ),
    click.option(
        "--ray-address",
        metavar="ADDRESS",
        help="Of the cluster.  [default: RAY_ADDRESS, or Ray on this machine]",
    ),
    wait_option,
    device_options,
    click.option(
        "--token-budget",
        type=click.IntRange(min=1),
        help="Tokens in one batch of the encoder.  [default: 65,536 on a GPU, 4,096 on a CPU]",
    ),
    click.option(
        "--compile",
        "compiled",
        is_flag=True,
        help="Compile the encoder: some half a minute at first, then faster; for large corpora.",
    ),
    as_json,
)


@click.command()
@_corpus_options
@click.option(
    "--checkpoint",
    default=None,
    help="Folder or hub id, such as latent-context/0.6b-4b-LCLM-16x.  [default: the bundled one]",
)
@click.option(
    "--codec",
    type=click.Choice(CODEC),
    default="int4",
    show_default=True,
    help="How latents are stored, from large and exact to small.",
)
@click.option(
    "--space",
    type=click.Choice(["encoder", "decoder"]),
    default="encoder",
    show_default=True,
    help="Store latents before the adapter (smaller) or after it (nothing to compute per query).",
)
@click.option(
    "--passage-tokens", type=click.IntRange(min=1), help="Longest passage.  [default: one window]"
)
@click.option(
    "--contextual-headers",
    is_flag=True,
    help="Put title and headings in front of each passage, as in 'Guide > Northern line'.",
)
@click.option(
    "--embedder", help="sentence-transformers model: hybrid retrieval instead of BM25 alone."
)
@click.option("--qdrant-url", help="Keep the passage index on this Qdrant server.")
@click.option("--collection", help="Name of the collection on that server.")
def build(
    corpus: tuple[str, ...],
    kb: str,
    checkpoint: str | None,
    codec: Any,
    space: Any,
    passage_tokens: int | None,
    contextual_headers: bool,
    embedder: str | None,
    qdrant_url: str | None,
    collection: str | None,
    wait: float,
    device: str,
    dtype: str,
    token_budget: int | None,
    compiled: bool,
    resume: bool,
    **reading: Any,
) -> int:
    """Compress a CORPUS into a new knowledge base.

    Killed, it goes on where it stopped when it is run again. Nothing can be asked before it is done.

    CORPUS, one or more of:

    \b
      a folder          text, Markdown, HTML, PDF, DOCX; or a Parquet or Arrow data set
      a quoted glob     'notes/**/*.md', 'dumps/*.jsonl.gz'
      a file            any of these; JSONL and CSV, also .gz and .zst; Parquet; Arrow
      a data set        a folder of Dataset.save_to_disk, or hf://OWNER/NAME/CONFIG:SPLIT
      -                 JSONL on standard input; records must have ids

    Files, folders and globs may lie in an object store: s3://bucket/notes, gs://, abfs://.

    \b
    Examples:
      lclm-rag build notes/ --kb kb/ --contextual-headers
      lclm-rag build articles.jsonl.gz --kb kb/ --text-column body --id-column url
      lclm-rag build wiki.parquet --kb kb/ --checkpoint latent-context/0.6b-4b-LCLM-16x
      zcat dump.gz | jq -c '{id, text}' | lclm-rag build - --kb kb/
      lclm-rag build s3://bucket/wiki/ --kb s3://bucket/kb --engine ray --encoders 8
    """
    from lclm_rag.checkpoint import BUNDLED
    from lclm_rag.knowledge_base import KnowledgeBase

    if checkpoint is None:
        click.echo("No --checkpoint given: using the bundled tiny-lclm-4x.", err=True)
    knowledge_base = KnowledgeBase.create(
        kb,
        checkpoint or BUNDLED,
        codec=codec,
        space=space,
        passage_tokens=passage_tokens,
        contextual_headers=contextual_headers,
        embedder=embedder,
        qdrant_url=qdrant_url,
        collection=collection,
        device=device,
        dtype=dtype,
        compressor_options={"token_budget": token_budget, "compile": compiled},
        wait=wait,
        resume=True,
    )
    try:
        return _add(knowledge_base, corpus, resume=resume, **reading)
    except BaseException:
        if knowledge_base.abandon():
            click.echo(
                f"What was compressed stays in {knowledge_base.folder}: run it again, and it goes on from "
                "there.",
                err=True,
            )
        raise


@click.command()
@_corpus_options
def add(
    corpus: tuple[str, ...],
    kb: str,
    wait: float,
    device: str,
    dtype: str,
    token_budget: int | None,
    compiled: bool,
    **reading: Any,
) -> int:
    """Add a CORPUS to a knowledge base; documents of the same id are replaced.

    Unchanged documents cost a hash. Of changed ones, passages whose text is the same are not compressed
    again. CORPUS is as for lclm-rag build.

    \b
    Example:
      lclm-rag add notes/2026/ --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(
        kb,
        device=device,
        dtype=dtype,
        compressor_options={"token_budget": token_budget, "compile": compiled},
        wait=wait,
    ) as knowledge_base:
        return _add(knowledge_base, corpus, **reading)


@click.command()
@_corpus_options
def sync(
    corpus: tuple[str, ...],
    kb: str,
    wait: float,
    device: str,
    dtype: str,
    token_budget: int | None,
    compiled: bool,
    **reading: Any,
) -> int:
    """Make a knowledge base hold what a CORPUS holds: new, changed and deleted files.

    As add, and every document that is not in the CORPUS is deleted; all in one version. Where a record is
    skipped (--on-error skip) nothing is deleted, because it may be that one.

    \b
    Example:
      lclm-rag sync notes/ --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(
        kb,
        device=device,
        dtype=dtype,
        compressor_options={"token_budget": token_budget, "compile": compiled},
        wait=wait,
    ) as knowledge_base:
        return _add(knowledge_base, corpus, delete_others=True, **reading)


def _add(
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
    ray_address: str | None,
    as_json: bool,
    delete_others: bool = False,
) -> int:
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
    on_ray = None
    documents: Any = None
    if engine == "ray":
        from lclm_rag.ingestion.ray import RayEngine

        on_ray = RayEngine(
            encoders=encoders,
            gpus=gpus_per_encoder,
            cpus=cpus_per_encoder,
            address=ray_address,
            on_error=on_error,
            on_ignore=ignored.append,
        )
        documents = corpus_parts(corpus, **columns)
    elif (encoders, cpus_per_encoder) != (1, 1) or gpus_per_encoder or ray_address:
        raise click.UsageError("Encoders, their size and the address are for --engine ray.")
    if documents is None:
        documents = read_corpus(
            corpus,
            **columns,
            on_error=on_error,
            on_skip=skipped.append,
            on_ignore=ignored.append,
        )
    for line in number_like_columns(corpus, **columns):
        click.echo(line, err=True)
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
    if as_json:
        result = {**asdict(report), "skipped": skipped, "version": knowledge_base.store.version}
        click.echo(json.dumps(result))
    else:
        gone = f"{report.deleted} deleted, " if delete_others else ""
        again = f" {report.reused:,} passages were there already." if report.reused else ""
        click.echo(
            f"{knowledge_base.path}: {report.added} added, {report.updated} updated, {gone}"
            f"{report.unchanged} unchanged, {len(skipped)} skipped; {report.tokens:,} tokens in "
            f"{report.passages - report.reused:,} passages became {report.latents:,} latents.{again}"
        )
        if delete_others and skipped:
            click.echo("Nothing was deleted, because of what was skipped.", err=True)
        for worker in report.workers:
            rate = worker.tokens / worker.seconds if worker.seconds else 0.0
            click.echo(
                f"  {worker.worker}: {worker.tokens:,} tokens, {rate:,.0f} a second", err=True
            )
    return EXIT_IN_PART if skipped else 0


@contextmanager
def left_out_shown(ignored: Sequence[str], skipped: Sequence[str]) -> Iterator[None]:
    """What was left out is told in the end, also where it is why nothing came of it."""
    try:
        yield
    finally:
        for line in ignored:
            click.echo(f"ignored {line}", err=True)
        for line in skipped:
            click.echo(f"skipped {line}", err=True)


@click.command()
@click.argument("document_ids", nargs=-1, metavar="[ID]...")
@kb_option
@filter_option
@click.option("--yes", is_flag=True, help="Delete what --filter matches without being asked.")
@wait_option
@as_json
def delete(
    document_ids: tuple[str, ...],
    kb: str,
    filters: tuple[str, ...],
    yes: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Delete documents by id, all of them or, where one is not there, none; or by a metadata filter.

    With --filter it says how many documents match, and asks; where nobody can be asked, --yes must be given.

    \b
    Examples:
      lclm-rag delete notes/old.md --kb kb/
      lclm-rag delete --filter "year<2020" --kb kb/
      lclm-rag delete --filter "year<2020" --yes --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    if bool(document_ids) == bool(filters):
        raise click.UsageError("Give either ids or --filter.")
    with KnowledgeBase.open(kb, wait=wait) as knowledge_base:
        before = knowledge_base.store.count_documents()
        if filters:
            document_ids = _chosen(knowledge_base, filters, yes)
        passages = knowledge_base.delete(document_ids)
        store = knowledge_base.store
    gone = before - store.count_documents()
    if as_json:
        click.echo(json.dumps({"documents": gone, "passages": passages, "version": store.version}))
    else:
        click.echo(f"{kb}: {gone} documents ({passages} passages) deleted.")


def _chosen(knowledge_base: KnowledgeBase, filters: tuple[str, ...], yes: bool) -> tuple[str, ...]:
    """The ids of the documents that match, if they are to be deleted."""
    condition = parsed_filter(filters)
    assert condition is not None
    found = knowledge_base.matching_documents(condition)
    there = knowledge_base.store.count_documents()
    if not found:
        raise KnowledgeBaseError(f"No document of {knowledge_base.folder} matches the filter.")
    matching = f"{len(found):,} of {there:,} documents match"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{matching}: give --yes to delete them without being asked.")
        click.confirm(f"{matching}. Delete them?", abort=True, err=True)
    return tuple(found)
