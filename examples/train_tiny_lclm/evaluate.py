"""Score a checkpoint on held-out fact sheets: generated answers, exact match, three contexts.

    python examples/train_tiny_lclm/evaluate.py --json examples/train_tiny_lclm/results.json

400 documents and 500 questions that share no name with training; passages are retrieved by BM25.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from lclm_rag import KnowledgeBase
from lclm_rag.checkpoint import BUNDLED
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, fact_sheets, held_out_questions
from lclm_rag.evaluation.measures import exact_match
from lclm_rag.evaluation.scoring import ContextScore, recall, score_context

DOCUMENTS = 400
QUESTIONS = 500
SEED = 2026
TOP_K = (4, 8)


def evaluate(checkpoint: str) -> dict[str, Any]:
    sheets = list(itertools.islice(fact_sheets(SEED, held_out=True), DOCUMENTS))
    questions = held_out_questions(QUESTIONS, sheets, SEED)
    results: dict[str, Any] = {"documents": DOCUMENTS, "questions": QUESTIONS, "seed": SEED}
    with (
        tempfile.TemporaryDirectory() as folder,
        # What the checkpoint can do: what codecs lose is for benchmarks/codecs.py.
        KnowledgeBase.create(Path(folder) / "kb", checkpoint, codec="bf16") as kb,
    ):
        kb.add(sheet.document for sheet in sheets)
        for top_k in TOP_K:
            scores = [score_context(kb, questions, name, top_k) for name in ("latents", "text")]
            results[f"top_{top_k}"] = {
                "recall": recall(kb, questions, top_k),
                **{score.context: _summary(score, questions) for score in scores},
            }
        nothing = score_context(kb, questions, "none", 1)
        results["closed_book"] = {"exact_match": nothing.exact_match}
    return results


def _summary(score: ContextScore, questions: list[FactQuestion]) -> dict[str, Any]:
    counts = Counter(question.attribute for question in questions)
    right = Counter(
        q.attribute
        for q, answer in zip(questions, score.answers, strict=True)
        if exact_match(answer, q.answer)
    )
    return {
        "exact_match": score.exact_match,
        "positions": score.positions,
        "by_kind_of_fact": {name: round(right[name] / counts[name], 3) for name in sorted(counts)},
    }


def _print(results: dict[str, Any]) -> None:
    print(f"{'context':24}{'exact match':>12}{'positions':>12}")
    for top_k in TOP_K:
        for context in ("latents", "text"):
            score = results[f"top_{top_k}"][context]
            name = f"{context}, top {top_k}"
            print(f"{name:24}{score['exact_match']:>12.1%}{score['positions']:>12.0f}")
    print(f"{'none':24}{results['closed_book']['exact_match']:>12.1%}")
    worst = results["top_4"]["latents"]["by_kind_of_fact"]
    print("hardest from latents, top 4:")
    for name, share in sorted(worst.items(), key=lambda item: item[1])[:5]:
        print(f"  {name:24}{share:.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=BUNDLED)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    found = evaluate(arguments.checkpoint)
    _print(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
