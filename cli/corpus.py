"""build, add, delete."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.options import as_json, device_options, kb_option, together

if TYPE_CHECKING:
    from lclm_rag.answer import AddReport
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["add", "build", "delete"]


def _names(context: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    """The names between commas; none for an empty text, None where the option is not given."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


_corpus_options = together(
    click.argument("corpus", nargs=-1, required=True),
    kb_option,
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
        "--on-error",
        type=click.Choice(["fail", "skip"]),
        default="fail",
        show_default=True,
        help="A bad record ends the run with nothing changed, or is left out and listed.",
    ),
    device_options,
    as_json,
)


@click.command()
@_corpus_options
@click.option(
    "--checkpoint",
    default=None,
    help="Folder or hub id, such as latent-context/0.6b-4b-LCLM-16x.  [default: the bundled one]",
)
@click.option("--codec", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True)
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
    kb: Path,
    checkpoint: str | None,
    codec: Any,
    space: Any,
    passage_tokens: int | None,
    contextual_headers: bool,
    embedder: str | None,
    qdrant_url: str | None,
    collection: str | None,
    device: str,
    dtype: str,
    **reading: Any,
) -> int:
    """Compress a CORPUS into a new knowledge base.

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
    )
    try:
        return _add(knowledge_base, corpus, **reading)
    except BaseException:
        knowledge_base.close()
        shutil.rmtree(kb)  # `create` made it in an empty place: the next try can start afresh.
        raise


@click.command()
@_corpus_options
def add(corpus: tuple[str, ...], kb: Path, device: str, dtype: str, **reading: Any) -> int:
    """Add a CORPUS to a knowledge base; documents of the same id are replaced.

    Unchanged documents cost next to nothing. CORPUS is as for lclm-rag build.

    \b
    Example:
      lclm-rag add notes/2026/ --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(kb, device=device, dtype=dtype) as knowledge_base:
        return _add(knowledge_base, corpus, **reading)


def _add(
    knowledge_base: KnowledgeBase,
    corpus: tuple[str, ...],
    text_column: str,
    id_column: str,
    metadata_columns: list[str] | None,
    on_error: Any,
    as_json: bool,
) -> int:
    from lclm_rag.cli.progress import progress_bar
    from lclm_rag.connectors.corpora import count_documents, read_corpus

    skipped: list[str] = []
    ignored: list[str] = []
    documents = read_corpus(
        corpus,
        text_column=text_column,
        id_column=id_column,
        metadata_columns=metadata_columns,
        on_error=on_error,
        on_skip=skipped.append,
        on_ignore=ignored.append,
    )
    with knowledge_base, progress_bar() as progress:
        task = progress.add_task("compressing", total=count_documents(corpus), note="")

        def show(report: AddReport) -> None:
            done = report.added + report.updated + report.unchanged + len(skipped)
            progress.update(task, completed=done, note=f"{report.latents:,} latents")

        report = knowledge_base.add(documents, on_progress=show)
    for line in ignored:
        click.echo(f"ignored {line}", err=True)
    for line in skipped:
        click.echo(f"skipped {line}", err=True)
    if as_json:
        result = {**asdict(report), "skipped": skipped, "version": knowledge_base.store.version}
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"{knowledge_base.path}: {report.added} added, {report.updated} updated, "
            f"{report.unchanged} unchanged, {len(skipped)} skipped; {report.tokens:,} tokens in "
            f"{report.passages:,} passages became {report.latents:,} latents."
        )
    return EXIT_IN_PART if skipped else 0


@click.command()
@click.argument("document_ids", nargs=-1, required=True, metavar="ID...")
@kb_option
@as_json
def delete(document_ids: tuple[str, ...], kb: Path, as_json: bool) -> None:
    """Delete documents by id; all of them, or, where one is not there, none.

    \b
    Example:
      lclm-rag delete notes/old.md --kb kb/
    """
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(kb) as knowledge_base:
        passages = knowledge_base.delete(document_ids)
        version = knowledge_base.store.version
    if as_json:
        click.echo(json.dumps({"passages": passages, "version": version}))
    else:
        click.echo(f"{kb}: {len(document_ids)} documents ({passages} passages) deleted.")
