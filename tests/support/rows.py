"""Rows of a store that need no encoder: each is a document of one passage."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lclm_rag import Document, Passage, PassageKey
from lclm_rag.storage import Folder
from lclm_rag.store import LatentStore, Layout, StoredPassage, writing

__all__ = ["LAYOUT", "add", "row", "texts"]

LAYOUT = Layout("bf16", "encoder", 8, "f" * 16, 4)


def row(document_id: str, text: str = "x") -> StoredPassage:
    encoded = np.zeros((2, LAYOUT.latent_bytes), np.uint8)
    passage = Passage(PassageKey(document_id, 0), 0, len(text), text, {})
    digest = Document(document_id, text).content_hash()
    return StoredPassage(passage, 8, digest, True, encoded, LAYOUT)


def add(
    location: str | Path | Folder, *rows: StoredPassage, resumable: bool = False
) -> LatentStore:
    """One commit, with one fragment."""
    with writing(location, "add", resumable=resumable) as writer:
        for each in rows:
            writer.delete_document(each.passage.key.document_id)
            writer.add(each)
        return writer.commit()


def texts(store: LatentStore) -> dict[str, str]:
    """The texts of all documents, by way of their keys."""
    keys = sorted(passage.key for passage in store.texts())
    return {each.passage.key.document_id: each.passage.text for each in store.read(keys)}
