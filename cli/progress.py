"""Progress bars, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.text import Text

from lclm_rag.cli.formatting import visible

if TYPE_CHECKING:
    from lclm_rag.knowledge_base import KnowledgeBase
    from lclm_rag.types import Document

__all__ = ["add_with_progress", "counting_bar", "progress_bar", "stderr", "stdout"]


class _Console(Console):
    """A console to which a text is only text: no control characters, and no markup unless it is asked for."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Before widths are measured."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Whatever else is to be drawn; rich's own controls are segments of their own."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else visible(segment.text)
            yield segment._replace(text=text)


stderr = _Console(stderr=True)
stdout = _Console()


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Bars that show count, share, time spent, time left, and a note (the task field `note`)."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
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
