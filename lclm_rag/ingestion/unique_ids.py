"""Remember which ids have been seen, on disk, so that memory does not grow with their number."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

__all__ = ["UniqueIds"]

_CACHE_KIB = 16 * 1024


class UniqueIds:
    """Ids, each with the place where it was first seen: two numbers that the caller chooses.

    They are kept in an unnamed temporary SQLite database, which the system removes when the process ends. It
    stores a hash of 96 bits in place of each id.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        # The database does not outlive the process, so a journal and syncing are of no use.
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE seen (id BLOB PRIMARY KEY, file INTEGER, number INTEGER) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def first(self, document_id: str, file: int = 0, number: int = 0) -> tuple[int, int] | None:
        """Look up where an id was first seen, and note a new one.

        Args:
            document_id: The id.
            file: The first number of the place, noted if the id is new.
            number: The second number of the place, noted if the id is new.

        Returns:
            The place where the id was first seen; None if it is new.
        """
        key = blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        noted = self._database.execute(
            "INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (key, file, number)
        )
        if noted.rowcount:
            return None
        found = self._database.execute("SELECT file, number FROM seen WHERE id = ?", (key,))
        before: tuple[int, int] = found.fetchone()
        return before
