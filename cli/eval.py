"""eval: compare accuracy and cost of several contexts, on the same decoder and passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.config_file import from_file
from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import CODECS, as_json, decoder_options, order_option

if TYPE_CHECKING:
    from lclm_rag.evaluation.contexts import EvalContext
    from lclm_rag.evaluation.questions import EvalSet
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["evaluate"]

_DEFAULT_CONTEXTS = ("text", "latents", "latents+expand", "closed-book")


@click.command("eval")
@click.argument("questions", required=False)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run. If it is killed, the same command continues it.",
)
@click.option(
    "--context",
    "context_names",
    multiple=True,
    metavar="CONTEXT",
    help="Context to answer from, see below. May be repeated.  "
    f"[default: {', '.join(_DEFAULT_CONTEXTS)}]",
)
@click.option(
    "--kb",
    default=from_file("kb"),
    envvar="LCLM_RAG_KB",
    help="The knowledge base to query, for questions from a file.  [env: LCLM_RAG_KB]",
)
@click.option(
    "--checkpoint",
    default=from_file("checkpoint"),
    help="For sets with their own documents.  [default: the bundled one]",
)
@click.option(
    "--codec", type=click.Choice(CODECS), default="int4", show_default=True, help="As for build."
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Number of questions; for ruler and lclm-eval, of each task and length.  [default: 500; 10; all]",
)
@click.option("--seed", default=2026, show_default=True, help="Seed for made-up questions.")
@click.option(
    "--part",
    type=click.Choice(("choose", "report")),
    default="report",
    show_default=True,
    help="Of the sets about fact sheets: questions to choose something by, or to publish the figures. They "
    "share no name.",
)
@click.option(
    "--length",
    "lengths",
    type=click.IntRange(min=256),
    multiple=True,
    default=(4096,),
    show_default=True,
    help="ruler: tokens of the context. May be repeated.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="ruler, lclm-eval: only this task. May be repeated.",
)
@click.option(
    "--essays",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="ruler: a text to hide the needles in, in place of a made-up one.",
)
@click.option(
    "--source", help="lclm-eval: a folder with a copy.  [default: latent-context/lclm-eval]"
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Passages to retrieve.",
)
@click.option(
    "--alone",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Questions to ask one at a time, to measure times.",
)
@click.option(
    "--kvpress",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Python environment for kvpress:…, made by "
    "python -m lclm_rag.evaluation.baselines.kvpress_environment DIR.",
)
@click.option(
    "--frames",
    "--frame",
    "frames",
    multiple=True,
    metavar="NAME|FILE.toml|all",
    help="Ask each context in this frame, beside others. May be repeated; all: in every frame that comes "
    "with the package.  [default: the knowledge base's frame]",
)
@click.option(
    "--retrieval",
    is_flag=True,
    help="Measure how well passages are found, and decode nothing: QUESTIONS is a folder in the form of BEIR "
    "or a JSONL file.",
)
@click.option("--split", help="--retrieval: the qrels to use.  [default: test]")
@click.option(
    "--embedder", metavar="MODEL", help="--retrieval: also search a folder by dense vectors."
)
@click.option(
    "--rerank",
    multiple=True,
    metavar="MODEL",
    help="--retrieval: also with this cross-encoder. May be repeated.",
)
@click.option(
    "--language", help="--retrieval: the language of a folder's words.  [default: told by the text]"
)
@click.option("--plots", is_flag=True, help="Write PNGs beside the report (needs lclm-rag[eval]).")
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="A.json B.json",
    help="Compare two reports, question by question.",
)
@order_option
@decoder_options
@as_json
def evaluate(
    questions: str | None,
    out: Path | None,
    context_names: tuple[str, ...],
    kb: str | None,
    compare: tuple[Path, Path] | None,
    frames: tuple[str, ...],
    retrieval: bool,
    split: str | None,
    embedder: str | None,
    rerank: tuple[str, ...],
    language: str | None,
    plots: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask QUESTIONS with known answers from several contexts, and compare accuracy and cost.

    All contexts use the same decoder and the same passages.

    \b
    QUESTIONS:
      exact-strings     fact sheets with codes of 12 characters and UUIDs; made up from a seed
      fact-sheets       the same without codes and UUIDs
      paraphrases       half of these facts asked in words that the bundled checkpoint was not trained on
      near-duplicates   many subjects have a twin, so that the first hit is the wrong one in a third
      joined-facts      facts of two, four or eight sheets, to be listed or compared
      unanswerable      half of the questions ask for what no sheet states
      ruler             RULER's eight needle tasks, at any --length
      lclm-eval/ruler, /gsm8k, /longhealth5, /longbench   the published sets of latent-context/lclm-eval
      FILE.jsonl      {"question": …, "answers": […], "document_ids": […]} on each line; needs --kb

    \b
    Contexts:
      text             the passages pasted as text; text:1 only the best one
      latents          the passages as latents; latents:1 only the best one
      latents+expand   the same, expanded as lclm-rag query does it; latents+expand:model lets the decoder
                       ask for passages, :tool through a tool, :3 pastes the best three, :always all
      closed-book      no passages
      kvpress:snapkv   the KV cache of the pasted text, cut to the positions that latents take; any press
      llmlingua2       the text, cut to that length by LLMLingua-2; llmlingua2:MODEL for another model

    \b
    Examples:
      lclm-rag eval exact-strings --out runs/exact
      lclm-rag eval ruler --length 4096 --out runs/ruler --context text --context latents
      lclm-rag eval questions.jsonl --kb kb/ --out runs/mine --plots
      lclm-rag eval lclm-eval/ruler --task "*_4096" --out runs/16x \\
          --checkpoint latent-context/0.6b-4b-LCLM-16x
      lclm-rag eval exact-strings --frames all --context latents --out runs/frames
      lclm-rag eval --compare runs/a/report.json runs/b/report.json

    With --retrieval nothing is decoded. Words (BM25), dense vectors, both, and a cross-encoder after them are
    compared by recall, nDCG and the reciprocal rank of the documents that should be found:

    \b
      lclm-rag eval --retrieval scifact/ --embedder BAAI/bge-small-en-v1.5
      lclm-rag eval --retrieval judged.jsonl --kb kb/ --rerank cross-encoder/ms-marco-MiniLM-L6-v2

    scifact/ holds corpus.jsonl, queries.jsonl and qrels/test.tsv, and need not be built; judged.jsonl has
    {"question": …, "document_ids": […]} on each line, and --out, a folder for retrieval.json, is optional.

    Without --retrieval, the command writes report.json, with every answer, into the folder. To compare times
    on vLLM, give --decoder-option enable_prefix_caching=false; otherwise one context profits from what an
    earlier one computed.
    """
    if compare:
        if questions or out:
            raise click.UsageError("--compare takes two reports; nothing is asked again.")
        _compare(*compare, as_json)
        return
    if retrieval:
        if not questions:
            raise click.UsageError(
                "Say what to search: a folder in the form of BEIR, or a JSONL file."
            )
        from lclm_rag.cli.eval_retrieval import evaluate_retrieval

        evaluate_retrieval(
            Path(questions),
            kb,
            out,
            split=split,
            embedder=embedder,
            rerank=rerank,
            language=language,
            checkpoint=options["checkpoint"],
            seed=options["seed"],
            as_json=as_json,
        )
        return
    if split or embedder or rerank or language:
        raise click.UsageError(
            "--split, --embedder, --rerank and --language go with --retrieval; add it."
        )
    if not questions or not out:
        raise click.UsageError("Say what to ask, and give --out, a folder for the run.")
    from lclm_rag.cli.eval_tables import print_report
    from lclm_rag.evaluation.contexts import in_frames, parse_context
    from lclm_rag.prompting.frames import FRAMES, load_frame

    try:
        names = dict.fromkeys(context_names or _DEFAULT_CONTEXTS)
        contexts = [parse_context(name) for name in names]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--context") from error
    try:
        chosen = [load_frame(f) for name in frames for f in (FRAMES if name == "all" else [name])]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--frames") from error
    contexts = in_frames(contexts, list(dict.fromkeys(chosen)))
    if plots:
        from lclm_rag.evaluation.plots import require_matplotlib

        require_matplotlib()
    question_set = _question_set(questions, kb, options)
    report = _run(question_set, contexts, out, kb, options)
    pictures = []
    if plots:
        from lclm_rag.evaluation.plots import draw

        pictures = draw(report, out)
    if as_json:
        say_json({k: v for k, v in report.items() if k != "answers"})
        return
    print_report(report)
    say("\n".join(map(str, [out / "report.json", *pictures])))


def _question_set(name: str, kb: str | None, options: Mapping[str, Any]) -> EvalSet:
    from lclm_rag.checkpoint import BUNDLED
    from lclm_rag.evaluation.datasets.lclm_eval import HUB_ID
    from lclm_rag.evaluation.datasets.sets import check_set_name, question_set

    try:
        check_set_name(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if name.endswith(".jsonl") and kb is None:
        raise click.UsageError("Questions from a file need a knowledge base; give --kb.")
    return question_set(
        name,
        count=options["count"],
        seed=options["seed"],
        part=options["part"],
        checkpoint=options["checkpoint"] or BUNDLED,
        context_lengths=options["lengths"],
        tasks=options["tasks"],
        essays=options["essays"],
        source=options["source"] or HUB_ID,
    )


def _run(
    questions: EvalSet,
    contexts: Sequence[EvalContext],
    out: Path,
    kb: str | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    from lclm_rag.cli.progress import progress_bar
    from lclm_rag.evaluation.run import evaluate as run

    with _opened(questions, out, kb, options) as knowledge_base, progress_bar() as progress:
        bars = {
            context.name: progress.add_task(context.name, total=len(questions.questions), note="")
            for context in contexts
        }
        return run(
            knowledge_base,
            questions,
            contexts,
            out,
            top_k=options["top_k"],
            kvpress=options["kvpress"],
            alone=options["alone"],
            on_progress=lambda context, count: progress.update(bars[context.name], completed=count),
        )


def _opened(
    questions: EvalSet, out: Path, kb: str | None, options: Mapping[str, Any]
) -> KnowledgeBase:
    """The user's knowledge base, or one in the run's folder, made of the set's documents."""
    from lclm_rag.checkpoint import BUNDLED
    from lclm_rag.cli.progress import add_with_progress
    from lclm_rag.config import is_knowledge_base
    from lclm_rag.errors import EvaluationError
    from lclm_rag.evaluation.passages import documents_to_add
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.storage import open_folder

    names = ("order", "decoder", "decoder_options", "device", "dtype")
    how = {name: options[name] for name in names}
    if questions.name.endswith(".jsonl") and kb is not None:
        return KnowledgeBase.open(kb, **how)
    folder = out / "kb"
    checkpoint = options["checkpoint"] or BUNDLED
    if is_knowledge_base(open_folder(folder)):
        made = KnowledgeBase.open(folder, checkpoint=checkpoint, **how)
        if made.store.layout.codec != options["codec"]:
            raise EvaluationError(
                f"{folder} has codec {made.store.layout.codec}, not {options['codec']}: use the same, or "
                "another folder."
            )
    else:
        if options["checkpoint"] is None:
            say("No --checkpoint given: using the bundled tiny-lclm-4x.", err=True)
        made = KnowledgeBase.create(folder, checkpoint, codec=options["codec"], **how)
    add_with_progress(made, documents_to_add(questions))
    return made


def _compare(a: Path, b: Path, as_json: bool) -> None:
    from lclm_rag.cli.eval_tables import print_comparison
    from lclm_rag.evaluation.report import compare, read_report

    comparison = compare(read_report(a), read_report(b))
    if as_json:
        say_json(comparison)
    else:
        print_comparison(comparison, a, b)
