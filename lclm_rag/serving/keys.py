"""API keys: who may ask what. The file holds hashes, never the keys themselves."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_rag.retrieval import Filter
from lclm_rag.serving.filters import parsed_filters

__all__ = [
    "ApiKey",
    "ApiKeys",
    "add_key",
    "check_name",
    "listed_keys",
    "new_key",
    "remove_key",
]

_log = logging.getLogger(__name__)

_PREFIX = "lclm-"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOK_AGAIN = 1.0
"""Seconds between two looks at a file of keys."""


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
        path: The file that they were read from, which is read again when it changes; None for no file.
    """

    def __init__(self, keys: Sequence[ApiKey], path: Path | None = None) -> None:
        self._keys = list(keys)
        self._path = path
        self._seen = None if path is None else _signature(path)
        self._looked = time.monotonic()

    @classmethod
    def load(cls, path: Path) -> ApiKeys:
        """Read a file of keys. When it changes it is read again, within a second.

        Args:
            path: A JSON file: {"keys": [{"name", "sha256", "bases", "write", "filters"}]}; the last three
                may be left out. Filters are conditions that must all hold, such as
                ["lang=en", "year>=2020"], or an object such as {"lang": "en"}.

        Returns:
            The keys.

        Raises:
            ValueError: When the file is not such a file.
            OSError: When it cannot be read.
        """
        found = cls([], path)  # What the file looks like is noted before it is read.
        found._keys = _keys(path)
        return found

    def find(self, secret: str) -> ApiKey | None:
        """Look up a key, in a time that does not tell how much of it is right.

        Args:
            secret: The key.

        Returns:
            What its holder may do; None if there is no such key.
        """
        self._follow()
        given = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.hash, given):
                found = key
        return found

    def _follow(self) -> None:
        """Read the file again if it has changed; looks at most once a second."""
        now = time.monotonic()
        if self._path is None or now - self._looked < _LOOK_AGAIN:
            return
        self._looked = now
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._keys = _keys(self._path)
        except (ValueError, OSError) as error:
            _log.error("The API keys stay as they were: %s", error)
        else:
            _log.info("%s has changed: %d API keys.", self._path, len(self._keys))


def new_key() -> tuple[str, str]:
    """Make a key.

    Returns:
        The key, which is shown once, and its hash, which is kept.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def add_key(
    path: Path,
    name: str,
    *,
    bases: Sequence[str] = (),
    write: bool = False,
    filters: Sequence[str] = (),
) -> str:
    """Add a key to a file of keys, which is made if it is not there.

    Args:
        path: The file.
        name: Whose key it is; no other key of the file has this name.
        bases: The names of the knowledge bases that may be asked; none stands for all.
        write: Whether documents may be changed.
        filters: The conditions that every question is bound by, as `parse_filter` takes them.

    Returns:
        The key. It is kept nowhere.

    Raises:
        ValueError: When a name or a condition is not valid, the name is taken, the key would both write and
            be bound, or the file is no file of keys.
        OSError: When the file cannot be read or written.
    """
    for each in (name, *bases):
        check_name(each)
    parsed_filters(list(filters))
    if write and filters:
        raise ValueError(
            "A key that is bound by a filter cannot write: it could replace documents that it must not see."
        )
    entries = _entries(path) if path.exists() else []
    if any(entry.get("name") == name for entry in entries):
        raise ValueError(
            f"{path} has a key named {name} already; remove it first: lclm-rag keys remove."
        )
    key, digest = new_key()
    entry: dict[str, Any] = {"name": name, "sha256": digest}
    entry |= {"bases": list(bases)} if bases else {}
    entry |= {"write": True} if write else {}
    entry |= {"filters": list(filters)} if filters else {}
    _write(path, [*entries, entry])
    return key


def remove_key(path: Path, name: str) -> None:
    """Remove a key from a file of keys; a running service refuses it within a second.

    Args:
        path: The file.
        name: Whose key it is.

    Raises:
        ValueError: When there is no such key, or the file is no file of keys.
        OSError: When the file cannot be read or written.
    """
    entries = _entries(path)
    left = [entry for entry in entries if entry["name"] != name]
    if len(left) == len(entries):
        raise ValueError(f"{path} has no key named {name!r}; lclm-rag keys list shows its keys.")
    _write(path, left)


def listed_keys(path: Path) -> list[dict[str, Any]]:
    """The keys of a file as they stand in it, without their hashes.

    Args:
        path: The file.

    Returns:
        For each key its name, knowledge bases (None for all), whether it may write, and its conditions.

    Raises:
        ValueError: When the file is no file of keys.
        OSError: When it cannot be read.
    """
    return [
        {
            "name": entry["name"],
            "bases": entry.get("bases"),
            "write": entry.get("write", False),
            "filters": entry.get("filters"),
        }
        for entry in _entries(path)
    ]


def check_name(name: str) -> str:
    """Check the name of a key or of a knowledge base.

    Args:
        name: The name.

    Returns:
        The name.

    Raises:
        ValueError: When it is not 1 to 64 letters, digits, dots, underscores and hyphens.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"The name {name!r} may hold letters, digits, '.', '_' and '-' only.")
    return name


def _keys(path: Path) -> list[ApiKey]:
    return [_key(entry) for entry in _entries(path)]


def _entries(path: Path) -> list[dict[str, Any]]:
    """The keys as they stand in the file; all of them valid."""
    try:
        entries = json.loads(path.read_text("utf-8"))["keys"]
        for entry in entries:
            _key(entry)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no file of API keys; lclm-rag keys add makes one. ({error})"
        ) from error
    return list(entries)


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    """Replace the file as a whole. Nobody but its owner can read it."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # Mode 0600.
    written = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"keys": entries}, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def _signature(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


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
        filters=parsed_filters(entry.get("filters")),
    )
