"""query: ask one question."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.formatting import one_line, say, say_json
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

if TYPE_CHECKING:
    from lclm_rag.types import Answer

__all__ = ["answer_lines", "query"]


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
    if as_json:
        say_json(answer.to_dict())
    elif answer.no_passages:
        say(f"Nothing was found to answer from: {answer.reason}", err=True)
    else:
        say("\n".join(answer_lines(answer)))
        if answer.reason:
            say(answer.reason, err=True)
    return EXIT_IN_PART if answer.reason else 0


def answer_lines(answer: Answer) -> list[str]:
    """The lines that are printed for an answer: its text, its sources and what it took."""
    usage, timings = answer.usage, answer.timings
    lines = [answer.text, ""]
    expanded = set(answer.expanded)
    for hit in answer.sources:
        verbatim = "  (verbatim)" if hit.key in expanded else ""
        lines.append(f"  {hit.score:6.2f}  {one_line(hit.key)}  {_excerpt(hit.text)}{verbatim}")
    if answer.grounding.missing:
        lines.append(f"  not in the sources: {', '.join(map(one_line, answer.grounding.missing))}")
    if len(answer.rounds) > 1:
        lines.append(
            f"  decoded {len(answer.rounds)} times; the first reply: {_excerpt(answer.rounds[0].reply)}"
        )
    no_room = [key for round in answer.rounds for key in round.no_room]
    if no_room:
        lines.append(f"  no room to expand: {', '.join(map(one_line, no_room))}")
    if answer.left_out:
        lines.append(
            f"  left out, no room in the prompt: {', '.join(map(one_line, answer.left_out))}"
        )
    if not answer.complete and not answer.reason:
        lines.append(f"  cut after {answer.rounds[-1].generated_tokens} tokens; raise --max-tokens")
    cached = f" ({usage.cached_positions:,} cached)" if usage.cached_positions else ""
    lines.append(
        f"  {usage.source_tokens:,} source tokens as {usage.latents:,} latents, "
        f"{usage.positions:,} prompt positions{cached}; first token after "
        f"{timings.first_token * 1000:.0f} ms, {timings.total * 1000:.0f} ms in all"
    )
    return lines


def _excerpt(text: str, width: int = 60) -> str:
    line = one_line(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"
