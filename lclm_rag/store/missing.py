"""What to say of a store that is not where it was or should be."""

from __future__ import annotations

from lclm_rag.errors import StoreError
from lclm_rag.storage import Folder

__all__ = ["no_store", "not_there"]


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
