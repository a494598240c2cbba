"""Find out which document a worker was working on when it died, and let the next try repeat what counts.

A worker that a document kills (a crash in native code, lack of memory) cannot report it, and Ray can only
start the task again. So each task keeps a note while it runs, in an actor beside the driver. A task that
finds its own note knows that an earlier try died, and near which document. There it goes document by
document, notes each one first, and does not try a document again at which workers died twice.

Ray keeps the tables that a dead reader has handed over and skips as many in the next try. So a later try must
hand over the same rows at first: a document is given up only from a row on that no try has handed over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.ingestion.ray.faults import FURTHER_TRIES

__all__ = ["DEATHS", "Attempts", "Note", "Notes"]

DEATHS = 2
"""Deaths at one document before it is given up. A single one may be due to a machine that went away."""


@dataclass
class Note:
    """What is known of the tries of one task.

    Attributes:
        tries: The tries begun.
        at: The document that the current try is working on, if it has noted that.
        reached: The number of the document that the current try has come to, about.
        places: What `reached` was at each death.
        handed_over: The most rows that any try has handed over.
        deaths: The deaths at each document.
        given_up: The documents given up, each with the first row that is left out.
    """

    tries: int = 0
    at: str | None = None
    reached: int = 0
    places: set[int] = field(default_factory=set)
    handed_over: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    given_up: dict[str, int] = field(default_factory=dict)


class Notes:
    """The notes of all tasks of a run: a Ray actor, which ends with the run.

    If it is killed itself, Ray starts another one, which goes on with new notes.
    """

    def __init__(self) -> None:
        self._notes: defaultdict[str, Note] = defaultdict(Note)

    def begin(self, task: str) -> Note:
        """Begin a try of a task; if an earlier one has not ended, it died."""
        note = self._notes[task]
        if note.tries:
            note.places.add(note.reached)
            if note.at is not None:
                note.deaths[note.at] += 1
        note.tries += 1
        note.at, note.reached = None, 0
        return note

    def at(self, task: str, document_id: str | None) -> None:
        """Note the document that a task is working on."""
        self._notes[task].at = document_id

    def reach(self, task: str, document: int) -> None:
        """Note which document a task has come to, by its number."""
        self._notes[task].reached = document

    def hand_over(self, task: str, rows: int) -> None:
        """Note that a task is about to hand over rows, so many of them since its beginning."""
        note = self._notes[task]
        note.handed_over = max(note.handed_over, rows)

    def give_up(self, task: str, document_id: str, row: int) -> None:
        """Note that from this row on a document is left out."""
        self._notes[task].given_up[document_id] = row

    def done(self, task: str, forget: bool) -> None:
        """Note that a task has ended.

        Args:
            task: The task.
            forget: Whether to remove the note. Readers' notes stay, because Ray repeats a reader whose tables
                are lost with a machine.
        """
        if forget:
            self._notes.pop(task, None)
        else:
            self._notes[task].tries = 0


class Attempts:
    """One try of a task.

    Attributes:
        careful: Whether an earlier try died near here, so that documents are noted one by one.
        tries: The tries of the task, with this one, but without those that died at a document they had noted.

    Args:
        notes: The actor with the notes.
        task: The task's name, which is the same for each try.
        step: The number of documents after which a note says how far the task has come. None if it works on
            all of them at once.

    Raises:
        KnowledgeBaseError: When workers died at the task again and again, and no document explains that.
    """

    def __init__(self, notes: Any, task: str, step: int | None = None) -> None:
        self._notes = notes
        self._task = task
        self._step = step
        self._documents = 0
        self._note: Note = self._ask("begin")
        self.careful = 0 in self._note.places
        self.tries = self._note.tries - sum(self._note.deaths.values())
        if self.tries > FURTHER_TRIES + 1:
            raise KnowledgeBaseError(
                f"Workers died {self.tries - 1} times while they were at {task}: nothing was committed. "
                "Leave that out, or see in Ray's logs what killed them."
            )

    def gives_up(self, document_id: str, row: int = 0) -> bool:
        """Whether nothing of this document is handed over from this row on.

        Args:
            document_id: The document.
            row: The number of the task's next row.
        """
        first = self._note.given_up.get(document_id)
        if first is None:
            # Rows that a try has handed over cannot be taken back, so they are made again.
            if self._note.deaths[document_id] < DEATHS or row < self._note.handed_over:
                return False
            self._note.given_up[document_id] = first = row
            self._ask("give_up", document_id, row)
        return row >= first

    @contextmanager
    def at(self, document_id: str) -> Iterator[None]:
        """Note, if an earlier try died near here, that the task is at this document within the context."""
        if self._step and self._documents % self._step == 0:
            self.careful = self._documents in self._note.places
            self._ask("reach", self._documents)
        self._documents += 1
        if self.careful:
            self._ask("at", document_id)
        try:
            yield
        finally:
            if self.careful:
                self._ask("at", None)

    def hand_over(self, rows: int) -> None:
        """Note that a table is about to be handed over. Call it before that, because Ray may take it at once.

        Args:
            rows: The rows since the task's beginning, with those of this table.
        """
        self._ask("hand_over", rows)

    def done(self, *, forget: bool) -> None:
        """Note that the task has ended; see `Notes.done`."""
        self._ask("done", forget)

    def _ask(self, method: str, *values: Any) -> Any:
        import ray

        return ray.get(getattr(self._notes, method).remote(self._task, *values))
