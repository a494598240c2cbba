"""Whom a knowledge base makes its readers contact: `kb.json` decides, and it may be somebody else's."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path

from lclm_rag.cache import writable_cache
from lclm_rag.checkpoint import OWN
from lclm_rag.config import Settings
from lclm_rag.hub import is_hub_id
from lclm_rag.offline import OFFLINE, is_offline
from lclm_rag.retrieval.embedders import GIVEN

__all__ = ["announce_remotes", "remember_remotes"]

_log = logging.getLogger(__name__)


def announce_remotes(where: object, settings: Settings) -> None:
    """Log whom a knowledge base makes this process contact, once for each user, knowledge base and names.

    Args:
        where: The knowledge base, for the message.
        settings: Its settings, but for what the caller has replaced.
    """
    remotes = _remotes(settings)
    if not remotes or is_offline() or _mark(settings, remotes).is_file():
        return
    _log.warning(
        "%s makes its readers contact %s. This is said once; with --offline or %s=1 nobody is contacted.",
        where,
        ", ".join(remotes),
        OFFLINE,
    )
    remember_remotes(settings)


def remember_remotes(settings: Settings) -> None:
    """Take the names in the settings as known to this user, who has chosen or read them."""
    remotes = _remotes(settings)
    if remotes:
        mark = _mark(settings, remotes)
        with suppress(OSError):  # Then it is said again the next time.
            mark.write_text(json.dumps(remotes) + "\n", "utf-8")


def _remotes(settings: Settings) -> list[str]:
    found = []
    if settings.qdrant_url is not None:
        found.append(f"the Qdrant server {settings.qdrant_url}")
    if settings.checkpoint not in OWN and _is_fetched(settings.checkpoint):
        found.append(f"the Hugging Face hub for the checkpoint {settings.checkpoint}")
    embedder = settings.embedder
    if embedder is not None and not embedder.startswith(GIVEN) and _is_fetched(embedder):
        found.append(f"the Hugging Face hub for the embedder {embedder}")
    return found


def _is_fetched(name: str) -> bool:
    """Whether a model's name is one on the hub; sentence-transformers also takes some without an owner."""
    is_name = is_hub_id(name) or not name.startswith((".", "/", "~"))
    return is_name and not Path(name).expanduser().is_dir()


def _mark(settings: Settings, remotes: list[str]) -> Path:
    named = json.dumps([settings.id, *remotes]).encode("utf-8", "surrogatepass")
    return writable_cache("contacts") / hashlib.sha256(named).hexdigest()[:32]
