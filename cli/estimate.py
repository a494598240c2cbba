"""estimate: predict what a knowledge base will take, without building it."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.corpus import LIMITS, corpus_limits, left_out_shown, reading_options
from lclm_rag.cli.exit_codes import EXIT_IN_PART
from lclm_rag.cli.formatting import say_json
from lclm_rag.cli.options import Decorator, Finite, as_json
from lclm_rag.estimate.devices import GPUS

if TYPE_CHECKING:
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.estimate.store import CorpusSize

__all__ = ["estimate"]

_READING = ("text_column", "id_column", "metadata_columns", "number_columns", "on_error")
_MACHINES = ("top_k", "dense_width", "machine_memory", "replicas")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_ABOVE_0 = Finite(min=0, min_open=True)
_FROM_0, _FROM_1 = click.IntRange(min=0), click.IntRange(min=1)
_SHARE = Finite(min=0, max=1, min_open=True)


def _count(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """A click callback that reads counts such as 250000, 250k, 100M and 2.5B."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kmb]?)", value.strip().lower())
    number = float(match[1].replace("_", "")) * _UNITS[match[2]] if match else 0.0
    if not 1 <= number <= 10**15:
        raise click.BadParameter(f"{value!r} is not a count like 250000, 250k, 100M or 10B.")
    return round(number)


def _number(
    name: str, type: click.ParamType[Any], help: str, default: float | None = None
) -> Decorator:
    return click.option(name, type=type, help=help, default=default, show_default=True)


@click.command()
@click.argument("corpus", nargs=-1)
@reading_options
@click.option(
    "--checkpoint",
    help="Folder, hub id (its encoder is fetched), 'english' or 'bundled': use its sizes, and count tokens "
    "with its tokenizer.  [default: the sizes of latent-context/0.6b-4b-LCLM-{4,8,16}x]",
)
@_number(
    "--bytes-per-token",
    _ABOVE_0,
    "Do not tokenize; this many bytes of UTF-8 make a token.  [default: 4.5 without --checkpoint]",
)
@_number(
    "--passage-tokens",
    _FROM_1,
    "Most tokens in a passage.  [default: a window; 512 with --passages]",
)
@click.option("--contextual-headers", is_flag=True, help="Begin passages with title and headings.")
@_number(
    "--utilization",
    _SHARE,
    "Share of a GPU's peak that encoder and decoder reach.  [default: 0.4; the encoder 0.3 for the first 40 "
    "million tokens, after which it is compiled]",
)
@click.option(
    "--gpu",
    type=click.Choice(list(GPUS), case_sensitive=False),
    default="H100 SXM",
    show_default=True,
    metavar="NAME",
    help=f"The GPU that answers questions, and that --gpu-hour-price is for: {', '.join(GPUS)}.",
)
@_number("--gpu-hour-price", _ABOVE_0, "Its price in $.  [default: the price in the table of GPUs]")
@click.option(
    "--passages",
    callback=_count,
    metavar="COUNT",
    help="In place of a CORPUS: the number of passages of --passage-tokens each; 250k, 100M, 10B.",
)
@_number(
    "--questions-per-second",
    _ABOVE_0,
    "Also estimate index servers and GPUs for this load.  [default: 10 with --passages]",
)
@_number("--top-k", _FROM_1, "Passages in a prompt.", 16)
@_number("--dense-width", _FROM_0, "Numbers in a dense vector; 0 means BM25 alone.", 1024)
@_number("--machine-memory", _ABOVE_0, "GiB of each Qdrant server.", 64.0)
@_number("--replicas", _FROM_1, "Copies of each shard of the passage index.", 2)
@as_json
@click.pass_context
def estimate(context: click.Context, /, as_json: bool, **options: Any) -> int:
    """Estimate what compressing a CORPUS takes: tokens, latents, disk for each codec, GPU hours and cost.

    This reads the whole corpus, which is the same as for lclm-rag build, but compresses nothing and needs
    neither a GPU nor a model.

    With --questions-per-second it also estimates the machines: memory, disk and servers for the passage
    index, and the GPUs and their cost for answers from latents and from pasted text. With --passages in place
    of a CORPUS nothing is read.

    Without --checkpoint the sizes are those of the published 0.6B-4B models, and tokens are estimated from
    the bytes of the text. 4.5 bytes a token is about right for English prose; code and most other languages
    have fewer bytes a token, and so more tokens. With --checkpoint the passages are those that build would
    make, and their tokens are counted, which is slower but exact. With --checkpoint and --bytes-per-token the
    sizes are the checkpoint's, and tokens are estimated from bytes.

    \b
    Examples:
      lclm-rag estimate articles.jsonl.gz --text-column body --id-column url
      lclm-rag estimate code.parquet --bytes-per-token 3 --utilization 0.3
      lclm-rag estimate notes/ --checkpoint models/0.6b-4b-LCLM-16x --passage-tokens 512
      lclm-rag estimate notes/ --questions-per-second 5 --gpu L4 --gpu-hour-price 0.8
      lclm-rag estimate --passages 100M --questions-per-second 100
    """
    from lclm_rag.checkpoint import Checkpoint
    from lclm_rag.cli import estimate_tables as tables
    from lclm_rag.estimate.index import plan_index
    from lclm_rag.estimate.serving import Questions, plan_contexts
    from lclm_rag.estimate.shapes import PUBLISHED, PUBLISHED_DECODER, DecoderShape, LclmShape
    from lclm_rag.estimate.store import encoder_utilization, plan_store

    _check_usage(context)
    opened = None if options["checkpoint"] is None else Checkpoint.open(options["checkpoint"])
    shapes = PUBLISHED if opened is None else (LclmShape.of(opened),)
    default = shapes[0].config.encoder_window_size if options["corpus"] else 512
    passage_tokens = options["passage_tokens"] or default
    size, token_bytes, skipped = _corpus_size(opened, passage_tokens, options)
    gpu, given = GPUS[options["gpu"]], options["utilization"]
    utilization = 0.4 if given is None else given
    of_encoder = encoder_utilization(max(1, size.tokens)) if given is None else given
    if options["gpu_hour_price"] is not None:
        gpu = replace(gpu, dollars_per_hour=options["gpu_hour_price"])
    gpus = list({**GPUS, gpu.name: gpu}.values())

    stores = [
        plan_store(size, shape, space, gpus, of_encoder)
        for shape in shapes
        for space in ("encoder", "decoder")
    ]
    questions = None
    if per_second := options["questions_per_second"] or (0 if options["corpus"] else 10):
        questions = Questions(per_second, options["top_k"])
        node_bytes = options["machine_memory"] * 2**30
        decoder = PUBLISHED_DECODER if opened is None else DecoderShape.of(opened)
        in_encoder_space = [store for store in stores if store.space == "encoder"]
        contexts = plan_contexts(size, in_encoder_space, decoder, questions, gpu, utilization)
        width, replicas = options["dense_width"], options["replicas"]
        index = plan_index(size, width, per_second, node_bytes, replicas)

    if as_json:
        result: dict[str, Any] = {
            "documents": size.documents,
            "text_bytes": size.text_bytes,
            "source_tokens": size.tokens,
            "bytes_per_token": token_bytes,
            "passages": size.passages,
            "passage_tokens": passage_tokens,
            "utilization": utilization,
            "encoder_utilization": of_encoder,
            "stores": [asdict(store) for store in stores],
            "skipped": skipped,
        }
        if questions is not None:
            result["machines"] = {
                "questions": asdict(questions),
                "gpu": asdict(gpu),
                "index": asdict(index),
                "contexts": [asdict(context) for context in contexts],
            }
        say_json(result)
    else:
        tables.show_size(size, passage_tokens, token_bytes)
        tables.show_stores(stores)
        tables.show_compressing(stores, gpus)
        if questions is not None:
            tables.show_index(index, replicas, node_bytes)
            tables.show_contexts(contexts, questions, gpu)
        names = [store.checkpoint for store in stores]
        tables.show_assumptions(names, token_bytes, utilization, of_encoder)
    return EXIT_IN_PART if skipped else 0


def _check_usage(context: click.Context) -> None:
    """Report wrong usage if an option would have no effect."""
    params, names = context.params, {*_READING, *LIMITS}
    reason = "reading a CORPUS; with --passages there is none."
    if bool(params["corpus"]) == (params["passages"] is not None):
        raise click.UsageError("Give either a CORPUS or --passages.")
    if params["corpus"]:
        names = set() if params["questions_per_second"] else set(_MACHINES)
        reason = "the machines: also give --questions-per-second."
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{option.opts[0]} is for {reason}")


def _corpus_size(
    checkpoint: Checkpoint | None, passage_tokens: int, options: dict[str, Any]
) -> tuple[CorpusSize, float | None, list[str]]:
    """The size, the bytes taken for a token (None if tokens are counted), and what was skipped."""
    from lclm_rag.cli.progress import progress_bar
    from lclm_rag.connectors.corpora import count_documents, read_corpus
    from lclm_rag.estimate import store

    corpus, headers = options["corpus"], options["contextual_headers"]
    counting = checkpoint if corpus and options["bytes_per_token"] is None else None
    bytes_per_token = options["bytes_per_token"] or store.BYTES_PER_TOKEN
    if headers and counting is None:
        raise click.UsageError(
            "--contextual-headers is for counted tokens: give a CORPUS, --checkpoint and no "
            "--bytes-per-token, or leave it out."
        )
    if not corpus:
        size = store.equal_passages(options["passages"], passage_tokens, bytes_per_token)
        return size, bytes_per_token, []
    split = (
        store.split_by_bytes(passage_tokens, bytes_per_token)
        if counting is None
        else store.split_by_tokenizer(counting, passage_tokens, contextual_headers=headers)
    )
    skipped, ignored = list[str](), list[str]()
    reading = {name: options[name] for name in _READING}
    documents = read_corpus(
        corpus,
        **reading,
        limits=corpus_limits(options),
        on_skip=skipped.append,
        on_ignore=ignored.append,
    )
    with left_out_shown(ignored, skipped), progress_bar() as progress:
        task = progress.add_task("reading", note="")
        tracked = progress.track(documents, count_documents(corpus), task_id=task)
        size = store.measure_corpus(tracked, split)
    return size, None if counting else bytes_per_token, skipped
