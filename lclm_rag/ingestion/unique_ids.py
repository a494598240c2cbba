"""Which ids have come already, however many: kept on disk, so that memory does not grow with them."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

__all__ = ["UniqueIds"]

_CACHE_KIB = 16 * 1024


class UniqueIds:
    """Ids, each with the place where it was first seen: two numbers of the caller's.

    Kept in an unnamed temporary SQLite database, which the system removes with the process. Of an id
    only 96 bits of a hash are kept.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        # Nothing in it outlives the process: neither journal nor syncing is of use.
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE seen (id BLOB PRIMARY KEY, file INTEGER, number INTEGER) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def first(self, document_id: str, file: int = 0, number: int = 0) -> tuple[int, int] | None:
        """Where an id was seen before; None where it is new, and it is noted with `file` and `number`."""
        key = blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        noted = self._database.execute(
            "INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (key, file, number)
        )
        if noted.rowcount:
            return None
        found = self._database.execute("SELECT file, number FROM seen WHERE id = ?", (key,))
        before: tuple[int, int] = found.fetchone()
        return before
