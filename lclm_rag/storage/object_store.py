"""The connection to an object store through fsspec, and the translation of its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lclm_rag.forking import keep_for_ever, watch
from lclm_rag.offline import require_online
from lclm_rag.retries import with_retries
from lclm_rag.storage.faults import pause_after
from lclm_rag.storage.local import is_disk_full

__all__ = ["ObjectStore", "whole_range"]

# Schemes whose libraries the extra `object-stores` installs.
_IN_EXTRA = ("s3", "s3a", "gs", "gcs")

T = TypeVar("T")


class ObjectStore:
    """An fsspec file system with its connections.

    A forked child opens its own connections, and so does a process that unpickles this object.
    `root` is the file system's name for the place that the URL names, such as "bucket/folder".

    Args:
        url: The URL of a folder or an object.

    Raises:
        ImportError: If fsspec, or its part for this scheme, is not installed.
        ValueError: If the scheme is unknown.
        OfflineError: If nobody may be contacted.
    """

    def __init__(self, url: str) -> None:
        if _scheme(url) != "memory":
            require_online(f"the object store of {url}")
        self._url = url
        self._filesystem, self.root = _filesystem_and_root(url)
        watch(self)

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return ObjectStore, (self._url,)

    def after_fork(self) -> None:
        """Leave the parent's connections alone; the child opens its own when it needs them."""
        keep_for_ever(self._filesystem)
        self._filesystem = None

    @property
    def filesystem(self) -> Any:
        """The fsspec file system."""
        if self._filesystem is None:
            self._filesystem, _ = _filesystem_and_root(self._url)
        return self._filesystem

    def call(self, where: str, make: Callable[[Any], T]) -> T:
        """Make a call of the file system; make it again if the store is busy or the connection broke.

        What is raised in the end is an OSError. Its message is a sentence that names the object; its
        `strerror` is the reason alone. The store's libraries raise many errors that are no OSError, and few
        that name the object.

        Args:
            where: The URL of the folder or object that is read or written.
            make: Makes the call with the file system that it is given. The store may have carried it out
                although it failed, so it must do no harm twice.

        Returns:
            What `make` returned.
        """
        try:
            return with_retries(lambda: make(self.filesystem), pause_after, where)
        except Exception as error:
            # A full disk on this machine is not an error of the store.
            if isinstance(error, OSError) and is_disk_full(error):
                raise
            raise self._translated(error, where) from error

    def _translated(self, error: Exception, where: str) -> OSError:
        reason = _first_line(error)
        if "NoSuchBucket" in reason or "bucket does not exist" in reason:
            bucket = self.root.partition("/")[0]
            sentence = f"There is no bucket {bucket} for {where}: make it first."
            return _with_reason(OSError(sentence), f"there is no bucket {bucket}")
        if isinstance(error, FileNotFoundError):
            sentence = f"{where}: there is no such object."
            return _with_reason(FileNotFoundError(sentence), "there is no such object")
        if isinstance(error, FileExistsError):
            return _with_reason(
                FileExistsError(f"{where} is there already."), "it is there already"
            )
        if "credentials" in reason.lower():
            reason += "; set the variables of the store: AWS_ACCESS_KEY_ID, or AWS_PROFILE, say"
        return _with_reason(OSError(f"{where} cannot be read or written: {reason}."), reason)


def whole_range(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    """The bytes from start to stop of an object, all of them.

    Args:
        filesystem: The fsspec file system.
        path: The file system's name for the object.
        start: The first byte.
        stop: One after the last byte.

    Raises:
        OSError: If the object ends before.
    """
    whole = bytearray()
    while len(whole) < stop - start:
        # An answer may be cut short without an error: go on after what came.
        piece = filesystem.cat_file(path, start=start + len(whole), end=stop)
        if not piece:
            raise OSError(f"{len(whole):,} of {stop - start:,} bytes came at {start:,}")
        whole += piece
    return bytes(whole)


def _filesystem_and_root(url: str) -> tuple[Any, str]:
    try:
        from fsspec import available_protocols
        from fsspec.core import url_to_fs

        # Without the cache of listings, which would hide what other processes write.
        filesystem, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        reason = str(error)
        if _scheme(url) in _IN_EXTRA:
            reason = f"pip install 'lclm-rag[object-stores]' ({reason})"
        raise ImportError(f"{url} lies in an object store: {reason}") from error
    except (ValueError, TypeError) as error:
        if _scheme(url) in available_protocols():
            raise ValueError(f"{url} cannot be opened: {_first_line(error)}.") from error
        raise ValueError(
            f"{url}: there is no such kind of store; use s3://, gs:// or a folder of this machine."
        ) from error
    return filesystem, str(root)


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _with_reason(error: OSError, reason: str) -> OSError:
    error.strerror = reason
    return error


def _first_line(error: Exception) -> str:
    # Without the number of an OSError, which says nothing to the user.
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    lines = str(reason).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__
