"""What the driver of a Ray run does with documents that are left out: it looks at their fragments only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lclm_rag.ingestion.ray.reports import DocumentRows, NotWritten, RunTotals, ShardReport
from lclm_rag.ingestion.ray.work_rows import Source
from lclm_rag.store import LatentStore, Layout, StoredPassage, StoreWriter, Totals, writing
from lclm_rag.store.manifest import pack_entry
from lclm_rag.store.writer import write_uncommitted
from lclm_rag.types import Passage, PassageKey

LAYOUT = Layout("bf16", "encoder", 8, "f" * 16, 4)
LONG = Source(0, 7)


def fragment(writer: StoreWriter, source: Source, first: int, *, ended: bool) -> ShardReport:
    """A report on a fragment with two passages of one document."""
    name = f"d{source.number}"
    rows = [
        StoredPassage(
            Passage(PassageKey(name, first + i), i, i + 1, "x", {}),
            8,
            name.encode().ljust(32),
            ended and i == 1,
            np.zeros((2, LAYOUT.latent_bytes), np.uint8),
            LAYOUT,
        )
        for i in range(2)
    ]
    entry = pack_entry(write_uncommitted(writer.base.folder, rows, noted=True))
    written = DocumentRows(source, name, False, 0, 2, first, ended)
    return ShardReport(
        "host:1", entry=entry, written=[written], totals=Totals(int(first == 0), 2, 16, 4)
    )


def test_only_the_fragments_of_a_document_that_is_left_out_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_fragment = LatentStore.fragment

    def counted(self: LatentStore, name: str) -> object:
        opened.append(name)
        return open_fragment(self, name)

    LatentStore.create(tmp_path, LAYOUT)
    with writing(tmp_path, "add", resumable=True) as writer:
        totals = RunTotals(
            writer, skip=True, on_ignore=lambda m: None, on_document=lambda name: None
        )
        # A document whose first passages were written before its fifth could not be.
        pieces = [fragment(writer, LONG, first, ended=False) for first in (0, 2)]
        duplicate = fragment(writer, Source(1, 3), 0, ended=True)
        monkeypatch.setattr(LatentStore, "fragment", counted)
        for report in pieces:
            totals.take(report)
        for number in range(5):
            totals.take(fragment(writer, Source(0, number), 0, ended=True))
        assert opened == []
        totals.take(duplicate)
        assert set(opened) == {str(duplicate.entry and duplicate.entry["name"])}
        opened.clear()
        problem = NotWritten("problem", LONG, "d7", "", False, "d7: it cannot be compressed.")
        totals.take(ShardReport("host:2", not_written=[problem]))
        monkeypatch.setattr(totals._handovers, "check", lambda parts: None)
        report = totals.finish(1)
        assert set(opened) == {str(piece.entry and piece.entry["name"]) for piece in pieces}
        store = writer.commit()
    assert (report.added, report.passages) == (5, 10)
    assert report.skipped == (
        "d3: another document has the same id; ids must be unique.",
        "d7: it cannot be compressed.",
    )
    assert (len(store), store.count_documents()) == (10, 5)
    ids = {found.passage.key.document_id for found in store.passages()}
    assert ids == {"d0", "d1", "d2", "d3", "d4"}
