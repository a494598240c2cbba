"""query, expand, chat, generate."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.exit_codes import EXIT_FAILED, EXIT_IN_PART
from lclm_rag.cli.options import (
    as_json,
    decoder_options,
    expand_option,
    kb_option,
    parsed_filter,
    retrieval_options,
    sampling_options,
    version_option,
)
from lclm_rag.errors import PromptError

if TYPE_CHECKING:
    from lclm_rag.decoding import Completion
    from lclm_rag.types import Answer

__all__ = ["answer_lines", "chat", "expand", "generate", "query"]


@click.command()
@click.argument("question")
@kb_option
@version_option
@retrieval_options
@expand_option
@sampling_options
@decoder_options
@click.option(
    "--form",
    type=click.Choice(["latents", "text", "none"]),
    default="latents",
    show_default=True,
    help="How passages go into the prompt; text is for comparison, none asks the decoder alone.",
)
@as_json
def query(
    question: str,
    kb: str,
    version: int | None,
    top_k: int,
    filters: tuple[str, ...],
    expand: Any,
    form: Any,
    decoder: str,
    decoder_options: dict[str, Any],
    device: str,
    dtype: str,
    as_json: bool,
    **sampling: Any,
) -> int:
    """Ask one QUESTION of a knowledge base; - reads it from standard input.

    Where no passage is found, nothing is answered, and the exit code is 3.

    \b
    Examples:
      lclm-rag query --kb kb/ "Who is the mayor of Velun?"
      lclm-rag query --kb kb/ "What changed?" --filter lang=en --filter "year>=2024" --top-k 4
      lclm-rag query --kb kb/ "What is the serial number of the pump?" --expand 2
      lclm-rag query --kb kb/ "What changed?" --decoder http://localhost:8000/v1
      echo "What changed?" | lclm-rag query --kb kb/ -
    """
    from lclm_rag.decoding import Sampling
    from lclm_rag.knowledge_base import KnowledgeBase

    with KnowledgeBase.open(
        kb,
        version=version,
        decoder=decoder,
        decoder_options=decoder_options,
        device=device,
        dtype=dtype,
    ) as knowledge_base:
        answer = knowledge_base.query(
            sys.stdin.read().strip() if question == "-" else question,
            top_k,
            parsed_filter(filters),
            form=form,
            expand=expand,
            sampling=Sampling(**sampling),
        )
    if as_json:
        click.echo(json.dumps(answer.to_dict(), ensure_ascii=False))
    elif answer.no_passages:
        click.echo(f"Nothing was found to answer from: {answer.reason}", err=True)
    else:
        click.echo("\n".join(answer_lines(answer)))
    return EXIT_IN_PART if answer.no_passages else 0


def answer_lines(answer: Answer) -> list[str]:
    """What a person sees of an answer."""
    usage, timings = answer.usage, answer.timings
    lines = [answer.text, ""]
    expanded = set(answer.expanded)
    for hit in answer.sources:
        verbatim = "  (word for word)" if hit.key in expanded else ""
        lines.append(f"  {hit.score:6.2f}  {hit.key}  {_excerpt(hit.text)}{verbatim}")
    if answer.grounding.missing:
        lines.append(f"  not in the sources: {', '.join(answer.grounding.missing)}")
    if len(answer.rounds) > 1:
        lines.append(f"  asked {len(answer.rounds)} times; the first reply: {_first_reply(answer)}")
    no_room = [key for round in answer.rounds for key in round.no_room]
    if no_room:
        lines.append(f"  no room to expand: {', '.join(map(str, no_room))}")
    if answer.left_out:
        lines.append(f"  left out, no room in the prompt: {', '.join(map(str, answer.left_out))}")
    if not answer.complete:
        lines.append(f"  cut after {usage.generated_tokens} tokens; raise --max-tokens")
    cached = f" ({usage.cached_positions:,} cached)" if usage.cached_positions else ""
    lines.append(
        f"  {usage.source_tokens:,} source tokens as {usage.latents:,} latents, "
        f"{usage.positions:,} prompt positions{cached}; first token after "
        f"{timings.first_token * 1000:.0f} ms, {timings.total * 1000:.0f} ms in all"
    )
    return lines


def _first_reply(answer: Answer) -> str:
    return _excerpt(answer.rounds[0].reply)


@click.command()
@click.argument("document_id")
@click.argument("ordinal", type=click.IntRange(min=0))
@kb_option
@version_option
@click.option("--before", type=click.IntRange(min=0), default=0, help="Passages before it, too.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Passages behind it, too.")
@as_json
def expand(
    document_id: str,
    ordinal: int,
    kb: str,
    version: int | None,
    before: int,
    after: int,
    as_json: bool,
) -> None:
    """Print a passage word for word: the ORDINALth of DOCUMENT_ID, counted from 0.

    Sources are named so: velun#2 is passage 2 of the document velun.

    \b
    Examples:
      lclm-rag expand --kb kb/ velun 2
      lclm-rag expand --kb kb/ velun 2 --before 1 --after 1 --json
    """
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.types import PassageKey

    with KnowledgeBase.open(kb, version=version) as knowledge_base:
        passages = knowledge_base.expand(PassageKey(document_id, ordinal), before, after)
    if not as_json:
        click.echo("".join(passage.text for passage in passages))
        return
    told = [
        {
            "document_id": p.key.document_id,
            "ordinal": p.key.ordinal,
            "span": [p.start, p.end],
            "text": p.text,
            "metadata": dict(p.metadata),
        }
        for p in passages
    ]
    click.echo(json.dumps(told, ensure_ascii=False))


def _excerpt(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


@click.command()
@kb_option
@retrieval_options
@expand_option
@sampling_options
@decoder_options
def chat(
    kb: str,
    top_k: int,
    filters: tuple[str, ...],
    expand: Any,
    decoder: str,
    decoder_options: dict[str, Any],
    device: str,
    dtype: str,
    **sampling: Any,
) -> None:
    """Ask one question after another; models stay loaded.

    Every question stands on its own: it is answered from its own passages, without the ones before.
    An empty line, or Ctrl-D, ends it. Answers are shown while they are written, so --expand auto goes by the
    question alone here, and model and tool are for lclm-rag query.

    \b
    Examples:
      lclm-rag chat --kb kb/
      lclm-rag chat --kb kb/ --decoder vllm --decoder-option max_model_len=32768
    """
    if expand in ("model", "tool"):
        raise click.BadParameter(
            f"{expand} takes several rounds; use query.", param_hint="--expand"
        )
    from lclm_rag.decoding import Sampling
    from lclm_rag.knowledge_base import KnowledgeBase

    chosen, how = parsed_filter(filters), Sampling(**sampling)
    with KnowledgeBase.open(
        kb, decoder=decoder, decoder_options=decoder_options, device=device, dtype=dtype
    ) as knowledge_base:
        click.echo(f"{len(knowledge_base):,} passages. An empty line ends it.", err=True)
        while True:
            click.echo("> ", err=True, nl=False)
            question = sys.stdin.readline().strip()
            if not question:
                return
            try:
                for piece in knowledge_base.stream(
                    question, top_k, chosen, expand=expand, sampling=how
                ):
                    click.echo(piece, nl=False)
                click.echo()
            except ValueError as error:  # A bad question ends itself, not the session.
                click.echo(f"Error: {error}", err=True)


@click.command()
@click.option("--checkpoint", default=None, help="Folder or hub id.  [default: the bundled one]")
@click.option(
    "--prompt", help="One prompt; <|memory_start|>text<|memory_end|> marks what to compress."
)
@click.option(
    "--prompts-jsonl",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='One object a line; "prompt" is a string or a list of chat messages.',
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help='JSONL to write: the objects with "response" added.  [default: stdout]',
)
@sampling_options
@decoder_options
def generate(
    checkpoint: str | None,
    prompt: str | None,
    prompts_jsonl: Path | None,
    out: Path | None,
    decoder: str,
    decoder_options: dict[str, Any],
    device: str,
    dtype: str,
    **sampling: Any,
) -> int:
    """Complete prompts that carry their own context between memory marks; no knowledge base.

    \b
    Examples:
      lclm-rag generate --prompt "<|memory_start|>The mayor of Velun is Gedul Gizel.<|memory_end|> Who is the mayor of Velun?"
      lclm-rag generate --checkpoint latent-context/0.6b-4b-LCLM-16x --prompts-jsonl in.jsonl --out out.jsonl --decoder vllm

    A prompt that the decoder cannot take gets "error" in place of "response"; the others are answered, and
    the exit code is 3.
    """  # noqa: E501
    if (prompt is None) == (prompts_jsonl is None):
        raise click.UsageError("Give either --prompt or --prompts-jsonl.")
    records = [{"prompt": prompt}] if prompts_jsonl is None else _read_prompts(prompts_jsonl)
    from lclm_rag.checkpoint import BUNDLED, Checkpoint
    from lclm_rag.compression import Compressor
    from lclm_rag.decoding import Sampling, all_answered, load_decoder
    from lclm_rag.generation import generate as complete

    if checkpoint is None:
        click.echo("No --checkpoint given: using the bundled tiny-lclm-4x.", err=True)
    opened = Checkpoint.open(checkpoint or BUNDLED)
    prompts: list[Any] = [record["prompt"] for record in records]
    with closing(load_decoder(decoder, opened, device, dtype, **decoder_options)) as loaded:
        compressor = Compressor.from_pretrained(opened, device, dtype)
        results = complete(prompts, compressor, loaded, Sampling(**sampling))
    refused = [number for number, result in enumerate(results) if isinstance(result, PromptError)]
    for number in refused:
        click.echo(f"Error: prompt {number + 1}: {results[number]}", err=True)
    if prompts_jsonl is None and out is None:
        if refused:
            return EXIT_FAILED
        click.echo(all_answered(results)[0].text)
        return 0
    lines = [
        json.dumps({**record, **_response(result)}, ensure_ascii=False)
        for record, result in zip(records, results, strict=True)
    ]
    if out is None:
        click.echo("\n".join(lines))
    else:
        out.write_text("\n".join(lines) + "\n", "utf-8")
    return EXIT_IN_PART if refused else 0


def _response(result: Completion | PromptError) -> dict[str, str]:
    if isinstance(result, PromptError):
        return {"error": str(result)}
    return {"response": result.text}


def _read_prompts(path: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    # Not splitlines(): JSON strings may hold other line separators as they are.
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error
        if not isinstance(record, dict) or not _is_prompt(record.get("prompt")):
            raise ValueError(
                f'{path}, line {number}: "prompt" must be a string or a list of chat messages, each '
                'with "role" and "content".'
            )
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds no prompt.")
    return records


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in value
        )
    )
