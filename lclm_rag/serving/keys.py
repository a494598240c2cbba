"""API keys: who may ask what. The file holds hashes, never the keys themselves."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_rag.retrieval import Filter, as_filter

__all__ = ["ApiKey", "ApiKeys", "new_key"]

_PREFIX = "lclm-"


@dataclass(frozen=True)
class ApiKey:
    """What the holder of a key may do.

    Attributes:
        name: Whose key it is; it appears in the log.
        hash: SHA-256 of the key, as hexadecimal digits. The keys are random, so nothing slower is needed.
        bases: The knowledge bases that may be asked; None for all.
        write: Whether documents may be changed.
        filters: The condition that every question of this key is bound by; None for none.
    """

    name: str
    hash: str
    bases: frozenset[str] | None = None
    write: bool = False
    filters: Filter | None = None

    def may_ask(self, base: str) -> bool:
        """Whether the holder may ask a knowledge base."""
        return self.bases is None or base in self.bases


class ApiKeys:
    """The keys of a service.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: list[ApiKey]) -> None:
        self._keys = keys

    @classmethod
    def load(cls, path: Path) -> ApiKeys:
        """Read a file of keys.

        Args:
            path: A JSON file: {"keys": [{"name", "sha256", "bases", "write", "filters"}]}; the last three
                may be left out.

        Returns:
            The keys.

        Raises:
            ValueError: When the file is not such a file.
        """
        try:
            entries = json.loads(path.read_text("utf-8"))["keys"]
            return cls([_key(entry) for entry in entries])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} is no file of API keys; lclm-rag keys add makes one. ({error})"
            ) from error

    def find(self, secret: str) -> ApiKey | None:
        """Look up a key, in a time that does not tell how much of it is right.

        Args:
            secret: The key.

        Returns:
            What its holder may do; None if there is no such key.
        """
        given = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.hash, given):
                found = key
        return found


def new_key() -> tuple[str, str]:
    """Make a key.

    Returns:
        The key, which is shown once, and its hash, which is kept.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def _key(entry: dict[str, Any]) -> ApiKey:
    unknown = entry.keys() - {"name", "sha256", "bases", "write", "filters"}
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    digest = str(entry["sha256"])
    if len(bytes.fromhex(digest)) != 32:
        raise ValueError("sha256 must have 64 hexadecimal digits")
    bases, write = entry.get("bases"), entry.get("write", False)
    if not isinstance(write, bool) or not (bases is None or isinstance(bases, list)):
        raise ValueError("write must be true or false, and bases a list")
    return ApiKey(
        name=str(entry["name"]),
        hash=digest.lower(),
        bases=None if bases is None else frozenset(map(str, bases)),
        write=write,
        filters=as_filter(entry.get("filters")),
    )
