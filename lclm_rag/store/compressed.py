"""What need not be compressed again: what is committed, and what killed writers had finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from lclm_rag.errors import DamagedError
from lclm_rag.store.fragment import StoredPassage
from lclm_rag.store.manifest import FragmentEntry
from lclm_rag.store.store import LatentStore, Place
from lclm_rag.types import PassageKey

__all__ = ["Compressed"]


class Compressed:
    """base: a version. uncommitted: fragments on top of it that no version names, as if they were one."""

    def __init__(self, base: LatentStore, uncommitted: Sequence[FragmentEntry]) -> None:
        self.base = base
        sound = tuple(entry for entry in uncommitted if _is_sound(base, entry))
        self.uncommitted = LatentStore(base.folder, replace(base.manifest, fragments=sound))

    def finished(self, document_id: str, document_hash: bytes) -> list[Place]:
        """Where in `uncommitted` the passages of this version of a document are: all of them, or none."""
        places: list[Place] = []
        while True:
            found = self._uncommitted_row(PassageKey(document_id, len(places)), document_hash)
            if found is None:
                return []
            places.append(found)
            if self.uncommitted.fragment(found[0]).is_last(found[1]):
                return places

    def passages(self, document_id: str) -> dict[str, StoredPassage]:
        """The passages of any version of a document, by their content."""
        known: dict[str, StoredPassage] = {}
        stores = [(self.base, self.base.places), (self.uncommitted, self._uncommitted_places)]
        for store, places in stores:
            ordinal = 0
            while found := list(places(PassageKey(document_id, ordinal))):
                for name, row in found:
                    # A damaged one is compressed anew.
                    with suppress(DamagedError):
                        passage = store.fragment(name).read(row)
                        known[passage.passage.content] = passage
                ordinal += 1
        return known

    def _uncommitted_row(self, key: PassageKey, document_hash: bytes) -> Place | None:
        """A finished and sound passage of this version of its document; None where there is none."""
        for name, row in self._uncommitted_places(key):
            with suppress(DamagedError):  # Then it is compressed anew.
                if self.uncommitted.fragment(name).read(row).document_hash == document_hash:
                    return name, row
        return None

    def _uncommitted_places(self, key: PassageKey) -> Iterator[Place]:
        if self.uncommitted.manifest.fragments:
            with suppress(DamagedError):  # Then it is compressed anew.
                yield from self.uncommitted.places(key)


def _is_sound(store: LatentStore, entry: FragmentEntry) -> bool:
    """Whether its passages can be looked up."""
    try:
        store.key_hashes([entry])
    except DamagedError:
        return False  # Nobody's loss but time.
    return True
