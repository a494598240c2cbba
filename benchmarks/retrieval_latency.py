"""How long a search takes, in each way, in knowledge bases of several sizes: the median, in one run.

    python benchmarks/retrieval_latency.py --sizes 10000,100000

Passages of 20 to 60 random words, whose latents the bundled checkpoint makes; dense vectors of 384 dimensions
are random projections of the words; the cross-encoder has random weights and the shape of ms-marco-MiniLM-L6
(weights do not change the time). Questions are five words of a passage. The embedder's time is not that of a
real one: what is measured is the search.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from shared import machine, numbers, write_results
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from lclm_rag import Document, KnowledgeBase

WIDTH, VOCABULARY, TOP_K = 384, 20_000, 8


@dataclass(frozen=True)
class Measured:
    """The times of one way at one size; `to_words` is the median by that of words alone (BM25)."""

    passages: int
    way: str
    p50_ms: float
    quartiles_ms: tuple[float, float]
    to_words: float


class WordEmbedder:
    """The sum of a random vector for each word."""

    name, width = "random words", WIDTH

    def embed_passages(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_question(text) for text in texts]

    def embed_question(self, text: str) -> list[float]:
        vector = np.sum([self._word(word) for word in text.split()], axis=0)
        found: list[float] = (vector / np.linalg.norm(vector)).tolist()
        return found

    def __init__(self) -> None:
        self._known: dict[str, np.ndarray] = {}

    def _word(self, word: str) -> np.ndarray:
        if word not in self._known:
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            self._known[word] = np.random.default_rng(seed).normal(size=WIDTH)
        return self._known[word]


def words(rng: random.Random) -> list[str]:
    # Of several lengths: else most scores are equal, and search looks further for all that are.
    return [f"word{int(VOCABULARY * rng.random() ** 2)}" for _ in range(rng.randint(20, 60))]


def documents(count: int) -> Iterator[Document]:
    """Documents of four passages each, told apart by headings."""
    rng = random.Random(7)
    for number in range(count // 4):
        parts = (f"# Part {i}\n\n{' '.join(words(rng))}\n\n" for i in range(4))
        yield Document(f"d{number}", "".join(parts))


def cross_encoder(folder: Path) -> str:
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = [*marks.values(), *(f"word{i}" for i in range(VOCABULARY))]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config: Any = BertConfig(
        vocab_size=len(names),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=made, **marks).save_pretrained(folder)
    return str(folder)


def ways_of(kb: KnowledgeBase, cross_encoder: str) -> dict[str, Callable[[str], object]]:
    """What is timed, by its name: the index alone, and what a caller of `retrieve` waits for."""
    index, search = kb.index, partial(kb.retrieve, top_k=TOP_K)
    return {
        "index alone, words": lambda q: index.search_all([q], TOP_K, words_only=True),
        "index alone, dense": lambda q: index.search_all([q], TOP_K, dense_only=True),
        "index alone, both": lambda q: index.search_all([q], TOP_K),
        "words": partial(search, words_only=True),
        "both": search,
        "both, neighbours": partial(search, neighbours=1),
        "both, mmr": partial(search, mmr=0.5),
        "both, cross-encoder": partial(search, rerank=cross_encoder),
    }


@click.command(help=__doc__)
@click.option("--sizes", default="10000,100000", callback=numbers, show_default=True)
@click.option("--questions", default=80, show_default=True)
@click.option("--out", type=Path, default=Path("benchmarks/results/retrieval_latency.json"))
def main(sizes: list[int], questions: int, out: Path) -> None:
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        model = cross_encoder(Path(folder) / "model")
        for size in sizes:
            path = Path(folder) / f"kb{size}"
            with KnowledgeBase.create(path, passage_tokens=256, embedder=WordEmbedder()) as kb:
                started = time.perf_counter()
                kb.add(documents(size))
                kb.compact()
                print(f"{len(kb):,} passages in {time.perf_counter() - started:.0f} s", flush=True)
                rng = random.Random(11)
                asked = [" ".join(rng.sample(words(rng), 5)) for _ in range(questions)]
                ways = ways_of(kb, model)
                took: dict[str, list[float]] = {name: [] for name in ways}
                # In turns, so that what else the machine does touches all of them, each turn in another
                # order: the cross-encoder leaves cold caches behind; a question asked again finds warm ones.
                for question in [asked[0], *asked]:
                    for name in rng.sample([*ways], len(ways)):
                        begun = time.perf_counter()
                        ways[name](question)
                        took[name].append(time.perf_counter() - begun)
                base = statistics.median(took["words"][1:])
                for name, times in took.items():
                    low, p50, high = (1000 * t for t in statistics.quantiles(times[1:], n=4))
                    found.append(Measured(len(kb), name, p50, (low, high), p50 / (1000 * base)))
                    print(found[-1], flush=True)
    about = {"machine": machine(), "top_k": TOP_K, "width": WIDTH, "questions": questions}
    write_results(out, about, found)


if __name__ == "__main__":
    main()
