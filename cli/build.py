"""build: compress a corpus into a new knowledge base."""

from __future__ import annotations

from typing import Any

import click

from lclm_rag.cli.bundled import BUNDLED_IS_USED
from lclm_rag.cli.corpus import add_corpus, corpus_options
from lclm_rag.cli.formatting import say
from lclm_rag.cli.options import CODECS, checkpoint_option, collection_options, frame_option

__all__ = ["build"]


@click.command()
@corpus_options
@checkpoint_option
@click.option(
    "--codec",
    type=click.Choice(CODECS),
    default="int4",
    show_default=True,
    help="How latents are stored; from large and exact to small.",
)
@click.option(
    "--space",
    type=click.Choice(["encoder", "decoder"]),
    default="encoder",
    show_default=True,
    help="Store latents from before the adapter (smaller) or after it (nothing to compute per query).",
)
@click.option(
    "--passage-tokens",
    type=click.IntRange(min=1),
    help="Most tokens in a passage.  [default: one window]",
)
@click.option(
    "--contextual-headers",
    is_flag=True,
    help="Begin each passage with its title and headings, as in 'Guide > Northern line'.",
)
@frame_option
@click.option(
    "--embedder", help="sentence-transformers model: hybrid retrieval instead of BM25 alone."
)
@click.option("--qdrant-url", help="Keep the passage index on this Qdrant server.")
@click.option("--collection", help="Name of the collection on that server.")
@collection_options
@click.option(
    "--language",
    default="auto",
    show_default=True,
    help="Whose endings and common words BM25 knows: english, german, ...; auto goes by what is added first.",
)
def build(
    corpus: tuple[str, ...],
    kb: str,
    checkpoint: str | None,
    codec: Any,
    space: Any,
    passage_tokens: int | None,
    contextual_headers: bool,
    frame: Any,
    embedder: str | None,
    qdrant_url: str | None,
    collection: str | None,
    qdrant_options: dict[str, Any] | None,
    filter_keys: list[str] | None,
    language: str,
    wait: float,
    device: str,
    dtype: str,
    token_budget: int | None,
    compiled: bool | None,
    resume: bool,
    **reading: Any,
) -> int:
    """Compress a CORPUS into a new knowledge base.

    If it is killed, run the same command again to continue from there. The knowledge base can only be queried
    once the build is complete.

    CORPUS is one or more of:

    \b
      a folder          text, Markdown, HTML, PDF, DOCX; or a Parquet or Arrow data set
      a quoted glob     'notes/**/*.md', 'dumps/*.jsonl.gz'
      a file            any of these; JSONL and CSV, also .gz and .zst; Parquet; Arrow
      a data set        a folder of Dataset.save_to_disk, or hf://OWNER/NAME/CONFIG:SPLIT
      -                 JSONL on standard input; records must have ids

    Files, folders and globs may be in an object store: s3://bucket/notes, gs://.

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
        say(BUNDLED_IS_USED, err=True)
    knowledge_base = KnowledgeBase.create(
        kb,
        checkpoint or BUNDLED,
        codec=codec,
        space=space,
        passage_tokens=passage_tokens,
        contextual_headers=contextual_headers,
        frame=frame,
        embedder=embedder,
        qdrant_url=qdrant_url,
        collection=collection,
        qdrant_options=qdrant_options,
        filter_keys=filter_keys,
        language=language,
        device=device,
        dtype=dtype,
        compressor_options={"token_budget": token_budget, "compile": compiled},
        wait=wait,
        resume=True,
    )
    try:
        return add_corpus(knowledge_base, corpus, resume=resume, **reading)
    except BaseException:
        if knowledge_base.abandon():
            say(
                f"What was compressed stays in {knowledge_base.folder}: run the same command again to "
                "continue from there.",
                err=True,
            )
        raise
