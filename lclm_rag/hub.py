"""The Hugging Face hub, from which checkpoints, models and data sets are fetched by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lclm_rag.errors import CheckpointError, LclmRagError
from lclm_rag.offline import is_offline, offline_error, require_online
from lclm_rag.printable import first_line

__all__ = ["Size", "fetch", "is_hub_id", "loading", "require_in_cache", "sizes"]


def is_hub_id(name: str) -> bool:
    """Whether a name is written as "owner/name", and not as a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def fetch(name: str, **options: Any) -> Path:
    """Fetch a snapshot from the hub, unless it is in the cache.

    Args:
        name: The hub id.
        **options: Options of `huggingface_hub.snapshot_download`.

    Returns:
        The snapshot's folder.

    Raises:
        OSError: When it cannot be fetched; the message is the reason, in one line.
        OfflineError: When it is not in the cache, and nobody may be contacted.
    """
    from huggingface_hub import snapshot_download

    if is_offline():
        return _cached(name, options)
    with _one_line():
        return Path(snapshot_download(name, **options))


def _cached(name: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder: Path | None = Path(snapshot_download(name, local_files_only=True, **options))
    except (LocalEntryNotFoundError, HFValidationError):
        folder = None
    wanted = options.get("allow_patterns") or ["*"]
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if folder is None or not any(
        fnmatch(str(path.relative_to(folder)), pattern)
        for path in folder.rglob("*")
        for pattern in wanted
    ):
        raise offline_error(f"the Hugging Face hub for {name}, which is not in the cache")
    return folder


def require_in_cache(name: str, what: str) -> None:
    """See to it that sentence-transformers contacts nobody, if nobody may be contacted.

    Args:
        name: The model's name or folder, as sentence-transformers takes it.
        what: What the model is, for the message.

    Raises:
        OfflineError: When the model is no folder and not in the cache, and nobody may be contacted.
    """
    if not is_offline() or Path(name).is_dir():
        return
    from huggingface_hub import try_to_load_from_cache

    owned = name if "/" in name else f"sentence-transformers/{name}"
    if not is_hub_id(owned) or not isinstance(try_to_load_from_cache(owned, "config.json"), str):
        require_online(f"the Hugging Face hub for {what} {name}, which is not in the cache")


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Load a model of sentence-transformers in this block.

    Args:
        what: What the model is, such as "embedder".
        name: Its name or folder.

    Raises:
        CheckpointError: When it cannot be loaded; the message names it and says why.
    """
    try:
        if not name:
            raise ValueError("its name is empty")
        yield
    except LclmRagError:
        raise
    # A name that is none, a folder without a model, a damaged file: each raises what its library likes.
    except Exception as error:
        raise CheckpointError(
            f"The {what} {name!r} cannot be loaded: {first_line(error).rstrip('.')}. Name a model of "
            "sentence-transformers as the Hugging Face hub does, or its folder."
        ) from error


@dataclass(frozen=True)
class Size:
    """The size of some files on the hub.

    Attributes:
        bytes: All of them together.
        to_fetch: Those that are not in the cache.
    """

    bytes: int
    to_fetch: int


def sizes(name: str, *patterns: Sequence[str], revision: str | None = None) -> list[Size]:
    """Ask the hub how large files of a model are. Nothing is fetched.

    Args:
        name: The hub id.
        *patterns: Which files to add up, each as for `allow_patterns` of `fetch`.
        revision: The revision; None for the newest.

    Returns:
        The size of the files of each entry of `patterns`.

    Raises:
        OSError: When the hub does not answer, or has no such model; the message is the reason, in one line.
        OfflineError: When nobody may be contacted.
    """
    require_online(f"the Hugging Face hub for the size of {name}")
    from huggingface_hub import HfApi, try_to_load_from_cache

    with _one_line():
        model = HfApi().model_info(name, revision=revision, files_metadata=True)
    found = []
    for wanted in patterns:
        whole = missing = 0
        for file in model.siblings or []:
            if not any(fnmatch(file.rfilename, pattern) for pattern in wanted):
                continue
            whole += file.size or 0
            cached = try_to_load_from_cache(name, file.rfilename, revision=model.sha)
            missing += 0 if isinstance(cached, str) else file.size or 0
        found.append(Size(whole, missing))
    return found


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # The hub raises dozens of types, its HTTP client's included.
        reason = first_line(error)
        raise OSError(reason.rstrip(".")) from error
