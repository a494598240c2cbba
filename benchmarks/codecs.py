"""What each codec costs: bytes, accuracy, time to read.

\b
    python benchmarks/codecs.py              # 10 minutes on one core, as is the next
    python benchmarks/codecs.py --variants   # the quantizers that were weighed
    python benchmarks/codecs.py --codec bf16 --codec int4 --questions 2000 --top-k 4 \\
        --out benchmarks/results/codecs_2000

One knowledge base for each space and codec, of the fact sheets that `examples/train_tiny_lclm/evaluate.py`
scores, with the bundled checkpoint. Cosine and error are to the float32 latents, as the encoder gives them.
Time is that of reading 64 passages and bringing their latents to float32, as the adapter takes them: from
these stores, and from one of the published shape (1,024 wide, 16×, passages of 1,024 tokens) with random
latents and made-up words.
"""

from __future__ import annotations

import itertools
import random
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
from lclm_rag.decoding import Decoder
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, fact_sheets, held_out_questions
from lclm_rag.evaluation.measures import exact_match
from lclm_rag.evaluation.scoring import score_context
from lclm_rag.store import (
    CODECS,
    CodecName,
    LatentStore,
    Layout,
    StoredPassage,
    decode_latents,
    writing,
)

DOCUMENTS, SEED = 400, 2026  # As in evaluate.py.
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
    """Exact match with the passages of `top_k`, 0 to 1. lost, won: questions that were answered right with
    bf16 and are not here, and the other way round."""

    top_k: int
    exact_match: float
    lost: int
    won: int


@dataclass(frozen=True)
class Reading:
    """bytes_per_token: of the fragments, everything counted, for each source token. seconds: to read
    `PASSAGES_READ` passages, the least of several runs. ratio: of these seconds to those of bf16."""

    latents: int
    bytes_per_token: float
    seconds: float
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
    questions: list[FactQuestion],
    top_ks: list[int],
    decoder: Decoder,
    folder: Path,
) -> list[Measured]:
    """bf16 first: the others are compared with it."""
    results: list[Measured] = []
    right: dict[int, list[bool]] = {}
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
            accuracy = [score(kb, questions, top_k, right) for top_k in top_ks]
        published = None
        if space == "encoder":
            store = published_store(folder / f"published-{codec}", codec)
            published = reading(store, before, "published")
        results.append(Measured(space, codec, bundled, published, loss, accuracy))
        click.echo(line(results[-1]))
    return results


def score(
    kb: KnowledgeBase, questions: list[FactQuestion], top_k: int, right: dict[int, list[bool]]
) -> Accuracy:
    """right: of bf16, by top_k; filled by the first call."""
    found = score_context(kb, questions, "latents", top_k)
    now = [exact_match(a, q.answer) for a, q in zip(found.answers, questions, strict=True)]
    was = right.setdefault(top_k, now)
    return Accuracy(
        top_k=top_k,
        exact_match=found.exact_match,
        lost=sum(a and not b for a, b in zip(was, now, strict=True)),
        won=sum(b and not a for a, b in zip(was, now, strict=True)),
    )


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
    least = min(seconds)
    return Reading(
        latents=sum(len(row.encoded) for row in store.read(chosen)),
        bytes_per_token=round(store.manifest.bytes / store.manifest.totals.tokens, 2),
        seconds=least,
        ratio=round(least / before.setdefault(shape, least), 2),
    )


def adapter_seconds(latents: int) -> float:
    """What comes after reading, in encoder space: an adapter of the published shape, in float32."""
    adapter, rows = Adapter(1024, 2560, 2560), torch.randn(latents, 1024)
    started = time.perf_counter()
    adapter.project(rows, [latents])
    return time.perf_counter() - started


def line(m: Measured) -> str:
    accuracy = "".join(f"{a.exact_match:8.1%} -{a.lost:<2} +{a.won:<3}" for a in m.accuracy)
    readings = "".join(
        f"{r.bytes_per_token:9.1f}{r.seconds * 1000:8.1f} ms ×{r.ratio:<6}" if r else ""
        for r in (m.bundled, m.published)
    )
    loss = f"{m.loss.cosine_mean:10.6f}{m.loss.cosine_min:10.6f}{m.loss.max_error:8.3f}"
    return f"{m.space:9}{m.codec:6}{loss}{accuracy}{readings}"


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.option("--questions", "count", default=500, show_default=True)
@click.option("--top-k", "top_ks", default="4,8", show_default=True, callback=numbers)
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
    top_ks: list[int],
    codecs: tuple[CodecName, ...],
    variants: bool,
    out: Path | None,
) -> None:
    sheets = list(itertools.islice(fact_sheets(SEED, held_out=True), DOCUMENTS))
    questions = held_out_questions(count, sheets, SEED)
    documents = [sheet.document for sheet in sheets]
    decoder = TransformersDecoder.from_pretrained("bundled")
    about = {**machine(), "threads": torch.get_num_threads(), "documents": DOCUMENTS}
    about |= {"questions": count, "seed": SEED}
    results = Path(__file__).parent / "results"
    if variants:
        found = score_variants(documents, questions, top_ks[0], decoder)
        write_results(out or results / "codec_variants", {**about, "top_k": top_ks[0]}, found)
        return
    exact = "".join(f"  match, top {k} -+" for k in top_ks)
    click.echo(
        f"{'space':9}{'codec':6}    cosine       min   error{exact}  B/token, reading; published"
    )
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for space in SPACES:
            rows = rows_in(space, documents, Path(folder))
            measured += measure_space(space, codecs, rows, questions, top_ks, decoder, Path(folder))
    seconds = adapter_seconds(PASSAGES_READ * 64)
    click.echo(f"The adapter, at the published shape, on as many latents: {seconds:.2f} s")
    write_results(out or results / "codecs", {**about, "adapter_seconds": seconds}, measured)


if __name__ == "__main__":
    main()
