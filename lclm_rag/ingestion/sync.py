"""What a corpus no longer has."""

from __future__ import annotations

from array import array

import numpy as np

from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.store import LatentStore, StoreWriter
from lclm_rag.store.fragment import key_hash
from lclm_rag.types import PassageKey

__all__ = ["MissingFromCorpus"]


class MissingFromCorpus:
    """The documents of a store that are not among those noted; 8 bytes of memory for each noted."""

    def __init__(self, store: LatentStore) -> None:
        self._store = store
        self._noted = array("Q")

    def note(self, document_id: str) -> None:
        self._noted.append(key_hash(PassageKey(document_id, 0)))

    def delete(self, writer: StoreWriter) -> int:
        """Delete all that were not noted; returns how many documents.

        Raises KnowledgeBaseError where that would leave nothing of what was there.
        """
        ids = list(self._store.document_ids(except_hashes=np.array(self._noted, np.uint64)))
        if ids and len(ids) == self._store.count_documents():
            raise KnowledgeBaseError(
                f"None of the {len(ids):,} documents in {self._store.folder} is in this corpus, so all of "
                "them would be deleted: is it another corpus? Delete them by id or filter, or build anew."
            )
        for document_id in ids:
            writer.delete_document(document_id)
        return len(ids)
