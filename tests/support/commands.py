"""The command line, run in this process: what the fixture `run` gives."""

from collections.abc import Callable

__all__ = ["Run"]

Run = Callable[..., tuple[int, str, str]]
"""Arguments → exit code, stdout, stderr."""
