"""Progress bars, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.types import Document

__all__ = ["add_with_progress", "counting_bar", "progress_bar", "stderr", "stdout"]

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Bars that show count, share, time spent, time left, and a note (the task field `note`)."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
    ) as progress:
        yield progress


def add_with_progress(knowledge_base: KnowledgeBase, documents: Sequence[Document]) -> None:
    """`KnowledgeBase.add` with a progress bar, for documents in memory."""
    with progress_bar() as progress:
        task = progress.add_task("compressing", total=len(documents), note="")
        report = knowledge_base.add(
            documents,
            on_progress=lambda r: progress.update(
                task, completed=r.added + r.updated + r.unchanged, note=f"{r.latents:,} latents"
            ),
        )
        note = f"{report.latents:,} latents"
        if report.unchanged:
            note += f", {report.unchanged} documents were there already"
        progress.update(task, completed=len(documents), note=note)


@contextmanager
def counting_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, updated by calling the yielded function with (done, total)."""
    with progress_bar() as progress:
        task = progress.add_task(description, total=None, note="")
        yield lambda done, total: progress.update(task, completed=done, total=total)
