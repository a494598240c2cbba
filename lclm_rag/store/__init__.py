"""Latents ⇄ Arrow files: fragments, manifest, and the store over both."""

from lclm_rag.store.codecs import CODECS, CodecName
from lclm_rag.store.fragment import Layout, StoredPassage
from lclm_rag.store.store import LatentStore, StoreWriter

__all__ = ["CODECS", "CodecName", "LatentStore", "Layout", "StoreWriter", "StoredPassage"]
