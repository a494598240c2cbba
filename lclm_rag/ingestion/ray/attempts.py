"""Which document a worker was at when it died.

A worker that is killed by what it works on (a crash in native code, memory) says nothing, and what started it
can only start it again. So each task leaves a note while it is under way. A task that finds its own note was
begun before, by a worker that died: then it goes document by document and notes each, and a document at which
workers died twice is not tried again.
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
"""At one document, before it is given up: one alone may be a machine's that went away."""

_SUFFIX = ".attempt"


class Attempts:
    """The note of one task. folder: of the store. name: of the task, the same each time it is tried."""

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
        """Whether it is not to be tried again."""
        return self._deaths[document_id] >= DEATHS

    @contextmanager
    def at(self, document_id: str) -> Iterator[None]:
        """While it is being worked on."""
        if self.careful:
            self._note(document_id)
        yield
        if self.careful:
            self._note(None)

    def done(self) -> None:
        self._folder.remove(self._name)

    def _note(self, at: str | None) -> None:
        note = {"at": at, "deaths": self._deaths, "tries": self._tries}
        self._folder.replace(self._name, json.dumps(note).encode())


def forget_attempts(folder: Folder) -> None:
    """For a run that begins: what killed the workers of another may be gone."""
    for facts in (folder / UNCOMMITTED).files():
        if facts.name.endswith(_SUFFIX):
            (folder / UNCOMMITTED).remove(facts.name)


def suspects(folder: Folder) -> list[str]:
    """The documents at which workers died whose tasks never ended; the task, where it was at none."""
    found = set()
    for facts in (folder / UNCOMMITTED).files():
        if facts.name.endswith(_SUFFIX):
            note = json.loads((folder / UNCOMMITTED).read(facts.name))
            if note["tries"] > DEATHS:
                found |= {*note["deaths"]} or {facts.name.removesuffix(_SUFFIX)}
    return sorted(found)
