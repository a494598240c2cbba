"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = [
    "as_json",
    "decoder_options",
    "device_options",
    "kb_option",
    "retrieval_options",
    "sampling_options",
    "together",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

kb_option = click.option(
    "--kb",
    required=True,
    envvar="LCLM_RAG_KB",
    type=click.Path(path_type=Path),
    help="Folder of the knowledge base.  [env: LCLM_RAG_KB]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, shown by --help in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


device_options = together(
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto (CUDA where there is one), cpu, cuda.",
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        help="auto (bfloat16 on CUDA, float32 on a CPU), float32, bfloat16, float16.",
    ),
)
decoder_options = together(
    click.option(
        "--decoder",
        type=click.Choice(["transformers"]),
        default="transformers",
        show_default=True,
        help="What decodes.",
    ),
    device_options,
)
retrieval_options = together(
    click.option(
        "--top-k",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Passages to retrieve.",
    ),
    click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="EXPR",
        help="Metadata filter: lang=en, lang!=en, year>=2020, lang=en,de. Repeat for and.",
    ),
)
sampling_options = together(
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Longest answer.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="0 is greedy.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=1.0,
        show_default=True,
        help="Share of probability to sample from.",
    ),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
)
