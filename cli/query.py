"""query: ask one question."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import click

from lclm_rag.cli.bundled import NOISE, is_noise
from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import (
    as_json,
    decoder_options,
    expand_option,
    frame_option,
    kb_option,
    order_option,
    parsed_filter,
    ranking_options,
    retrieval_options,
    sampling_options,
    version_option,
)
from lclm_rag.printable import one_line
from lclm_rag.types import Grounding

__all__ = ["query"]


@click.command()
@click.argument("question")
@kb_option
@version_option
@retrieval_options
@ranking_options
@expand_option
@frame_option
@order_option
@sampling_options
@decoder_options
@click.option(
    "--context",
    type=click.Choice(["latents", "text", "none"]),
    default="latents",
    show_default=True,
    help="Answer from the latents, from the same passages pasted as text, or without passages.",
)
@as_json
def query(
    question: str,
    kb: str,
    version: int | None,
    top_k: int,
    filters: tuple[str, ...],
    rerank: str | None,
    mmr: float | None,
    neighbours: int,
    expand: Any,
    frame: Any,
    order: Any,
    context: Any,
    decoder: str,
    decoder_options: dict[str, Any],
    device: str,
    dtype: str,
    as_json: bool,
    **sampling: Any,
) -> int:
    """Ask a knowledge base one QUESTION; - reads it from standard input.

    If no passage is found, or the decoder goes on asking for passages, there is no answer, and the exit code
    is 3.

    \b
    Examples:
      lclm-rag query --kb kb/ "Who is the mayor of Velun?"
      lclm-rag query --kb kb/ "What changed?" --filter lang=en --filter "year>=2024" --top-k 4
      lclm-rag query --kb kb/ "What is the serial number of the pump?" --expand 2
      lclm-rag query --kb kb/ "What changed?" --frame chunks --expand model
      lclm-rag query --kb kb/ "What changed?" --decoder http://localhost:8000/v1
      echo "What changed?" | lclm-rag query --kb kb/ -
    """
    from lclm_rag.decoding import Sampling
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(
        kb,
        version=version,
        frame=frame,
        order=order,
        decoder=decoder,
        decoder_options=decoder_options,
        device=device,
        dtype=dtype,
    ) as knowledge_base:
        checkpoint = knowledge_base.checkpoint
        answer = knowledge_base.query(
            sys.stdin.read().strip() if question == "-" else question,
            top_k,
            parsed_filter(filters),
            context=context,
            expand=expand,
            sampling=Sampling(**sampling),
            rerank=rerank,
            mmr=mmr,
            neighbours=neighbours,
        )
    if noise := is_noise(checkpoint, answer.sources):
        say(NOISE, err=True)
    if as_json:
        say_json(answer.to_dict())
    elif answer.no_passages:
        say(f"Nothing was found to answer from: {answer.reason}", err=True)
    else:
        if noise:
            last = answer.rounds[-1:]
            answer = replace(answer, text="(no answer)", grounding=Grounding(), rounds=last)
        details = [*answer.details(), f"checkpoint: {one_line(checkpoint.name)}"]
        say("\n".join([answer.text, "", *(f"  {line}" for line in details)]))
        if answer.reason:
            say(answer.reason, err=True)
    return EXIT_IN_PART if answer.reason else 0
