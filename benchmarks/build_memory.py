"""How much memory building from a large JSONL takes, above what the model takes by itself.

Writes a JSONL of the given size, runs `lclm-rag build` on it in a process of its own, and compares that
process's greatest resident memory, as the kernel counts it, with that of a build from a tiny corpus.

Most of each record is a field that is read and left out (a page's HTML); the rest is a text that is
compressed, and metadata. So it takes minutes on two cores instead of days. What share of the bytes is
compressed is in the output: memory depends on what is read, and on how many documents there are, since
compression works on half a million characters at a time however many there are.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from shared import machine, write_results

MIB = 2**20


@dataclass(frozen=True)
class Build:
    """corpus_mib: of the JSONL. text_share: of its bytes, what is compressed. tokens: source tokens.
    peak_mib: the greatest resident memory of the process."""

    corpus: str
    corpus_mib: float
    documents: int
    text_share: float
    tokens: int
    seconds: float
    peak_mib: float


@click.command()
@click.option(
    "--megabytes", default=2000, show_default=True, help="Size of the JSONL, in 10⁶ bytes."
)
@click.option("--record-bytes", default=16_000, show_default=True, help="Size of a record, about.")
@click.option("--text-bytes", default=80, show_default=True, help="Size of its text, about.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "build_memory",
    help="Where the JSON goes.",
)
def main(megabytes: int, record_bytes: int, text_bytes: int, out: Path) -> None:
    """Example: python benchmarks/build_memory.py --megabytes 200"""
    with tempfile.TemporaryDirectory() as folder:
        tiny = measure("tiny", Path(folder), 100_000, 1000, text_bytes)
        large = measure("large", Path(folder), megabytes * 1_000_000, record_bytes, text_bytes)
    above = round(large.peak_mib - tiny.peak_mib, 1)
    for build in (tiny, large):
        click.echo(
            f"{build.corpus:6}{build.corpus_mib:10,.1f} MiB JSONL, {build.documents:,} documents, "
            f"{build.text_share:.1%} of it compressed ({build.tokens:,} tokens) in "
            f"{build.seconds:,.0f} s: {build.peak_mib:,.0f} MiB resident at most"
        )
    click.echo(f"The large corpus took {above:,.0f} MiB more than the tiny one.")
    write_results(out, {**machine(), "above_tiny_mib": above}, [tiny, large])


def measure(name: str, folder: Path, size: int, record_bytes: int, text_bytes: int) -> Build:
    corpus, kb = folder / f"{name}.jsonl", folder / name
    texts = write_corpus(corpus, size, record_bytes, text_bytes)
    written = corpus.stat().st_size
    started = time.perf_counter()
    report, peak = peak_of_build(corpus, kb)
    seconds = time.perf_counter() - started
    corpus.unlink()
    return Build(
        corpus=name,
        corpus_mib=round(written / MIB, 1),
        documents=report["added"],
        text_share=round(texts / written, 4),
        tokens=report["tokens"],
        seconds=round(seconds, 1),
        peak_mib=round(peak / MIB, 1),
    )


def write_corpus(path: Path, size: int, record_bytes: int, text_bytes: int) -> int:
    """Writes records of made-up words until there are `size` bytes; the bytes of their texts."""
    chance = random.Random(0)
    words = ["".join(chance.choices("aeioulnrst", k=chance.randint(2, 9))) for _ in range(2000)]
    pages = " ".join(chance.choices(words, k=20_000))
    written = texts = number = 0
    with path.open("w", encoding="ascii") as lines:
        while written < size:
            text = f"Page {number} of {' '.join(chance.choices(words, k=text_bytes // 6))}."
            start = chance.randrange(len(pages) // 2)
            record = {
                "id": f"https://example.org/{number}",
                "title": f"Page {number}",
                "text": text,
                "lang": chance.choice(["en", "de", "fr"]),
                "year": chance.randint(1990, 2026),
                "tags": chance.choices(words, k=3),
                "html": "",
            }
            filling = max(0, record_bytes - len(json.dumps(record)))
            record["html"] = (pages[start:] + pages)[:filling]
            written += lines.write(json.dumps(record) + "\n")
            texts += len(text)
            number += 1
    return texts


def peak_of_build(corpus: Path, kb: Path) -> tuple[dict[str, int], int]:
    """What `lclm-rag build --json` says, and the bytes that were resident in its process at most."""
    command = [sys.executable, "-m", "lclm_rag.cli", "build", corpus, "--kb", kb, "--json"]
    command += ["--metadata-columns", "title,lang,year,tags", "--contextual-headers"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"lclm-rag build ended with {process.returncode}.")
    return json.loads(said), usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
