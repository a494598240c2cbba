"""Find out which document a worker was working on when it died.

A worker that a document kills (a crash in native code, lack of memory) cannot report it, and Ray can only
start the task again. So each task keeps a note while it runs. A task that finds its own note knows that an
earlier try died. It then works document by document, notes each one first, and does not try a document again
at which workers died twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lclm_rag.storage import Folder
from lclm_rag.store.store import UNCOMMITTED

__all__ = ["DEATHS", "Attempts", "forget_attempts", "suspects"]

DEATHS = 2
"""Deaths at one document before it is given up. A single one may be due to a machine that went away."""

_SUFFIX = ".attempt"


class Attempts:
    """The note of one task, which counts its tries and the deaths at each document.

    Args:
        folder: The store's folder.
        name: The task's name, which is the same for each try.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder / UNCOMMITTED
        self._name = f"{name}{_SUFFIX}"
        try:
            found = json.loads(self._folder.read(self._name))
            self.careful = True
        except (FileNotFoundError, ValueError):
            found = {"at": None, "deaths": {}, "tries": 0}
            self.careful = False
        self._deaths: Counter[str] = Counter(found["deaths"])
        self._tries: int = found["tries"] + 1
        if found["at"] is not None:
            self._deaths[found["at"]] += 1
        self._note(None)

    def deadly(self, document_id: str) -> bool:
        """Whether too many workers died at this document to try it again."""
        return self._deaths[document_id] >= DEATHS

    @contextmanager
    def at(self, document_id: str) -> Iterator[None]:
        """Note, after a death, that the task is working on this document while the context lasts."""
        if self.careful:
            self._note(document_id)
        yield
        if self.careful:
            self._note(None)

    def done(self) -> None:
        """Remove the note: the task has ended."""
        self._folder.remove(self._name)

    def _note(self, at: str | None) -> None:
        note = {"at": at, "deaths": self._deaths, "tries": self._tries}
        self._folder.replace(self._name, json.dumps(note).encode())


def forget_attempts(folder: Folder) -> None:
    """Remove all notes when a run begins: what killed the workers of an earlier run may be gone."""
    for facts in (folder / UNCOMMITTED).files():
        if facts.name.endswith(_SUFFIX):
            (folder / UNCOMMITTED).remove(facts.name)


def suspects(folder: Folder) -> list[str]:
    """The documents at which workers died, of tasks that never ended.

    Args:
        folder: The store's folder.

    Returns:
        The documents' ids, sorted; in place of them the task's name, if no document was noted for it.
    """
    found = set()
    for facts in (folder / UNCOMMITTED).files():
        if facts.name.endswith(_SUFFIX):
            note = json.loads((folder / UNCOMMITTED).read(facts.name))
            if note["tries"] > DEATHS:
                found |= {*note["deaths"]} or {facts.name.removesuffix(_SUFFIX)}
    return sorted(found)
