"""demo: build a knowledge base, ask questions and score the answers, in about a minute."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lclm_rag.cli.formatting import say, say_json
from lclm_rag.cli.options import as_json, demo_decoder_options

if TYPE_CHECKING:
    from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion
    from lclm_rag.evaluation.scoring import ContextScore
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.types import Answer

__all__ = ["demo"]

_DOCUMENTS = 400
_SHOWN = 5
_TITLES = {"latents": "latents", "text": "pasted text", "none": "closed book"}


@click.command()
@click.option(
    "--kb",
    default="demo-kb",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the knowledge base, which is kept. That of an earlier demo is used again.",
)
@click.option(
    "--questions",
    default=200,
    show_default=True,
    type=click.IntRange(min=1),
    help="Questions to score.",
)
@click.option(
    "--top-k",
    default=4,
    show_default=True,
    type=click.IntRange(min=1),
    help="Passages in each prompt.",
)
@demo_decoder_options
@as_json
def demo(kb: Path, questions: int, top_k: int, as_json: bool, **decoding: Any) -> None:
    """Compress 400 made-up fact sheets with the bundled checkpoint, ask questions, and score the answers.

    The same decoder answers the same held-out questions from latents, from pasted text, and without
    context. None of the people, places, products and contracts occurred in training.

    \b
    Examples:
      lclm-rag demo --kb /tmp/demo-kb
      lclm-rag demo --decoder vllm --decoder-option enforce_eager=true
    """
    from rich.markup import escape

    from lclm_rag.cli.progress import stderr
    from lclm_rag.evaluation.datasets.fact_sheets import fact_sheets, held_out_questions
    from lclm_rag.evaluation.scoring import recall

    sheets = list(itertools.islice(fact_sheets(seed=2026, held_out=True), _DOCUMENTS))
    sample = held_out_questions(questions, sheets, seed=2026)
    stderr.print(
        f"[bold]1[/]  {_DOCUMENTS} fact sheets, made up from a seed, become a knowledge base in "
        f"{escape(str(kb))}/",
        markup=True,
    )
    with _build(kb, [sheet.document for sheet in sheets], decoding) as knowledge_base:
        stderr.print(
            f"[bold]2[/]  {_SHOWN} questions, answered from the latents of {top_k} passages each",
            markup=True,
        )
        answers = [knowledge_base.query(q.question, top_k, expand="never") for q in sample[:_SHOWN]]
        if not as_json:
            for answer, question in zip(answers, sample, strict=False):
                _show(answer, question)
        stderr.print(
            f"[bold]3[/]  {questions} questions, three ways, same decoder, same passages",
            markup=True,
        )
        scores = _score(knowledge_base, sample, top_k)
        found = recall(knowledge_base, sample, top_k)
        manifest = knowledge_base.store.manifest
        store = {
            "bytes": manifest.bytes,
            "source_tokens": manifest.totals.tokens,
            "latents": manifest.totals.latents,
        }
    if as_json:
        say_json(_summary(answers, scores, found, store, top_k))
    else:
        _table(scores, found, store, top_k, questions)
        say(
            f"\nThe knowledge base is kept in {kb}. Try next:\n"
            f'  lclm-rag query --kb {kb} "{sample[0].question}"\n'
            f"  lclm-rag info --kb {kb}\n"
            "Your own folder needs a checkpoint that reads English; the one of this demo knows such fact "
            "sheets only:\n"
            "  lclm-rag doctor --install english\n"
            "  lclm-rag build path/to/notes/ --kb my-kb/ --checkpoint english\n"
            '  lclm-rag query --kb my-kb/ "When is the gate locked?"'
        )


def _build(kb: Path, documents: list[Any], decoding: dict[str, Any]) -> KnowledgeBase:
    from lclm_rag.cli.progress import add_with_progress
    from lclm_rag.config import is_knowledge_base
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.storage import open_folder

    make = KnowledgeBase.open if is_knowledge_base(open_folder(kb)) else KnowledgeBase.create
    knowledge_base = make(kb, **decoding)
    add_with_progress(knowledge_base, documents)
    return knowledge_base


def _show(answer: Answer, question: FactQuestion) -> None:
    from rich.markup import escape

    from lclm_rag.cli.progress import stdout
    from lclm_rag.evaluation.measures import exact_match

    right = exact_match(answer.text, question.answer)
    verdict = "[green]right[/]" if right else f"[red]wrong[/], expected {escape(question.answer)}"
    usage = answer.usage
    stdout.print(f"\n   [bold]{escape(question.question)}[/]", markup=True)
    stdout.print(f"   → {escape(answer.text)}   {verdict}", markup=True)
    sources = ", ".join(hit.key.document_id for hit in answer.sources)
    stdout.print(f"     sources: {sources}", style="dim", soft_wrap=True)
    stdout.print(
        f"     {usage.source_tokens} source tokens behind {usage.latents} latents, "
        f"{usage.positions} prompt positions, first token after "
        f"{answer.timings.first_token * 1000:.0f} ms",
        style="dim",
        soft_wrap=True,
    )


def _score(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion], top_k: int
) -> list[ContextScore]:
    from lclm_rag.cli.progress import progress_bar
    from lclm_rag.evaluation.scoring import score_context

    scores = []
    with progress_bar() as progress:
        for context in _TITLES:
            task = progress.add_task(f"{_TITLES[context]:12}", total=len(questions), note="")
            score = score_context(
                knowledge_base,
                questions,
                context,  # type: ignore[arg-type]
                top_k,
                on_progress=lambda n, task=task: progress.advance(task, n),  # type: ignore[misc]
            )
            progress.update(task, note=f"{score.exact_match:.1%} exact")
            scores.append(score)
    return scores


def _table(
    scores: list[ContextScore], found: float, store: dict[str, int], top_k: int, questions: int
) -> None:
    from rich.table import Table

    from lclm_rag.cli.progress import stdout

    table = Table(title=f"\n{questions} held-out questions, {top_k} passages each")
    table.add_column("context")
    for title in ("exact match", "prompt positions", "time to first token"):
        table.add_column(title, justify="right")
    for score in scores:
        table.add_row(
            _TITLES[score.context],
            f"{score.exact_match:.1%}",
            f"{score.positions:.0f}",
            f"{score.first_token * 1000:.0f} ms",
        )
    stdout.print(table)
    stdout.print(
        f"The right document was among the {top_k} passages for {found:.1%} of the questions.\n"
        f"The store: {store['bytes'] / 2**20:.1f} MiB for {store['source_tokens']:,} source tokens "
        f"({store['bytes'] / store['source_tokens']:.0f} bytes each), {store['latents']:,} latents, "
        "text included.",
        soft_wrap=True,
    )


def _summary(
    answers: list[Answer],
    scores: list[ContextScore],
    found: float,
    store: dict[str, int],
    top_k: int,
) -> dict[str, Any]:
    names = {"latents": "latents", "text": "text", "none": "closed_book"}

    def by_context(attribute: str) -> dict[str, float]:
        return {names[s.context]: getattr(s, attribute) for s in scores}

    return {
        "questions": len(scores[0].answers),
        "top_k": top_k,
        "exact_match": by_context("exact_match"),
        "positions": by_context("positions"),
        "first_token": by_context("first_token"),
        "recall": found,
        "store": store,
        "answers": [answer.to_dict() for answer in answers],
    }
