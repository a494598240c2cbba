"""Options that several commands share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import click
from click.shell_completion import CompletionItem

from lclm_rag.cli.config_file import FILE, from_file
from lclm_rag.types import DEFAULT_TOP_K, CodecName

if TYPE_CHECKING:
    from lclm_rag.prompting.frames import Frame
    from lclm_rag.retrieval.filters import Filter

__all__ = [
    "CODECS",
    "Finite",
    "as_json",
    "checkpoint_option",
    "collection_options",
    "decoder_options",
    "demo_decoder_options",
    "device_options",
    "expand_option",
    "filter_option",
    "frame_option",
    "kb_option",
    "order_option",
    "parsed_filter",
    "ranking_options",
    "retrieval_options",
    "sampling_options",
    "together",
    "version_option",
    "wait_option",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Finite(click.FloatRange):
    """A range of numbers without infinity and NaN, which click takes for floats like any other."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; wrong usage if it is not finite or out of the range."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not finite.", param, ctx)
        return number


def _require_kb(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is None and not context.resilient_parsing:
        raise click.UsageError(
            "Missing option '--kb': name the knowledge base with it, in the variable LCLM_RAG_KB, or as kb "
            f"in {FILE}."
        )
    return value


def _complete_folder(
    context: click.Context, option: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    return [CompletionItem(incomplete, type="dir")]


kb_option = click.option(
    "--kb",
    default=from_file("kb"),
    envvar="LCLM_RAG_KB",
    callback=_require_kb,
    shell_complete=_complete_folder,
    help="Folder of the knowledge base, or its URL such as s3://bucket/kb.  [env: LCLM_RAG_KB; required]",
)
version_option = click.option(
    "--version",
    "version",
    type=click.IntRange(min=0),
    help="An earlier version, of those that lclm-rag versions lists.  [default: the newest]",
)
wait_option = click.option(
    "--wait",
    type=Finite(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long to wait if another process is writing; after that, exit with code 4.",
)
CODECS = list(get_args(CodecName))
as_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")


def together(*options: Decorator) -> Decorator:
    """Combine options into one decorator; --help shows them in this order."""

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
        help="auto (CUDA if available), cpu or cuda.",
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        help="auto (bfloat16 on CUDA, float32 on a CPU), float32, bfloat16 or float16.",
    ),
)


def _known_decoder(context: click.Context, option: click.Parameter, value: str) -> str:
    if value == "vllm":
        # vLLM's log goes to stdout by default, where only results belong.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if value in ("transformers", "vllm") or value.startswith(("http://", "https://")):
        return value
    raise click.BadParameter(f"{value!r} is neither transformers, nor vllm, nor a server's URL.")


def _as_options(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """The options as {name: value}; a value that is JSON (2, true, "x") is parsed, others stay strings."""
    options: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE.")
        if name in ("device", "dtype"):
            raise click.BadParameter(f"{name} has an option of its own: --{name} {value}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _decoder_options(default: Any) -> Decorator:
    return together(
        click.option(
            "--decoder",
            default=default,
            callback=_known_decoder,
            help="transformers, vllm, or the URL of a vLLM server such as http://localhost:8000/v1.  "
            "[default: transformers]",
        ),
        click.option(
            "--decoder-option",
            "decoder_options",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_as_options,
            help="For vllm, any argument of its engine, such as tensor_parallel_size=2, max_model_len=32768, "
            "gpu_memory_utilization=0.5, quantization=fp8. For a server: model, api_key, timeout (seconds), "
            "retries, concurrency. May be repeated.",
        ),
        device_options,
    )


decoder_options = _decoder_options(from_file("decoder", "transformers"))
demo_decoder_options = _decoder_options("transformers")
"""The demo has a checkpoint of its own, which a decoder that was set for another cannot go with."""
checkpoint_option = click.option(
    "--checkpoint",
    default=from_file("checkpoint"),
    help="english, a folder, or a hub id such as latent-context/0.6b-4b-LCLM-16x.  [default: the bundled "
    "one, which knows fact sheets only]",
)
filter_option = click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="EXPR",
    help="Metadata filter: lang=en, lang!=en, year>=2020, lang=en,de. If repeated, all must match.",
)
retrieval_options = together(
    click.option(
        "--top-k",
        type=click.IntRange(min=1),
        default=from_file("top_k", DEFAULT_TOP_K),
        help=f"Passages to retrieve.  [default: {DEFAULT_TOP_K}]",
    ),
    filter_option,
)


ranking_options = together(
    click.option(
        "--rerank",
        metavar="MODEL",
        help="A cross-encoder (sentence-transformers), by name or folder, that puts the best passages in a "
        "new order.",
    ),
    click.option(
        "--mmr",
        type=Finite(0, 1),
        metavar="0-1",
        help="Pick passages that are not alike, by their dense vectors: 1 is relevance alone, 0 diversity.",
    ),
    click.option(
        "--neighbours",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Also take the N passages before and after each.",
    ),
)


def _as_frame(context: click.Context, option: click.Parameter, value: str | None) -> Frame | None:
    if value is None:
        return None
    from lclm_rag.prompting.frames import load_frame

    try:
        return load_frame(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


frame_option = click.option(
    "--frame",
    callback=_as_frame,
    metavar="NAME|FILE.toml",
    help="The words around passages and question: numbered, card, block, chunks, segments, or a file of your "
    "own.  [default: the knowledge base's; when it is built, the one that the checkpoint names]",
)


order_option = click.option(
    "--order",
    type=click.Choice(["key", "best_first", "best_last"]),
    default="key",
    show_default=True,
    help="The order of passages in the prompt: by document, which a prefix cache likes best, or by rank.",
)


def _as_expand(context: click.Context, option: click.Parameter, value: str) -> str | int:
    from lclm_rag.querying.expansion import check_expand

    expand: Any = int(value) if value.isdecimal() else value
    try:
        check_expand(expand)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return expand  # type: ignore[no-any-return]


def _as_qdrant_options(
    context: click.Context, option: click.Parameter, value: str | None
) -> dict[str, Any] | None:
    if value is None:
        return None
    from lclm_rag.retrieval.collection_setup import read_options

    try:
        return read_options(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _as_keys(
    context: click.Context, option: click.Parameter, value: str | None
) -> list[str] | None:
    if value is None:
        return None
    return [key for key in map(str.strip, value.split(",")) if key]


collection_options = together(
    click.option(
        "--qdrant-options",
        callback=_as_qdrant_options,
        metavar="FILE",
        help="How the collection on a Qdrant server is made, in JSON or TOML: shard_number, "
        "replication_factor, quantization_config, on_disk_payload and so on.",
    ),
    click.option(
        "--filter-keys",
        callback=_as_keys,
        metavar="NAME,NAME…",
        help="The metadata keys that filters can name on a Qdrant server; only they go there.  "
        "[default: all]",
    ),
)
expand_option = click.option(
    "--expand",
    default="auto",
    show_default=True,
    callback=_as_expand,
    metavar="[auto|never|always|model|tool|N]",
    help="Passages that the decoder reads verbatim. auto: the best one if the question asks for a code, an "
    "id or an exact wording; if the answer has strings that its sources lack, the question is asked again "
    "with the best three. always: all of them; never: none; N: the best N. model: those that the decoder "
    "asks for; tool: the same, through a tool call.",
)


def parsed_filter(expressions: tuple[str, ...]) -> Filter | None:
    """Parse the values of --filter into one filter, which matches if all of them do.

    Args:
        expressions: The values, as `parse_filter` takes them.

    Returns:
        The filter; None if there are no expressions.

    Raises:
        click.BadParameter: When an expression cannot be read.
    """
    from lclm_rag.retrieval import parse_filter

    joined: Filter | None = None
    for expression in expressions:
        try:
            parsed = parse_filter(expression)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--filter") from error
        joined = parsed if joined is None else joined & parsed
    return joined


sampling_options = together(
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Most tokens in the answer.",
    ),
    click.option(
        "--temperature",
        type=Finite(min=0),
        default=0.0,
        show_default=True,
        help="0 is greedy.",
    ),
    click.option(
        "--top-p",
        type=Finite(min=0, max=1, min_open=True),
        default=1.0,
        show_default=True,
        help="Share of probability to sample from.",
    ),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
)
