"""chat: ask one question after another."""

from __future__ import annotations

import sys
from typing import Any

import click

from lclm_rag.cli.bundled import NOISE, is_noise
from lclm_rag.cli.formatting import say
from lclm_rag.cli.options import (
    decoder_options,
    expand_option,
    frame_option,
    kb_option,
    order_option,
    parsed_filter,
    retrieval_options,
    sampling_options,
)

__all__ = ["chat"]


@click.command()
@kb_option
@retrieval_options
@expand_option
@frame_option
@order_option
@click.option("--no-history", is_flag=True, help="Each question stands alone.")
@click.option(
    "--compress-history",
    is_flag=True,
    help="Older questions and answers go into the prompt as latents.",
)
@sampling_options
@decoder_options
def chat(
    kb: str,
    top_k: int,
    filters: tuple[str, ...],
    expand: Any,
    frame: Any,
    order: Any,
    no_history: bool,
    compress_history: bool,
    decoder: str,
    decoder_options: dict[str, Any],
    device: str,
    dtype: str,
    **sampling: Any,
) -> None:
    """Ask one question after another, with the models kept loaded.

    A question may refer to those before it: the decoder puts it so that it can be searched for, or, if it
    knows no conversations, as the bundled one, gets the last questions with it. An empty line or Ctrl-D ends
    the session. Answers are shown as they are written, so --expand auto looks only at the question here, and
    --expand model and tool work only with lclm-rag query.

    \b
    Examples:
      lclm-rag chat --kb kb/
      lclm-rag chat --kb kb/ --decoder vllm --decoder-option max_model_len=32768
    """
    if expand in ("model", "tool"):
        raise click.BadParameter(
            f"{expand} takes several rounds; use query.", param_hint="--expand"
        )
    from lclm_rag.checkpoint import BUNDLED
    from lclm_rag.decoding import Sampling
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.querying.query import Query

    chosen, how = parsed_filter(filters), Sampling(**sampling)
    with KnowledgeBase.open(
        kb,
        frame=frame,
        order=order,
        decoder=decoder,
        decoder_options=decoder_options,
        device=device,
        dtype=dtype,
    ) as knowledge_base:
        say(f"{len(knowledge_base):,} passages. An empty line ends the session.", err=True)
        history: list[tuple[str, str]] = []
        watched = knowledge_base.checkpoint.name == BUNDLED
        while True:
            say("> ", err=True, nl=False)
            question = sys.stdin.readline().strip()
            if not question:
                return
            answer = ""
            try:
                if watched:
                    found = knowledge_base.reader.search(Query.of(question, top_k, chosen))
                    if is_noise(knowledge_base.checkpoint, found.hits):
                        say(NOISE, err=True)
                        watched = False  # Once is enough.
                for piece in knowledge_base.stream(
                    question,
                    top_k,
                    chosen,
                    expand=expand,
                    sampling=how,
                    history=() if no_history else history,
                    compress_history=compress_history,
                ):
                    answer += piece
                    say(piece, nl=False)
                say()
                history += [("user", question), ("assistant", answer)]
            except ValueError as error:  # A bad question does not end the session.
                say(f"Error: {error}", err=True)
