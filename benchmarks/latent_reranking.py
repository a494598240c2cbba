"""Does late interaction with the stored latents order passages better than the search that found them?

    python benchmarks/latent_reranking.py --out benchmarks/results/latent_reranking.json
    python benchmarks/latent_reranking.py --judged DIR --checkpoint ID   # a folder in the form of BEIR

A question goes through the encoder, and each of its vectors is compared with the latents of a passage: the
greatest cosine of each, summed (MaxSim, as in ColBERT). Its vectors are its latents ("latents"), or the
hidden states of its tokens, which are pooled to latents ("tokens"). A single vector for each side ("mean") is
there for comparison, and so are the latents without their mean over the corpus, because vectors of a language
model share a large part ("centered"). "fused" adds up 1 / (60 + rank) with the rank of BM25. The candidates
are the 50 best of BM25, as for a cross-encoder.

The default set are made-up fact sheets with near-duplicates: of each sheet there are copies under other names
and with other values, so that most words of a question are in several sheets.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from shared import machine, provenance

from lclm_rag import Compressor, Document
from lclm_rag.checkpoint import BUNDLED, Checkpoint
from lclm_rag.compression.windows import cut_windows
from lclm_rag.evaluation.datasets.fact_sheet_sets import fact_sheet_set
from lclm_rag.evaluation.datasets.judged import JudgedSet, read_judged_set
from lclm_rag.evaluation.intervals import bootstrap_interval, paired_difference
from lclm_rag.evaluation.ranking_measures import ndcg, recall, reciprocal_rank
from lclm_rag.evaluation.retrieval import of_documents
from lclm_rag.torch_setup import to_device
from lclm_rag.types import PassageKey

CANDIDATES = 50
COPIES = 3


def near_duplicates(count: int, seed: int) -> JudgedSet:
    """Fact sheets, and copies of each in which every name and number is another's."""
    base = fact_sheet_set(count, seed)
    rng = random.Random(seed)
    documents = list(base.documents)
    names = [str(d.metadata["name"]) for d in documents]
    for document in base.documents:
        for copy in range(COPIES):
            text = document.text
            name = str(document.metadata["name"])
            # A part of the name stays, as in names of one family or one street.
            words = name.split()
            words[rng.randrange(len(words))] = rng.choice(names).split()[0]
            text = text.replace(name, " ".join(words))
            text = re.sub(r"\d", lambda _: str(rng.randrange(10)), text)
            if text != document.text:
                documents.append(Document(f"{document.id}-copy-{copy}", text))
    queries = {q.id: q.question for q in base.questions}
    grades = {q.id: dict.fromkeys(q.document_ids, 1) for q in base.questions}
    return JudgedSet("fact sheets with near-duplicates", queries, grades, documents)


def token_states(compressor: Compressor, texts: Sequence[str]) -> list[torch.Tensor]:
    """The encoder's last hidden states of each text, [tokens, width]; texts of one window."""
    found = []
    for text in texts:
        windows = cut_windows(
            compressor.checkpoint.encoder_token_ids([text]), compressor.checkpoint.config, None
        )
        with torch.inference_mode():
            hidden = compressor.encoder(
                to_device(windows.token_ids, compressor.device),
                to_device(windows.positions(), compressor.device),
                windows.lengths.tolist(),
            )
        found.append(hidden.reshape(-1, hidden.shape[-1]).float().cpu())
    return found


def max_sim(asked: torch.Tensor, latents: torch.Tensor) -> float:
    """The greatest cosine of each vector of the question, added up."""
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (asked, latents))
    return float((a @ b.T).max(dim=1).values.sum())


def mean_sim(asked: torch.Tensor, latents: torch.Tensor) -> float:
    """The cosine of the two means."""
    return float(torch.nn.functional.cosine_similarity(asked.mean(0), latents.mean(0), dim=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default=BUNDLED)
    parser.add_argument("--judged", type=Path, help="A folder in the form of BEIR.")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    checkpoint = Checkpoint.open(arguments.checkpoint)
    compressor = Compressor.from_pretrained(checkpoint, arguments.device)
    judged = (
        read_judged_set(arguments.judged)
        if arguments.judged
        else near_duplicates(arguments.count, arguments.seed)
    )
    assert judged.documents is not None
    queries, grades = list(judged.queries.values()), [judged.grades[q] for q in judged.queries]
    with of_documents(judged.documents, checkpoint) as searched:
        found = searched.index.search_all(queries, 200)
        keys = list(dict.fromkeys(hit.key for hits in found for hit in hits[:CANDIDATES]))
        texts = searched.read(keys)
        settings = dict(searched.settings)
    compressed = compressor.compress(texts, space="encoder")
    latents: dict[PassageKey, torch.Tensor] = {
        key: vectors.float().cpu() for key, vectors in zip(keys, compressed, strict=True)
    }
    center = torch.cat(list(latents.values())).mean(0)
    started = time.perf_counter()
    asked = {
        "latents": [x.float().cpu() for x in compressor.compress(queries, space="encoder")],
        "tokens": token_states(compressor, queries),
    }
    encoding = (time.perf_counter() - started) / 2 / len(queries)

    def order(
        vectors: Sequence[torch.Tensor], score: Callable[..., float], shift: torch.Tensor | float
    ) -> list[list[str]]:
        rankings = []
        for hits, query in zip(found, vectors, strict=True):
            best = hits[:CANDIDATES]
            scores = [score(query - shift, latents[hit.key] - shift) for hit in best]
            ranked = sorted(range(len(best)), key=lambda i: -scores[i])
            rest = [hit.key.document_id for hit in hits[CANDIDATES:]]
            rankings.append([*(best[i].key.document_id for i in ranked), *rest])
        return rankings

    def fused(rankings: Sequence[Sequence[str]]) -> list[list[str]]:
        joined = []
        for first, second in zip(bm25, rankings, strict=True):
            at = [{d: i for i, d in reversed(list(enumerate(r)))} for r in (first, second)]
            joined.append(sorted(at[0], key=lambda d: -sum(1 / (60 + each[d]) for each in at)))
        return joined

    bm25 = [[hit.key.document_id for hit in hits] for hits in found]
    ways = {"bm25": bm25}
    for name, vectors in asked.items():
        ways[f"{name}, MaxSim"] = order(vectors, max_sim, 0.0)
        ways[f"{name}, MaxSim, centered"] = order(vectors, max_sim, center)
        ways[f"{name}, MaxSim, centered, fused"] = fused(ways[f"{name}, MaxSim, centered"])
        ways[f"{name}, mean, centered"] = order(vectors, mean_sim, center)
    rng = random.Random(arguments.seed)
    ways["any order of the candidates"] = [
        [*rng.sample(ranked[:CANDIDATES], len(ranked[:CANDIDATES])), *ranked[CANDIDATES:]]
        for ranked in bm25
    ]
    report: dict[str, Any] = {
        "set": judged.name,
        "machine": machine(),
        "provenance": provenance(),
        "checkpoint": checkpoint.name,
        "queries": len(queries),
        "settings": settings,
        "encoding_ms": 1000 * encoding,
        "vectors_of_a_question": {name: fmean(map(len, each)) for name, each in asked.items()},
        "ways": {},
    }
    reference: dict[str, list[float]] = {}
    for name, rankings in ways.items():
        ranked = [list(dict.fromkeys(each)) for each in rankings]
        pairs = list(zip(ranked, grades, strict=True))
        scores = {
            "recall@1": [recall(r, g, 1) for r, g in pairs],
            "recall@8": [recall(r, g, 8) for r, g in pairs],
            "nDCG@10": [ndcg(r, g, 10) for r, g in pairs],
            "MRR": [reciprocal_rank(r, g) for r, g in pairs],
        }
        reference = reference or scores
        report["ways"][name] = {
            measure: {
                "mean": fmean(values),
                "interval": bootstrap_interval(values, arguments.seed),
                "less_bm25": vars(paired_difference(values, reference[measure], arguments.seed)),
            }
            for measure, values in scores.items()
        }
        line = "  ".join(f"{m} {100 * fmean(v):5.1f}" for m, v in scores.items())
        print(f"{name:32} {line}")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
