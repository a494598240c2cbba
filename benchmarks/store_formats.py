"""What could carry a store of latents: Arrow files with our manifest, Lance, Delta, or pyarrow.dataset.

Writes the same made-up passages (latents in bf16, and text) in each format and asks of each

- what it takes to read random passages, next to a numpy memory map of the same bytes in the same process,
  and how many of these bytes are copied into memory of the process;
- what a writer that is killed leaves behind, and what removes it;
- what happens to a reader whose version is cleaned up under it;
- whether one wrong byte in the latents is noticed;
- what it adds to an installation.

Lance and Delta are tried where `pylance` and `deltalake` are installed; neither is needed otherwise. Memory
is read from /proc: Linux only.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import mmap
import multiprocessing
import random
import re
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import lru_cache, partial
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet
import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from shared import write_results

from lclm_rag.store import LatentStore, Layout, StoredPassage, vacuum, writing
from lclm_rag.store.fragment import key_hash
from lclm_rag.store.keys import run_name
from lclm_rag.store.lists import deletions_name, list_name
from lclm_rag.types import Passage, PassageKey

MIB = 2**20
PACKAGES = {"raw": "numpy", "store": "pyarrow", "lance": "pylance", "delta": "deltalake"}
MODULES = {"lance": "lance", "delta": "deltalake"}
WAYS = {  # a way of reading: the format that it reads
    "memory map, by row": "store",
    "LatentStore, by key": "store",
    "pyarrow.dataset, take": "store",
    "pyarrow.dataset, filter on key": "store",
    "Lance, take": "lance",
    "Lance, index on key": "lance",
    "Delta, to_pyarrow_dataset, take": "delta",
    "Delta, to_pyarrow_dataset, filter on key": "delta",
    "Delta, QueryBuilder, filter on key": "delta",
}
AFTER_CLEANING = {
    "store": "LatentStore, by key",
    "lance": "Lance, take",
    "delta": "Delta, to_pyarrow_dataset, filter on key",
}
BATCH = 16  # rows that the killed writer adds at once
HELD = 4  # reads whose latents are held while memory is looked at

# On busy cores torch's threads wait for each other far longer than a passage takes to be checked.
torch.set_num_threads(1)

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Rows = list[tuple[Bytes, str]]
Read = Callable[[list[int]], Rows]
"""Numbers of passages → latents (uint8 [bytes]) and text of each; a filter may change the order."""


@dataclass(frozen=True)
class Sizes:
    """passages: in the store. latents, width: of a passage; two bytes a number. text: its characters."""

    passages: int
    latents: int
    width: int
    text: int

    @property
    def bytes(self) -> int:
        """Of the latents of a passage."""
        return self.latents * self.width * 2


@dataclass(frozen=True)
class Reading:
    """read_ms, memmap_ms: median for one read of `at_once` passages, latents copied out and text decoded.

    ratio: between the two. open_ms: from importing done to the first passage read. open_mib: anonymous
    memory taken by it. pool_share, anonymous_share: of the bytes of latents that are held, how much lies in
    pyarrow's memory pool, and in anonymous memory of the process; 0 means that nothing was copied.
    """

    way: str
    at_once: int
    read_ms: float
    memmap_ms: float
    ratio: float
    pool_share: float
    anonymous_share: float
    import_ms: float
    open_ms: float
    open_mib: float


@dataclass(frozen=True)
class Crashes:
    """Of a writer that adds and deletes batches in a loop, killed `kills` times.

    commits: acknowledged in all. unreadable, half, lost: kills after which the store did not open, showed a
    part of a batch or wrong bytes, or did not show what was acknowledged. leftovers: kills after which there
    were more files that no version names. files_*: how many there were, after the last kill and after each
    way of cleaning. stays: what the names of those look like that nothing removed.
    """

    format: str
    kills: int
    commits: int
    unreadable: int
    half: int
    lost: int
    leftovers: int
    files_left: int
    files_after_usual_cleaning: int
    files_after_full_cleaning: int
    stays: list[str]


@click.command()
@click.option("--passages", default=2000, show_default=True, help="In the store that is read.")
@click.option("--latents", default=64, show_default=True, help="Of a passage.")
@click.option("--width", default=1024, show_default=True, help="Of a latent; two bytes a number.")
@click.option("--text", default=4096, show_default=True, help="Characters of a passage's text.")
@click.option("--at-once", default=64, show_default=True, help="Passages in a read.")
@click.option("--reads", default=30, show_default=True, help="Reads of each kind.")
@click.option("--kills", default=20, show_default=True, help="Of each format's writer.")
@click.option("--seed", default=0, show_default=True, help="Of the rows read and the kills' times.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "store_formats",
    help="Where the JSON goes.",
)
def main(
    passages: int,
    latents: int,
    width: int,
    text: int,
    at_once: int,
    reads: int,
    kills: int,
    seed: int,
    out: Path,
) -> None:
    """Example: python benchmarks/store_formats.py --passages 20000"""
    sizes = Sizes(passages, latents, width, text)
    formats = ["store", *(name for name in MODULES if installed(name))]
    with tempfile.TemporaryDirectory() as folder:
        written, readings = read_trials(Path(folder), formats, sizes, at_once, reads, seed)
        crashes = [crash_trial(Path(folder), name, sizes, kills, seed) for name in formats]
        cleaned = [row for name in formats for row in cleaning_trial(Path(folder), name, sizes)]
        damaged = [in_a_process(damage_trial, Path(folder), name, sizes) for name in formats]
    about = {
        "packages": {
            PACKAGES[name]: metadata.version(PACKAGES[name]) for name in ["raw", *formats]
        },
        **asdict(sizes),
        "written": written,
        "crashes": [asdict(row) for row in crashes],
        "cleaned_under_a_reader": cleaned,
        "one_wrong_byte": damaged,
        "installation": [added(PACKAGES[name]) for name in formats if name in MODULES],
    }
    show(about, readings)
    write_results(out, about, readings)


def installed(name: str) -> bool:
    try:
        metadata.version(PACKAGES[name])
    except metadata.PackageNotFoundError:
        click.echo(f"Without {name}: {PACKAGES[name]} is not installed.", err=True)
        return False
    return True


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Of a fresh process, so that memory is the format's own; spawned: Lance and Delta run threads."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# The passages.


@lru_cache(1)
def _numbers(sizes: Sizes) -> np.ndarray[Any, np.dtype[np.int16]]:
    """[256, latents * width]: normally distributed numbers in bf16, as their bits."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(256, sizes.latents * sizes.width, generator=generator)
    bits: np.ndarray[Any, Any] = numbers.bfloat16().view(torch.int16).numpy()
    return bits


def passage(number: int, sizes: Sizes) -> tuple[Bytes, str]:
    """Latents and text of a passage, always the same for its number."""
    latents = np.roll(_numbers(sizes)[number % 256], number // 256)
    words = f"Passage {number} says what passages say. "
    return latents.view(np.uint8), (words * (sizes.text // len(words) + 1))[: sizes.text]


def append(name: str, folder: Path, numbers: range, sizes: Sizes) -> None:
    """Write passages in one commit."""
    if name == "store":
        with writing(folder, "add") as writer:
            for number in numbers:
                latents, text = passage(number, sizes)
                tensor = torch.from_numpy(latents).view(torch.bfloat16).view(-1, sizes.width)
                stored = Passage(PassageKey(f"d{number}", 0), 0, len(text), text, {})
                facts = (sizes.latents * 16, bytes(32), True)
                writer.add(StoredPassage.encode(stored, *facts, tensor, writer.layout))
            writer.commit()
        return
    # What each reads fastest in; Delta has no fixed size.
    latent_type = pa.binary(sizes.bytes) if name == "lance" else pa.large_binary()
    fields = [("key", pa.int64()), ("text", pa.string()), ("latents", latent_type)]
    schema = pa.schema(fields)
    batches = pa.RecordBatchReader.from_batches(schema, _batches(numbers, sizes, schema))
    if name == "lance":
        import lance

        lance.write_dataset(batches, str(folder), mode="append")
    else:
        from deltalake import WriterProperties, write_deltalake

        # A row group is read whole. Groups of 256 read no faster; of 1, the first read took seconds.
        properties = WriterProperties(compression="UNCOMPRESSED", max_row_group_size=16)
        write_deltalake(str(folder), batches, mode="append", writer_properties=properties)


def _batches(numbers: range, sizes: Sizes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(numbers), 256):
        part = numbers[start : start + 256]
        rows = [passage(number, sizes) for number in part]
        columns = [list(part), [text for _, text in rows], [latents.data for latents, _ in rows]]
        arrays = [pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def delete(name: str, folder: Path, numbers: range) -> None:
    """Delete passages in one commit."""
    if name == "store":
        with writing(folder, "delete") as writer:
            for number in numbers:
                writer.delete_document(f"d{number}")
            writer.commit()
        return
    table = importlib.import_module("lance").dataset(str(folder)) if name == "lance" else None
    if table is None:
        from deltalake import DeltaTable

        table = DeltaTable(str(folder))
    table.delete(f"key >= {numbers.start} AND key < {numbers.stop}")


def create(name: str, folder: Path, sizes: Sizes) -> None:
    if name == "store":
        LatentStore.create(folder, Layout("bf16", "encoder", sizes.width, "made up", 16))


def contents(name: str, folder: Path) -> Iterator[tuple[int, Bytes, str]]:
    """Every passage that the newest version shows."""
    if name == "store":
        for row in LatentStore.open(folder).passages():
            number = int(row.passage.key.document_id[1:])
            yield number, row.encoded.reshape(-1), row.passage.text
        return
    if name == "lance":
        import lance

        table = lance.dataset(str(folder)).to_table()
    else:
        from deltalake import DeltaTable

        table = DeltaTable(str(folder)).to_pyarrow_table()
    latents = [_latents(scalar) for scalar in table["latents"]]
    yield from zip(table["key"].to_pylist(), latents, table["text"].to_pylist(), strict=True)


# Reading.


def read_trials(
    folder: Path, formats: list[str], sizes: Sizes, at_once: int, reads: int, seed: int
) -> tuple[list[dict[str, Any]], list[Reading]]:
    written, readings = [], []
    raw = folder / "raw"
    raw.mkdir()
    with (raw / "passages").open("wb") as out:
        for number in range(sizes.passages):
            latents, text = passage(number, sizes)
            out.write(latents.data)
            out.write(text.encode())
    for name in formats:
        started = time.perf_counter()
        path = folder / name
        create(name, path, sizes)
        append(name, path, range(sizes.passages), sizes)
        seconds = round(time.perf_counter() - started, 1)
        if name == "lance":
            import lance

            lance.dataset(str(path)).create_scalar_index("key", "BTREE")
        size = sum(file.stat().st_size for file in _files(path))
        written.append({"format": name, "mib": round(size / MIB), "seconds": seconds})
        for way in (way for way, of in WAYS.items() if of == name):
            click.echo(f"reading: {way}", err=True)
            trial = (way, path, raw / "passages", sizes, at_once, reads, seed)
            readings.append(in_a_process(read_trial, *trial))
        shutil.rmtree(path)
    shutil.rmtree(raw)
    return written, readings


def read_trial(
    way: str, folder: Path, raw: Path, sizes: Sizes, at_once: int, reads: int, seed: int
) -> Reading:
    """In a process of its own. Reads of the way and of the memory map take turns, on the same rows."""
    for path in [raw, *_files(folder)]:  # into the page cache
        with path.open("rb") as file:
            while file.read(MIB):
                pass
    started = time.perf_counter()
    importlib.import_module(MODULES.get(WAYS[way], "pyarrow"))
    imported = time.perf_counter()
    before = anonymous()
    read = open_to_read(way, folder, sizes)
    read([sizes.passages // 2])
    opened = time.perf_counter()
    open_mib = (anonymous() - before) / MIB

    chance = random.Random(seed)
    draws = [chance.sample(range(sizes.passages), at_once) for _ in range(reads + HELD)]
    mapped = np.memmap(raw, np.uint8, "r").reshape(sizes.passages, -1)

    def read_mapped(numbers: list[int]) -> Rows:
        rows = (mapped[number] for number in numbers)
        return [(row[: sizes.bytes], row[sizes.bytes :].tobytes().decode()) for row in rows]

    pool_share, anonymous_share = held_memory(read, draws[:HELD])
    if _digests(read(draws[0])) != _digests(read_mapped(draws[0])):
        raise ValueError(f"{way} does not give what was written.")
    out = np.ones((at_once, sizes.bytes), np.uint8)
    times = [(_time(read, rows, out), _time(read_mapped, rows, out)) for rows in draws[HELD:]]
    read_s, memmap_s = (statistics.median(column) for column in zip(*times, strict=True))
    return Reading(
        way=way,
        at_once=at_once,
        read_ms=round(read_s * 1e3, 2),
        memmap_ms=round(memmap_s * 1e3, 2),
        ratio=round(read_s / memmap_s, 2),
        pool_share=pool_share,
        anonymous_share=anonymous_share,
        import_ms=round((imported - started) * 1e3),
        open_ms=round((opened - imported) * 1e3, 1),
        open_mib=round(open_mib, 1),
    )


def held_memory(read: Read, draws: list[list[int]]) -> tuple[float, float]:
    """Bytes in pyarrow's pool and in anonymous memory for each byte of latents that is held."""
    time.sleep(1)  # What opening has read ahead may be freed only now.
    pool, before = pa.total_allocated_bytes(), anonymous()
    held = [latents for numbers in draws for latents, _ in read(numbers)]
    size = sum(latents.nbytes for latents in held)
    return (
        round((pa.total_allocated_bytes() - pool) / size, 2),
        round((anonymous() - before) / size, 2),
    )


def _time(read: Read, numbers: list[int], out: Bytes) -> float:
    """Seconds for reading passages and copying their latents out, as for a prompt."""
    started = time.perf_counter()
    for i, (latents, _) in enumerate(read(numbers)):
        out[i] = latents
    return time.perf_counter() - started


def _digests(rows: Rows) -> list[tuple[str, int]]:
    return sorted((text, zlib.crc32(latents.data)) for latents, text in rows)


def anonymous() -> int:
    """Bytes of the process that are not a mapped file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise click.ClickException("This system does not tell RssAnon in /proc/self/status.")
    return int(found[1]) * 1024


def open_to_read(way: str, folder: Path, sizes: Sizes) -> Read:
    columns = ["text", "latents"]
    if way == "memory map, by row":
        return _read_mapped_arrow(folder)
    if way == "LatentStore, by key":
        store = LatentStore.open(folder)

        def by_key(numbers: list[int]) -> Rows:
            found = store.read(PassageKey(f"d{number}", 0) for number in numbers)
            return [(row.encoded.reshape(-1), row.passage.text) for row in found]

        return by_key
    if way.startswith("pyarrow.dataset"):
        names = [entry.name for entry in LatentStore.open(folder).entries()]
        paths = [str(folder / "fragments" / name) for name in names]
        local = pa.fs.LocalFileSystem(use_mmap=True)
        arrow = ds.dataset(paths, format="ipc", filesystem=local)
        if way.endswith("take"):
            return lambda numbers: _rows(arrow.take(numbers, columns=columns))

        def by_hash(numbers: list[int]) -> Rows:
            hashes = [key_hash(PassageKey(f"d{number}", 0)) for number in numbers]
            wanted = ds.field("key_hash").isin(pa.array(hashes, pa.uint64()))
            return _rows(arrow.to_table(columns=columns, filter=wanted))

        return by_hash
    if way.startswith("Lance"):
        import lance

        dataset = lance.dataset(str(folder))
        if way.endswith("take"):
            return lambda numbers: _rows(dataset.take(numbers, columns=columns))
        return lambda n: _rows(dataset.to_table(columns=columns, filter=_in(n)))
    from deltalake import DeltaTable, QueryBuilder

    table = DeltaTable(str(folder))
    if "QueryBuilder" in way:
        query = QueryBuilder().register("passages", table)
        select = "SELECT text, latents FROM passages WHERE "
        return lambda n: _rows(pa.table(query.execute(select + _in(n)).read_all()))
    parquet = table.to_pyarrow_dataset()
    if way.endswith("take"):
        # Where a passage stands follows from no order of writing, so the keys are read once.
        keys = parquet.to_table(columns=["key"])["key"].to_numpy()
        order = np.argsort(keys)
        return lambda numbers: _rows(parquet.take(order[numbers], columns=columns))
    return lambda n: _rows(parquet.to_table(columns=columns, filter=ds.field("key").isin(n)))


def _read_mapped_arrow(folder: Path) -> Read:
    """What stands below the store: memory maps and slices, with no keys and no checksums."""
    batches, starts = [], [0]
    for entry in LatentStore.open(folder).entries():
        file = pa.ipc.open_file(pa.memory_map(str(folder / "fragments" / entry.name)))
        batches += [file.get_batch(i) for i in range(file.num_record_batches)]
    for batch in batches:
        starts.append(starts[-1] + batch.num_rows)

    def read(numbers: list[int]) -> Rows:
        rows = []
        for number in numbers:
            at = int(np.searchsorted(starts, number, "right")) - 1
            batch, row = batches[at], number - starts[at]
            rows.append((_latents(batch["latents"][row]), batch["text"][row].as_py()))
        return rows

    return read


def _in(numbers: list[int]) -> str:
    return f"key IN ({','.join(map(str, numbers))})"


def _rows(table: pa.Table) -> Rows:
    latents = [_latents(scalar) for scalar in table["latents"]]
    return list(zip(latents, table["text"].to_pylist(), strict=True))


def _latents(scalar: pa.Scalar) -> Bytes:
    """The bytes of a binary, or of a list of fixed-size binaries, without a copy."""
    if not isinstance(scalar, pa.LargeListScalar):
        return np.frombuffer(scalar.as_buffer(), np.uint8)
    values = scalar.values
    size = values.type.byte_width
    return np.frombuffer(values.buffers()[1], np.uint8, len(values) * size, values.offset * size)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Killed writers.


def crash_trial(folder: Path, name: str, sizes: Sizes, kills: int, seed: int) -> Crashes:
    click.echo(f"killing: {name}", err=True)
    path = folder / f"{name}-killed"
    create(name, path, sizes)
    chance = random.Random(seed)
    commits = unreadable = half = lost = leftovers = left = 0
    for _ in range(kills):
        done = killed(path, name, sizes, chance.uniform(0, 4))
        commits += len(done)
        try:
            batches = whole_batches(name, path, sizes)
        except Exception as error:  # each format raises others
            click.echo(f"{name} does not open: {error}", err=True)
            unreadable += 1
            break
        half += not all(batches.values())
        lost += not as_acknowledged(done, set(batches))
        before, left = left, len(unnamed_files(name, path))
        leftovers += left > before
    clean(name, path, everything=False)
    usual = len(unnamed_files(name, path))
    clean(name, path, everything=True)
    full = unnamed_files(name, path)
    shutil.rmtree(path)
    stays = sorted({re.sub(r"[0-9a-f]{3,}|\d{3,}", "…", file) for file in full})
    counts = (kills, commits, unreadable, half, lost, leftovers, left, usual, len(full))
    return Crashes(name, *counts, stays)


def killed(path: Path, name: str, sizes: Sizes, after: float) -> list[tuple[str, int]]:
    """What a writer acknowledged until it was killed, after its second commit and `after` times as long as
    that took."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=write_for_ever, args=(name, path, sizes, theirs))
    process.start()
    theirs.close()
    done = [ours.recv()]
    started = time.perf_counter()
    done.append(ours.recv())
    time.sleep(after * (time.perf_counter() - started))
    process.kill()
    process.join()
    while True:
        try:
            done.append(ours.recv())
        except EOFError:
            return done


def write_for_ever(name: str, path: Path, sizes: Sizes, said: Connection) -> None:
    """Adds batch after batch and keeps the newest three; says what is committed."""
    there = whole_batches(name, path, sizes) if any(path.glob("*")) else {}
    oldest, number = min(there, default=0), max(there, default=-1) + 1
    while True:
        append(name, path, range(number * BATCH, (number + 1) * BATCH), sizes)
        said.send(("added", number))
        if number - 2 > oldest:
            delete(name, path, range(oldest * BATCH, (number - 2) * BATCH))
            said.send(("deleted below", number - 2))
            oldest = number - 2
        number += 1


def whole_batches(name: str, path: Path, sizes: Sizes) -> dict[int, bool]:
    """The batches that are visible, and of each whether it is all there, with the right bytes."""
    right: dict[int, int] = {}
    for number, latents, text in contents(name, path):
        expected, expected_text = passage(number, sizes)
        same = text == expected_text and np.array_equal(latents, expected)
        right[number // BATCH] = right.get(number // BATCH, 0) + (1 if same else -BATCH)
    return {batch: count == BATCH for batch, count in right.items()}


def as_acknowledged(done: list[tuple[str, int]], visible: set[int]) -> bool:
    """What was added is there, unless a deletion may have been under way; what was deleted is not."""
    newest = max((number for what, number in done if what == "added"), default=0)
    first = min(number for _, number in done)
    deleted = max((number for what, number in done if what != "added"), default=0)
    kept = set(range(max(first, newest - 1), newest + 1))
    return kept <= visible and not any(batch < deleted for batch in visible)


def unnamed_files(name: str, path: Path) -> set[str]:
    """Files of the folder that hold something and that no version names."""
    if name == "store":
        found = {p.name for p in _files(path) if p.stat().st_size}
        named = {p.name for p in (path / "manifests").glob("*.json")}
        for manifest in (path / "manifests").glob("*.json"):
            store = LatentStore.open(path, int(manifest.stem))
            named |= {run_name(run.name) for run in store.manifest.keys}
            named |= {list_name(listed.name) for listed in store.manifest.lists}
            for entry in store.entries():
                named.add(entry.name)
                if entry.deletions is not None:
                    named.add(deletions_name(entry.deletions.file))
            store.close()
        return found - named
    files = {str(p.relative_to(path)) for p in _files(path) if p.stat().st_size}
    if name == "lance":
        import lance

        named = set()
        for version in lance.dataset(str(path)).versions():
            for fragment in lance.dataset(str(path), version=version["version"]).get_fragments():
                named |= {f"data/{file.path}" for file in fragment.data_files()}
                named.add(str(fragment.deletion_file()))
        commits = r"_versions/(\w+\.manifest|latest_version_hint\.json)|_transactions/.*\.txn"
    else:
        lines = [line for p in path.glob("_delta_log/*.json") for line in p.open()]
        actions = [json.loads(line) for line in lines]
        named = {action["add"]["path"] for action in actions if "add" in action}
        commits = r"_delta_log/(\d+\.json|\d+\.checkpoint\.parquet|_last_checkpoint)"
    return {file for file in files - named if not re.fullmatch(commits, file)}


def clean(name: str, path: Path, *, everything: bool) -> None:
    """Remove old versions and what belongs to none, however young; `everything` asks for more of it."""
    if name == "store":
        vacuum(path)
    elif name == "lance":
        import lance

        lance.dataset(str(path)).cleanup_old_versions(timedelta(0), delete_unverified=everything)
    else:
        from deltalake import DeltaTable

        DeltaTable(str(path)).vacuum(
            0, dry_run=False, enforce_retention_duration=False, full=everything
        )


# A version cleaned up under its reader.


def cleaning_trial(folder: Path, name: str, sizes: Sizes) -> list[dict[str, str]]:
    """For a reader that has only opened, and for one that has read a passage."""
    return [
        in_a_process(read_while_cleaning, folder / f"{name}-cleaned-{used}", name, sizes, used)
        for used in (False, True)
    ]


def read_while_cleaning(path: Path, name: str, sizes: Sizes, used: bool) -> dict[str, str]:
    create(name, path, sizes)
    for batch in range(4):
        append(name, path, range(batch * BATCH, (batch + 1) * BATCH), sizes)
    read = open_to_read(AFTER_CLEANING[name], path, sizes)
    if used:
        read([0])
    in_a_process(_delete_and_clean, name, path)
    try:
        same = _digests(read([BATCH, 2 * BATCH + 1])) == _digests(
            [passage(BATCH, sizes), passage(2 * BATCH + 1, sizes)]
        )
        outcome = "reads on" if same else "reads something else"
    except Exception as error:  # each format raises others
        said = str(error).splitlines()[0].replace(str(path).lstrip("/"), "…").partition(", /")[0]
        outcome = f"{type(error).__name__}: {said}"
    return {"format": name, "reader": "has read" if used else "has opened", "outcome": outcome}


def _delete_and_clean(name: str, path: Path) -> None:
    delete(name, path, range(3 * BATCH))
    clean(name, path, everything=True)


# One wrong byte.


def damage_trial(folder: Path, name: str, sizes: Sizes) -> dict[str, str]:
    path = folder / f"{name}-damaged"
    create(name, path, sizes)
    append(name, path, range(64), sizes)
    flip(path, passage(40, sizes)[0][1000:1064].tobytes())
    outcome = {"format": name}
    for way in (way for way, of in WAYS.items() if of == name and "index" not in way):
        outcome[way] = _noticed(partial(_read_one, way, path, sizes))
    if name == "store":
        outcome["SHA-256 in the manifest"] = _noticed(lambda: _check_sha256(path))
    elif name == "lance":
        import lance

        outcome["validate()"] = _noticed(lance.dataset(str(path)).validate)
    else:
        (file,) = path.glob("*.parquet")
        outcome["Parquet page checksums"] = _noticed(
            lambda: pa.parquet.read_table(file, page_checksum_verification=True)
        )
    return outcome


def flip(path: Path, wanted: bytes) -> None:
    """Change one bit where these bytes are found."""
    for file in _files(path):
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
            if (at := mapped.find(wanted)) >= 0:
                mapped[at] ^= 1
                return
    raise ValueError(f"The latents do not lie as they are in any file of {path}.")


def _read_one(way: str, path: Path, sizes: Sizes) -> None:
    open_to_read(way, path, sizes)([40])


def _check_sha256(path: Path) -> None:
    for entry in LatentStore.open(path).entries():
        with (path / "fragments" / entry.name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise ValueError(f"Fragment {entry.name} is damaged.")


def _noticed(check: Callable[[], Any]) -> str:
    try:
        check()
    except Exception as error:  # each format raises others
        return f"noticed ({type(error).__name__})"
    return "not noticed"


# The installation.


def added(package: str) -> dict[str, Any]:
    """What a package brings beyond pyarrow and numpy, and beyond what this library needs anyway."""
    brought = distributions(package)
    beyond_arrow = brought - distributions("pyarrow") - distributions("numpy")
    beyond_ours = beyond_arrow - distributions("lclm-rag")
    return {
        "package": package,
        "mib": round(sum(map(installed_bytes, beyond_arrow)) / MIB),
        "distributions": sorted(beyond_arrow),
        "mib_beyond_lclm_rag": round(sum(map(installed_bytes, beyond_ours)) / MIB),
        "distributions_beyond_lclm_rag": sorted(beyond_ours),
    }


def distributions(package: str) -> set[str]:
    """A package and all that it requires, without extras."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found.add(name)
            wanted = map(Requirement, metadata.requires(name) or [])
            waiting += [r.name for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


def installed_bytes(package: str) -> int:
    files = [Path(str(file.locate())) for file in metadata.files(package) or []]
    return sum(file.stat().st_size for file in files if file.is_file())


# What is shown.


def show(about: dict[str, Any], readings: list[Reading]) -> None:
    console = Console()
    console.print(
        _table(
            f"{readings[0].at_once} random passages of {about['passages']:,}, warm page cache",
            [asdict(reading) for reading in readings],
        )
    )
    for title, key in (
        ("Written", "written"),
        ("Killed writers", "crashes"),
        ("Old versions removed under an open reader", "cleaned_under_a_reader"),
    ):
        console.print(_table(title, about[key]))
    for row in about["one_wrong_byte"]:
        console.print(_table("One wrong byte in the latents", [row]))
    for row in about["installation"]:
        console.print(
            f"{row['package']} adds {row['mib']} MiB, {len(row['distributions'])} distributions "
            f"beyond numpy and pyarrow; {row['mib_beyond_lclm_rag']} MiB, "
            f"{len(row['distributions_beyond_lclm_rag'])} beyond what lclm-rag needs."
        )


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


if __name__ == "__main__":
    main()
