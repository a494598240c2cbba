"""Find and delete the documents that a corpus no longer has."""

from __future__ import annotations

from array import array

import numpy as np

from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.store import LatentStore, StoreWriter
from lclm_rag.store.fragment import key_hash
from lclm_rag.types import PassageKey

__all__ = ["MissingFromCorpus"]


class MissingFromCorpus:
    """The documents of a store that a corpus no longer has.

    Every document of the corpus is noted, which takes 8 bytes of memory each.

    Args:
        store: The store, as it was before the corpus was added.
    """

    def __init__(self, store: LatentStore) -> None:
        self._store = store
        self._noted = array("Q")

    def note(self, document_id: str) -> None:
        """Note that the corpus has this document."""
        self._noted.append(key_hash(PassageKey(document_id, 0)))

    def delete(self, writer: StoreWriter) -> int:
        """Delete all documents of the store that were not noted.

        Args:
            writer: The writer of the same store. The caller commits it.

        Returns:
            The number of documents deleted.

        Raises:
            KnowledgeBaseError: When this would delete all documents that the store had.
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
