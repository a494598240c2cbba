"""How many positions does the prompt of a conversation take, with its older turns as words and as latents?

\b
    python benchmarks/conversation.py       # half a minute; nothing is decoded

A conversation of 20 questions about fact sheets, each answer as long as the passage that it rests on. The
bundled checkpoint (4 tokens to a latent), in a frame for decoders that know conversations. Positions do not
depend on what a decoder writes, so answers are taken from the sheets.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
from shared import machine, write_results

from lclm_rag import KnowledgeBase
from lclm_rag.evaluation.datasets.fact_sheets import fact_sheets
from lclm_rag.querying.query import Query


@dataclass(frozen=True)
class Result:
    """The prompt of one turn, in decoder positions; left_out: turns for which there was no room."""

    turn: int
    history: str
    positions: int
    left_out: int


@click.command(help=__doc__)
@click.option("--turns", default=20, show_default=True)
@click.option("--top-k", default=4, show_default=True)
@click.option("--out", default="benchmarks/results/conversation", show_default=True, type=Path)
def main(turns: int, top_k: int, out: Path) -> None:
    sheets = list(itertools.islice(fact_sheets(seed=2026, held_out=True), 400))
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        KnowledgeBase.create(Path(folder) / "kb", frame="card") as kb,
    ):
        kb.add(sheet.document for sheet in sheets)
        builder = kb.prompt_builder("decoder")
        history: list[tuple[str, str]] = []
        for number, sheet in enumerate(sheets[:turns], start=1):
            question = sheet.questions[0].question
            for way in ("none", "words", "latents"):
                query = Query.of(
                    question,
                    top_k,
                    expand="never",
                    history=[] if way == "none" else history,
                    compress_history=way == "latents",
                )
                built = builder.build(query, kb.reader.search(query))
                found = Result(number, way, built.prompt.positions, built.history_left_out)
                results.append(found)
                print(f"turn {found.turn:2}  history {way:8} {found.positions:5} positions")
            history += [("user", question), ("assistant", sheet.document.text)]
    about = {"machine": machine(), "turns": turns, "top_k": top_k}
    write_results(out, about, results)


if __name__ == "__main__":
    main()
