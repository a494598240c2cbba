"""Latents in Arrow files: fragments, manifests, and the store built on both."""

from lclm_rag.store.codecs import CODECS, CodecName, Encoding
from lclm_rag.store.fragment import Layout, StoredPassage, decode_latents
from lclm_rag.store.maintenance import Vacuumed, compact, convert, vacuum
from lclm_rag.store.manifest import Manifest, Operation, Totals
from lclm_rag.store.store import LatentStore, newest_version, read_versions
from lclm_rag.store.writer import StoreWriter, writing

__all__ = [
    "CODECS",
    "CodecName",
    "Encoding",
    "LatentStore",
    "Layout",
    "Manifest",
    "Operation",
    "StoreWriter",
    "StoredPassage",
    "Totals",
    "Vacuumed",
    "compact",
    "convert",
    "decode_latents",
    "newest_version",
    "read_versions",
    "vacuum",
    "writing",
]
