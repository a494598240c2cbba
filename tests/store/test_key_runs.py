"""Key runs: every key is found where its passage lies, however the runs came about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lclm_rag import DamagedError, PassageKey
from lclm_rag.storage import LocalFolder
from lclm_rag.store import LatentStore, compact
from lclm_rag.store import fragment as fragments
from lclm_rag.store import store as stores
from lclm_rag.store.keys import KeyRun, SortedKeys, merge_with, merged, write_run
from support.rows import LAYOUT, add, row


def random_records(rows: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 2**64 - 1, (rows, 2), np.uint64)


def run_of(folder: Path, records: np.ndarray) -> KeyRun:
    entry = write_run(LocalFolder(folder), [SortedKeys(records).records(0, len(records))], [])
    assert entry is not None
    assert (folder / f"{entry.name}.run").stat().st_size == entry.bytes
    return KeyRun(LocalFolder(folder), entry)


# --- looking up -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 254, 255, 256, 3 * 255, 20_000])
def test_each_record_is_found_and_nothing_else(tmp_path: Path, rows: int) -> None:
    records = random_records(rows)
    run = run_of(tmp_path, records)
    for hash_, place in records.tolist()[:: max(1, rows // 500)]:
        assert list(run.find(hash_)) == [(place >> 32, place & 0xFFFFFFFF)]
        assert list(run.find(hash_ ^ 1)) == []
    assert list(run.find(0)) == list(run.find(2**64 - 1)) == []
    assert run.position(0) == 0
    assert np.array_equal(run.records(0, rows), records[np.argsort(records[:, 0])])


def test_many_records_of_one_hash_are_all_found_across_blocks(tmp_path: Path) -> None:
    records = random_records(2_000)
    records[300:1_200, 0] = 2**63
    run = run_of(tmp_path, records)
    places = {(int(place) >> 32, int(place) & 0xFFFFFFFF) for place in records[300:1_200, 1]}
    assert set(run.find(2**63)) == places


def test_hashes_that_are_not_spread_are_found_too(tmp_path: Path) -> None:
    records = random_records(10_000)
    records[:, 0] = np.arange(10_000)  # Where interpolation would go on for ever.
    records[-1, 0] = 2**64 - 1
    run = run_of(tmp_path, records)
    assert [len(list(run.find(at))) for at in range(0, 9_999, 97)] == [1] * 104


def test_two_keys_with_one_hash_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fragments, stores):
        monkeypatch.setattr(module, "key_hash", lambda key: 7)
    LatentStore.create(tmp_path, LAYOUT)
    add(tmp_path, *(row(f"d{i}", f"text {i}") for i in range(5))).close()
    store = add(tmp_path, row("d3", "another"))
    texts = {f"d{i}": f"text {i}" for i in range(5)} | {"d3": "another"}
    for name, text in texts.items():
        assert store.read([PassageKey(name, 0)])[0].passage.text == text
    assert PassageKey("d9", 0) not in store


@pytest.mark.parametrize("at", [3, 8, 100, 4095, 4096 + 20])
def test_a_wrong_bit_is_an_error_and_not_a_missing_passage(tmp_path: Path, at: int) -> None:
    records = random_records(400)
    run = run_of(tmp_path, records)
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"keys of the store are damaged .*verify --repair"):
        [list(run.find(hash_)) for hash_ in records[:, 0].tolist()]
    path.write_bytes(data[:-1])
    with pytest.raises(DamagedError, match="it has 8,191 bytes, not 8,192"):
        KeyRun(LocalFolder(tmp_path), run.entry)
    path.unlink()
    with pytest.raises(DamagedError, match="it is not there"):
        KeyRun(LocalFolder(tmp_path), run.entry)


# --- merging --------------------------------------------------------------------------------------


def test_what_is_merged_is_what_the_runs_held_but_for_what_is_left_out(tmp_path: Path) -> None:
    parts = [random_records(rows, rows) for rows in (5_000, 300, 1)]
    runs = [run_of(tmp_path, parts[0]), run_of(tmp_path, parts[1]), SortedKeys(parts[2])]
    found = np.concatenate(list(merged(runs, lambda places: places % np.uint64(3) != 0)))
    expected = np.concatenate(parts)
    expected = expected[expected[:, 1] % np.uint64(3) != 0]
    assert np.array_equal(found, expected[np.argsort(expected[:, 0])])


def test_a_load_of_ten_million_in_a_thousand_commits_writes_each_key_four_times_at_most() -> None:
    sizes: list[int] = []
    written = 0
    for _ in range(1_000):
        chosen = merge_with(sizes, 10_000)
        merged_rows = 10_000 + sum(sizes[at] for at in chosen)
        sizes = [rows for at, rows in enumerate(sizes) if at not in chosen] + [merged_rows]
        written += merged_rows
        for tier in range(8):
            alike = [rows for rows in sizes if 4096 * 10**tier <= rows < 4096 * 10 ** (tier + 1)]
            assert len(alike) <= 10
    assert written <= 4 * 10_000_000
    for _ in range(100):  # Single documents make one small run.
        chosen = merge_with(sizes, 1)
        assert sum(sizes[at] for at in chosen) < 4096
        small = 1 + sum(sizes[at] for at in chosen)
        sizes = [rows for at, rows in enumerate(sizes) if at not in chosen] + [small]
    assert sizes[-1] == 100


def test_runs_stay_few_and_find_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lclm_rag.store import keys, next_version

    monkeypatch.setattr(keys, "_SMALL", 2)
    monkeypatch.setattr(keys, "_TIER", 3)
    monkeypatch.setattr(next_version, "_ROWS_AT_ONCE", 4)
    LatentStore.create(tmp_path, LAYOUT)
    texts: dict[str, str] = {}
    for edition in range(12):
        new = {f"d{(3 * edition + i) % 17}": f"{edition}" for i in range(5)}
        texts |= new
        store = add(tmp_path, *(row(name, text) for name, text in new.items()))
        assert len(store.manifest.keys) <= 6
        found = store.read(PassageKey(name, 0) for name in texts)
        assert [each.passage.text for each in found] == list(texts.values())
        store.close()
    store = compact(tmp_path)
    assert [run.rows for run in store.manifest.keys] == [17]
    found = store.read(PassageKey(name, 0) for name in texts)
    assert [each.passage.text for each in found] == list(texts.values())
