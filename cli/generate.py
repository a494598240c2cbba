"""generate: complete prompts that carry their own context."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.bundled import BUNDLED_IS_USED
from lclm_rag.cli.exit_codes import EXIT_FAILED, EXIT_IN_PART
from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import (
    checkpoint_option,
    decoder_options,
    sampling_options,
)

if TYPE_CHECKING:
    from lclm_rag.decoding import Outcome

__all__ = ["generate"]


@click.command()
@checkpoint_option
@click.option(
    "--prompt", help="One prompt; <|memory_start|>text<|memory_end|> marks what to compress."
)
@click.option(
    "--prompts-jsonl",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='One object on each line; its "prompt" is a string or a list of chat messages.',
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
    """Complete prompts that carry their own context between memory marks, without a knowledge base.

    \b
    Examples:
      lclm-rag generate --prompt "<|memory_start|>The mayor of Velun is Gedul Gizel.<|memory_end|> Who is the mayor of Velun?"
      lclm-rag generate --checkpoint latent-context/0.6b-4b-LCLM-16x --prompts-jsonl in.jsonl --out out.jsonl --decoder vllm

    A prompt that the decoder cannot take or fails on gets "error" in place of "response". The others are
    answered, and the exit code is 3.
    """  # noqa: E501
    if (prompt is None) == (prompts_jsonl is None):
        raise click.UsageError("Give either --prompt or --prompts-jsonl.")
    records = [{"prompt": prompt}] if prompts_jsonl is None else _read_prompts(prompts_jsonl)
    from lclm_rag.checkpoint import BUNDLED, Checkpoint
    from lclm_rag.compression import Compressor
    from lclm_rag.decoding import Completion, Sampling, all_answered, load_decoder
    from lclm_rag.generation import generate as complete

    if checkpoint is None:
        say(BUNDLED_IS_USED, err=True)
    opened = Checkpoint.open(checkpoint or BUNDLED)
    prompts: list[Any] = [record["prompt"] for record in records]
    with closing(load_decoder(decoder, opened, device, dtype, **decoder_options)) as loaded:
        compressor = Compressor.from_pretrained(opened, device, dtype)
        results = complete(prompts, compressor, loaded, Sampling(**sampling))
    failed = [n for n, result in enumerate(results) if not isinstance(result, Completion)]
    for number in failed:
        say(f"Error: prompt {number + 1}: {results[number]}", err=True)
    if prompts_jsonl is None and out is None:
        if failed:
            return EXIT_FAILED
        say(all_answered(results)[0].text)
        return 0
    answered = [
        {**record, **_response(result)} for record, result in zip(records, results, strict=True)
    ]
    if out is None:
        for record in answered:
            say_json(record)
    else:
        lines = [json.dumps(record, ensure_ascii=False) for record in answered]
        out.write_text("\n".join(lines) + "\n", "utf-8")
    return EXIT_IN_PART if failed else 0


def _response(result: Outcome) -> dict[str, str]:
    if isinstance(result, Exception):
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
