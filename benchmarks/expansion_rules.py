"""Which rule should decide what is read verbatim? `expand="auto"` comes from this.

\b
    python benchmarks/expansion_rules.py      # 4 minutes on two cores

Rules, on questions to choose on (`lclm-rag eval exact-strings --part choose`; figures to report come from
others, in evaluation.py) with the bundled checkpoint: never; by the question
(`wants_exact_string`) the best one, two or three; by the answer (`ground`: a string that the sources do not
have) the best so many in a second round, whose answer counts if it holds fewer such strings; both; always the
best so many; all. Each costs prompt positions: those of the prompt that gave the answer, and those of all
prompts together, as a decoder without a prefix cache computes them. For every kind of fact it says besides
what latents alone get right, and whether the rule by the question fires.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from shared import machine, write_results

from lclm_rag import KnowledgeBase
from lclm_rag.decoding import Sampling, all_answered
from lclm_rag.evaluation.datasets.fact_sheet_sets import exact_string_set, fact_sheet_set
from lclm_rag.evaluation.measures import exact_match
from lclm_rag.evaluation.questions import EvalQuestion
from lclm_rag.querying.expansion import Expand
from lclm_rag.querying.grounding import ground, wants_exact_string

TOGETHER = 50
SAMPLING = Sampling(max_tokens=64)
FIRST = (1, 2, 3)
AGAIN = (1, 3, 8)


@dataclass(frozen=True)
class Rule:
    """name: what goes in verbatim where the question wants an exact string, and where the answer holds
    strings that its sources do not have. exact_match: share. positions: mean, of the prompt that gave the
    answer; computed: of all prompts. asked_again: share."""

    name: str
    top_k: int
    exact_match: float
    positions: float
    computed: float
    asked_again: float


@dataclass(frozen=True)
class Kind:
    """One kind of fact: questions, right from latents alone, share of questions for which the rule fires."""

    name: str
    questions: int
    exact_match: float
    wants_exact_string: float


@dataclass(frozen=True)
class Asked:
    """right: which answers were. missing: how many strings each holds that its sources do not have. whole:
    which are neither empty nor cut."""

    right: list[bool]
    missing: list[int]
    whole: list[bool]
    positions: list[int]


def ask(kb: KnowledgeBase, questions: Sequence[EvalQuestion], top_k: int, expand: Expand) -> Asked:
    """All questions with one value of expand, no second round."""
    asked = Asked([], [], [], [])
    for start in range(0, len(questions), TOGETHER):
        batch = questions[start : start + TOGETHER]
        prompts = [kb.assemble(q.question, top_k, expand=expand, max_tokens=64) for q in batch]
        answers = all_answered(kb.decoder.complete(prompts, SAMPLING))
        for question, prompt, answer in zip(batch, prompts, answers, strict=True):
            sources = [hit.text for hit in kb.retrieve(question.question, top_k)]
            asked.right.append(exact_match(answer.text, question.answers[0]))
            asked.missing.append(len(ground(answer.text, question.question, sources).missing))
            asked.whole.append(bool(answer.text.strip()) and answer.finish_reason == "stop")
            asked.positions.append(prompt.positions)
    return asked


def rule(
    name: str, top_k: int, wanted: list[bool], first: Asked, never: Asked, again: Asked | None
) -> Rule:
    """first: what goes in where the question wants it; again: what where the answer was not found."""
    right, positions, computed, second = [], [], [], []
    for i, wants in enumerate(wanted):
        one = first if wants else never
        last, repeated = one, False
        computed.append(one.positions[i])
        if again is not None and one.missing[i]:
            repeated = True
            computed[-1] += again.positions[i]
            # As `query` has it: the second answer counts only if it is better grounded.
            if again.whole[i] and again.missing[i] < one.missing[i]:
                last = again
        right.append(last.right[i])
        positions.append(last.positions[i])
        second.append(repeated)
    count = len(wanted)
    return Rule(
        name,
        top_k,
        sum(right) / count,
        sum(positions) / count,
        sum(computed) / count,
        sum(second) / count,
    )


def rules(kb: KnowledgeBase, questions: Sequence[EvalQuestion], top_k: int) -> list[Rule]:
    by_expand = {n: ask(kb, questions, top_k, n) for n in sorted({*FIRST, *AGAIN})}
    never, text = ask(kb, questions, top_k, "never"), ask(kb, questions, top_k, "always")
    wanted = [wants_exact_string(q.question) for q in questions]
    nobody, everybody = [False] * len(wanted), [True] * len(wanted)
    found = [rule("never", top_k, nobody, never, never, None)]
    found += [rule(f"question: best {n}", top_k, wanted, by_expand[n], never, None) for n in FIRST]
    found += [rule(f"answer: best {n}", top_k, nobody, never, never, by_expand[n]) for n in AGAIN]
    found += [
        rule(f"question: best {f}; answer: best {a}", top_k, wanted, by_expand[f], never, by_expand[a])
        for f in FIRST[:2]
        for a in AGAIN
        if a > f
    ]  # fmt: skip
    found += [rule(f"best {n}", top_k, everybody, by_expand[n], never, None) for n in FIRST]
    return [*found, rule("all (pasted text)", top_k, everybody, text, never, None)]


def kinds(kb: KnowledgeBase, top_k: int) -> list[Kind]:
    """By kind of fact, on the sheets with strings: 500 of the other facts, and the strings."""
    plain = fact_sheet_set(500, part="choose").questions
    asked = exact_string_set(500, part="choose").questions
    strings = [q for q in asked if q.category != "other facts"]
    questions = [*plain, *strings]
    right = ask(kb, questions, top_k, "never").right
    by_kind: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        by_kind.setdefault(question.category, []).append(i)
    return [
        Kind(
            name,
            len(of_it),
            sum(right[i] for i in of_it) / len(of_it),
            sum(wants_exact_string(questions[i].question) for i in of_it) / len(of_it),
        )
        for name, of_it in sorted(by_kind.items())
    ]


@click.command(help=__doc__)
@click.option("--questions", default=500, show_default=True, type=click.IntRange(min=2))
@click.option("--top-k", "tops", multiple=True, default=(4,), show_default=True)
@click.option("--out", default="benchmarks/results/expansion_rules", show_default=True, type=Path)
def main(questions: int, tops: tuple[int, ...], out: Path) -> None:
    asked = exact_string_set(questions, part="choose")
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.create(Path(folder) / "kb") as kb:
        kb.add(asked.documents)
        found = [r for top_k in tops for r in rules(kb, asked.questions, top_k)]
        by_kind = kinds(kb, tops[0])
    print(f"{'rule':32}{'top':>4}{'exact':>8}{'positions':>11}{'computed':>10}{'again':>8}")
    for r in found:
        print(
            f"{r.name:32}{r.top_k:>4}{r.exact_match:>8.1%}{r.positions:>11.0f}{r.computed:>10.0f}"
            f"{r.asked_again:>8.1%}"
        )
    print(f"\n{'kind of fact':24}{'questions':>10}{'latents':>9}{'rule fires':>12}")
    for k in by_kind:
        print(f"{k.name:24}{k.questions:>10}{k.exact_match:>9.1%}{k.wants_exact_string:>12.0%}")
    about = {
        "machine": machine(),
        "part": "choose",
        "questions": questions,
        "kinds": [vars(k) for k in by_kind],
    }
    write_results(out, about, found)


if __name__ == "__main__":
    main()
