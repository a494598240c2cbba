"""Whether a decoder takes questions: it is open, closing or closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from lclm_rag.errors import DecoderError

__all__ = ["Lifecycle", "closed_meanwhile"]


class Lifecycle:
    """The state of a decoder: open, closing, closed. It never goes back."""

    def __init__(self) -> None:
        self._state: Literal["open", "closing", "closed"] = "open"
        self.after_fork()

    def after_fork(self) -> None:
        """Renew the locks in a forked child: another thread of the parent may have held them."""
        # Reentrant, because a signal handler may close the decoder of the thread that it interrupts.
        self._lock = threading.RLock()
        self._releasing = threading.RLock()

    @property
    def is_open(self) -> bool:
        """Whether nobody has begun to close the decoder."""
        return self._state == "open"

    def require_open(self) -> None:
        """Raise DecoderError unless the decoder is open."""
        if not self.is_open:
            raise DecoderError("This decoder is closed; make another.")

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Let nobody begin to close the decoder inside the block, which must not wait.

        What the block starts is thus known to whoever closes the decoder.

        Raises:
            DecoderError: Unless the decoder is open.
        """
        with self._lock:
            self.require_open()
            yield

    def begin_to_close(self) -> None:
        """Take no more questions."""
        with self._lock:
            if self.is_open:
                self._state = "closing"

    def close(self, release: Callable[[], None]) -> None:
        """Take no more questions, and release what the decoder has.

        Of several callers one releases and the others wait for it; later ones have nothing to do. A caller
        after one that was interrupted releases again.

        Args:
            release: Ends what runs and releases the rest. It may be called again after an interrupt.
        """
        self.begin_to_close()
        with self._releasing:
            if self._state != "closed":
                release()
                self._state = "closed"


def closed_meanwhile() -> DecoderError:
    """The error for whoever waits for an answer when the decoder is closed."""
    return DecoderError("This decoder was closed before the answer was complete.")
