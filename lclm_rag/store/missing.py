"""What to say of a store that is not where it was or should be."""

from __future__ import annotations

from lclm_rag.errors import StoreError
from lclm_rag.storage import Folder, LocalFolder

__all__ = ["no_store", "not_there", "require_store"]


def no_store(folder: Folder) -> StoreError:
    """The error for a folder in which there is no store."""
    return StoreError(
        f"There is no latent store in {folder}; if there was one, it was moved or removed since: open it "
        "where it is now."
    )


def not_there(folder: Folder, error: FileNotFoundError) -> Exception:
    """The error for a file of a store that is not there: the same, if all of the store is gone.

    Args:
        folder: The store's folder.
        error: What reading the file raised.
    """
    if folder.local is not None and not folder.local.exists():
        return no_store(folder)
    return error


def require_store(part: Folder) -> None:
    """Check, when a file is missing in a folder of a store, that the store itself is there.

    Args:
        part: The folder in which the file is missing.

    Raises:
        StoreError: If all of the store is gone.
    """
    if part.local is not None and not part.local.parent.exists():
        raise no_store(LocalFolder(part.local.parent))
