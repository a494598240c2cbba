"""What each codec costs: bytes, accuracy, time to read.

\b
    python benchmarks/codecs.py              # 10 minutes on one core, as is the next
    python benchmarks/codecs.py --variants   # the quantizers that were weighed
    python benchmarks/codecs.py --part report --out benchmarks/results/codecs_report   # the choice, judged

One knowledge base for each space and codec, of fact sheets with a code and a UUID in each, with the bundled
checkpoint. Half of the questions ask for these strings. A codec is chosen on the part "choose" and judged on
the part "report", which share no name. Nothing is expanded, so that the latents alone are measured. Cosine
and error are to the float32 latents, as the encoder gives them. Time is that of reading 64 passages and
bringing their latents to float32, as the adapter takes them: from these stores, and from one of the published
shape (1,024 wide, 16×, passages of 1,024 tokens) with random latents and made-up words.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from codec_variants import score_variants
from shared import machine, numbers, write_results

from lclm_rag import Document, KnowledgeBase, Passage, PassageKey
from lclm_rag.checkpoint import Space
from lclm_rag.compression.adapter import Adapter
from lclm_rag.decoding import Decoder, Sampling, all_answered
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.evaluation.datasets.fact_sheet_sets import exact_string_set, fact_sheet_set
from lclm_rag.evaluation.datasets.parts import Part
from lclm_rag.evaluation.intervals import mcnemar
from lclm_rag.evaluation.measures import exact_match
from lclm_rag.evaluation.questions import EvalQuestion
from lclm_rag.store import (
    CODECS,
    CodecName,
    LatentStore,
    Layout,
    StoredPassage,
    decode_latents,
    writing,
)

TOGETHER = 50
MAX_TOKENS = 64
SPACES: tuple[Space, ...] = ("encoder", "decoder")
PASSAGES_READ = 64
REPEATS = 30


@dataclass(frozen=True)
class Loss:
    """cosine: to the float32 latent. max_error: the largest difference of one coordinate, as a share of the
    root mean square of its latent's coordinates."""

    cosine_mean: float
    cosine_min: float
    max_error: float


@dataclass(frozen=True)
class Accuracy:
    """Exact match on one kind of fact with the passages of `top_k`, 0 to 1. changed: answers that are others
    than with bf16. lost, won: questions that were answered right with bf16 and are not here, and the other
    way round. p: of McNemar's exact test."""

    kind: str
    questions: int
    top_k: int
    exact_match: float
    changed: int
    lost: int
    won: int
    p: float


@dataclass(frozen=True)
class Reading:
    """bytes_per_token: of the fragments, everything counted, for each source token. seconds: to read
    `PASSAGES_READ` passages, the median of `runs`; quartiles around it. ratio: of these seconds to those of
    bf16."""

    latents: int
    bytes_per_token: float
    seconds: float
    quartiles: list[float]
    runs: int
    ratio: float


@dataclass(frozen=True)
class Measured:
    """One codec in one space. published: the same of a store of the published shape."""

    space: Space
    codec: CodecName
    bundled: Reading
    published: Reading | None
    loss: Loss
    accuracy: list[Accuracy]


@dataclass(frozen=True)
class Exact:
    """A passage as the store keeps it, and its latents as the encoder gave them, float32."""

    row: StoredPassage
    latents: torch.Tensor

    def encoded(self, layout: Layout) -> StoredPassage:
        row = self.row
        return StoredPassage.encode(
            row.passage, row.tokens, row.document_hash, row.last, self.latents, layout
        )


def rows_in(space: Space, documents: list[Document], folder: Path) -> list[Exact]:
    """The passages of all documents: compressed once, laid down by each codec."""
    with KnowledgeBase.create(folder / f"{space}-exact") as kb:
        kb.add(documents)
        rows = list(kb.store.passages())
        exact = kb.compressor.compress([row.passage.content for row in rows], space)
    return [Exact(row, latents.float().cpu()) for row, latents in zip(rows, exact, strict=True)]


def measure_space(
    space: Space,
    codecs: Sequence[CodecName],
    rows: list[Exact],
    questions: Sequence[EvalQuestion],
    top_ks: list[int],
    decoder: Decoder,
    folder: Path,
) -> list[Measured]:
    """bf16 first: the others are compared with it."""
    results: list[Measured] = []
    answers: dict[int, list[str]] = {}
    before: dict[str, float] = {}
    for codec in codecs:
        path = folder / f"{space}-{codec}"
        KnowledgeBase.create(path, codec=codec, space=space).close()
        with writing(path / "store", "add") as writer:
            for row in rows:
                writer.add(row.encoded(writer.layout))
            writer.commit()
        with KnowledgeBase.open(path, decoder=decoder) as kb:
            bundled = reading(kb.store, before, "bundled")
            loss = loss_of(kb.store, rows)
            accuracy = [a for top_k in top_ks for a in score(kb, questions, top_k, answers)]
        published = None
        if space == "encoder":
            store = published_store(folder / f"published-{codec}", codec)
            published = reading(store, before, "published")
        results.append(Measured(space, codec, bundled, published, loss, accuracy))
        click.echo(line(results[-1]))
    return results


def score(
    kb: KnowledgeBase,
    questions: Sequence[EvalQuestion],
    top_k: int,
    before: dict[int, list[str]],
) -> list[Accuracy]:
    """One for each kind of fact. before: the answers with bf16, by top_k; filled by the first call."""
    now = ask(kb, questions, top_k)
    was = before.setdefault(top_k, now)
    kinds: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        kinds.setdefault(question.category, []).append(i)
    found = []
    for kind, of_it in sorted(kinds.items()):
        right, once = (
            [exact_match(answers[i], questions[i].answers[0]) for i in of_it]
            for answers in (now, was)
        )
        lost = sum(b and not a for a, b in zip(right, once, strict=True))
        won = sum(a and not b for a, b in zip(right, once, strict=True))
        changed = sum(now[i] != was[i] for i in of_it)
        share = sum(right) / len(of_it)
        found.append(
            Accuracy(kind, len(of_it), top_k, share, changed, lost, won, mcnemar(won, lost))
        )
    return found


def ask(kb: KnowledgeBase, questions: Sequence[EvalQuestion], top_k: int) -> list[str]:
    """The answers from latents alone."""
    answers: list[str] = []
    for start in range(0, len(questions), TOGETHER):
        prompts = [
            kb.assemble(q.question, top_k, expand="never", max_tokens=MAX_TOKENS)
            for q in questions[start : start + TOGETHER]
        ]
        decoded = all_answered(kb.decoder.complete(prompts, Sampling(max_tokens=MAX_TOKENS)))
        answers += [completion.text.strip() for completion in decoded]
    return answers


def loss_of(store: LatentStore, rows: list[Exact]) -> Loss:
    exact = torch.cat([each.latents for each in rows])
    read = store.read(each.row.passage.key for each in rows)
    stored = torch.cat(decode_latents(read)).float()
    cosine = torch.cosine_similarity(exact.double(), stored.double())
    size = exact.square().mean(1, keepdim=True).sqrt()
    return Loss(
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
        max_error=float(((stored - exact).abs() / size).max()),
    )


def published_store(path: Path, codec: CodecName) -> LatentStore:
    """256 passages of 1,024 tokens, 64 latents each."""
    chance, generator = random.Random(0), torch.Generator().manual_seed(0)
    layout = Layout(codec, "encoder", 1024, "0" * 16, 16)
    LatentStore.create(path, layout)
    with writing(path, "add") as writer:
        for number in range(256):
            text = "".join(chance.choices("aeioulnrst ", k=4608))  # 4.5 bytes a token
            passage = Passage(PassageKey(f"{number:06}", 0), 0, len(text), text, {})
            latents = torch.randn(64, 1024, generator=generator)
            writer.add(StoredPassage.encode(passage, 1024, bytes(32), True, latents, layout))
        return writer.commit()


def reading(store: LatentStore, before: dict[str, float], shape: str) -> Reading:
    """before: seconds of bf16, by shape; filled by the first call."""
    store = LatentStore.open(store.folder)
    keys = [row.passage.key for row in store.passages()]
    chosen = random.Random(0).sample(keys, PASSAGES_READ)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.cat(decode_latents(store.read(chosen))).float()
        seconds.append(time.perf_counter() - started)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Reading(
        latents=sum(len(row.encoded) for row in store.read(chosen)),
        bytes_per_token=round(store.manifest.bytes / store.manifest.totals.tokens, 2),
        seconds=median,
        quartiles=[low, high],
        runs=REPEATS,
        ratio=round(median / before.setdefault(shape, median), 2),
    )


def adapter_seconds(latents: int) -> float:
    """What comes after reading, in encoder space: an adapter of the published shape, in float32."""
    adapter, rows = Adapter(1024, 2560, 2560), torch.randn(latents, 1024)
    started = time.perf_counter()
    adapter.project(rows, [latents])
    return time.perf_counter() - started


def line(m: Measured) -> str:
    accuracy = "".join(
        f"\n    {a.kind:14} top {a.top_k}: {a.exact_match:6.1%} of {a.questions}, {a.changed} changed, "
        f"-{a.lost} +{a.won}, p {a.p:.2g}"
        for a in m.accuracy
    )
    readings = "".join(
        f"{r.bytes_per_token:9.1f}{r.seconds * 1000:8.1f} ms ×{r.ratio:<6}" if r else ""
        for r in (m.bundled, m.published)
    )
    loss = f"{m.loss.cosine_mean:10.6f}{m.loss.cosine_min:10.6f}{m.loss.max_error:8.3f}"
    return f"{m.space:9}{m.codec:6}{loss}{readings}{accuracy}"


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.option("--questions", "count", default=500, show_default=True)
@click.option(
    "--part", type=click.Choice(("choose", "report")), default="choose", show_default=True
)
@click.option("--top-k", "top_ks", default="4", show_default=True, callback=numbers)
@click.option(
    "--codec",
    "codecs",
    multiple=True,
    type=click.Choice(CODECS),
    default=CODECS,
    help="Again for each; bf16 first. Default: all.",
)
@click.option("--variants", is_flag=True, help="The quantizers that were weighed instead.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where the JSON goes, without ending. Default: benchmarks/results/codecs, or codec_variants.",
)
def main(
    count: int,
    part: Part,
    top_ks: list[int],
    codecs: tuple[CodecName, ...],
    variants: bool,
    out: Path | None,
) -> None:
    decoder = TransformersDecoder.from_pretrained("bundled")
    made = fact_sheet_set(count, part=part) if variants else exact_string_set(count, part=part)
    documents = list(made.documents)
    about = {**machine(), "threads": torch.get_num_threads(), "set": made.name, **made.settings}
    results = Path(__file__).parent / "results"
    if variants:
        found = score_variants(documents, made.questions, top_ks[0], decoder)
        write_results(out or results / "codec_variants", {**about, "top_k": top_ks[0]}, found)
        return
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for space in SPACES:
            rows = rows_in(space, documents, Path(folder))
            measured += measure_space(
                space, codecs, rows, made.questions, top_ks, decoder, Path(folder)
            )
    seconds = adapter_seconds(PASSAGES_READ * 64)
    click.echo(f"The adapter, at the published shape, on as many latents: {seconds:.2f} s")
    write_results(out or results / "codecs", {**about, "adapter_seconds": seconds}, measured)


if __name__ == "__main__":
    main()
