"""Latents that need not be computed again: those committed, and those that killed writers had finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from lclm_rag.errors import DamagedError
from lclm_rag.store.fragment import StoredPassage
from lclm_rag.store.lists import FragmentEntry
from lclm_rag.store.store import LatentStore, Place
from lclm_rag.types import PassageKey

__all__ = ["Compressed"]


class Compressed:
    """Passages that are compressed already, in a version and in uncommitted fragments.

    `uncommitted` is a view of the uncommitted fragments, as if they made up a version.

    Args:
        base: The version.
        uncommitted: Fragments that no version names. Damaged ones are left out.
    """

    def __init__(self, base: LatentStore, uncommitted: Sequence[FragmentEntry]) -> None:
        self.base = base
        sound = tuple(_sound(base, uncommitted))
        self.uncommitted = LatentStore.of(base, sound)
        self._uncommitted_names = {entry.name for entry in sound}

    def finished(self, document_id: str, document_hash: bytes) -> list[Place]:
        """The uncommitted places of the passages of a document, in order.

        Only keys, hashes and flags are looked at, not texts or latents: a fragment got its note after it was
        whole on disk, and `verify` finds what is damaged later, as in any other fragment.

        Args:
            document_id: The document's id.
            document_hash: The hash of the content that the passages must come from.

        Returns:
            The places of all of the document's passages, or none if one is missing.
        """
        places: list[Place] = []
        while True:
            found = self._uncommitted_row(PassageKey(document_id, len(places)), document_hash)
            if found is None:
                return []
            places.append(found)
            if self.uncommitted.fragment(found[0]).is_last(found[1]):
                return places

    def passages(self, document_id: str) -> dict[str, Place]:
        """The places of a document's stored passages, whatever its content was then, by their content.

        Latents are not looked at; `read` does that.
        """
        known: dict[str, Place] = {}
        stores = [(self.base, self.base.places), (self.uncommitted, self._uncommitted_places)]
        for store, places in stores:
            ordinal = 0
            while found := list(places(PassageKey(document_id, ordinal))):
                for name, row in found:
                    # A damaged passage is left out, and so compressed again.
                    with suppress(DamagedError):
                        known[store.fragment(name).passage(row).content] = name, row
                ordinal += 1
        return known

    def read(self, place: Place) -> StoredPassage | None:
        """Read a passage that `passages` has found.

        Args:
            place: Its place.

        Returns:
            The passage with its latents; None if it is damaged.
        """
        name, row = place
        store = self.uncommitted if name in self._uncommitted_names else self.base
        with suppress(DamagedError):
            return store.fragment(name).read(row)
        return None

    def _uncommitted_row(self, key: PassageKey, document_hash: bytes) -> Place | None:
        """The place of a finished passage of a document with this hash; None if there is none."""
        for name, row in self._uncommitted_places(key):
            with suppress(DamagedError):  # Left out, and so compressed again.
                if self.uncommitted.fragment(name).document_hash(row) == document_hash:
                    return name, row
        return None

    def _uncommitted_places(self, key: PassageKey) -> Iterator[Place]:
        if self._uncommitted_names:
            with suppress(DamagedError):  # Left out, and so compressed again.
                yield from self.uncommitted.places(key)


def _sound(store: LatentStore, entries: Sequence[FragmentEntry]) -> list[FragmentEntry]:
    """The fragments whose passages can be looked up. Others cost only time: they are compressed again."""
    try:
        store.key_hashes(entries)  # All at once, because each may be a request to an object store.
    except DamagedError:
        return [entry for entry in entries if _is_sound(store, entry)]
    return list(entries)


def _is_sound(store: LatentStore, entry: FragmentEntry) -> bool:
    try:
        store.key_hashes([entry])
    except DamagedError:
        return False
    return True
