"""The exit codes of the process."""

from __future__ import annotations

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_IN_PART", "EXIT_LOCKED", "EXIT_TERMINATED"]

EXIT_FAILED = 1
EXIT_IN_PART = 3  # 2 is click's: wrong usage.
EXIT_LOCKED = 4
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
