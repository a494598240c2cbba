"""What a knowledge base's folder notes about its collection on a Qdrant server.

```
index/state-<version>-<number>.json   the collection shows this version; the last name counts
index/state.json                      the same, from before there were versions in the name
index/filling.json                    a new collection is being filled, and nobody searches it yet
index/updating.json                   the collection that is searched is being brought to another version
```

States are created and never changed, so of two writers only one puts a version in place, and a lower version
never replaces a higher one. `<version>` has 10 digits; `<number>`, 4 digits, counts collections that were
made anew at the same version.
"""

from __future__ import annotations

import re
import socket
from dataclasses import asdict, dataclass
from typing import Any

from lclm_rag.checksummed_json import seal, unseal
from lclm_rag.config import SETTINGS
from lclm_rag.errors import PassageIndexError
from lclm_rag.retrieval import Bm25Settings
from lclm_rag.storage import Folder
from lclm_rag.typed_json import from_json

__all__ = [
    "FILLING",
    "UPDATING",
    "Home",
    "State",
    "Work",
    "home_of",
    "read_state",
    "read_work",
    "remove_states",
    "state_version",
    "write_state",
    "write_work",
]

FILLING = "filling.json"
UPDATING = "updating.json"

_EARLY = "state.json"
_NAME = re.compile(r"state-(\d{10})-(\d{4})\.json")
_TRIES = 5
_NOTED = ("version", "manifest", "embedder", "collection", "home")


@dataclass(frozen=True)
class Home:
    """Where a knowledge base is, to tell it from a copy of it.

    Attributes:
        place: The URL, or the machine and the path.
        inode: The number of its settings' file in the file system; None in an object store.
    """

    place: str
    inode: int | None

    def is_same(self, other: Home) -> bool:
        """Whether this is the same knowledge base.

        A folder that was renamed, or is seen from another machine or container, keeps its inodes; one that
        was restored in its place keeps its path; a copy has neither.
        """
        return self.place == other.place or (self.inode is not None and self.inode == other.inode)


@dataclass(frozen=True)
class State:
    """What the collection that is searched shows.

    Attributes:
        version: The number of the store's version.
        manifest: The digest of that version's manifest.
        bm25: The BM25 settings of the index.
        embedder: The name of the model that made the dense vectors; None for BM25 alone.
        collection: The name that is searched, an alias or a collection; None in a state from before it was
            noted, for that of the settings.
        home: Where the knowledge base is; None in a state from before it was noted.
        number: Counts collections that were made anew at the same version.
    """

    version: int
    manifest: str
    bm25: Bm25Settings
    embedder: str | None
    collection: str | None = None
    home: Home | None = None
    number: int = 0


@dataclass(frozen=True)
class Work:
    """What a writer is doing to a collection, noted before it begins.

    Attributes:
        collection: The collection's own name, not an alias.
        versions: The numbers and the manifests' digests of the versions that it may hold parts of.
        passages: The number of passages that it holds when the work is done.
        bm25: The BM25 settings of the index.
        embedder: The name of the model that makes the dense vectors; None for BM25 alone.
        home: Where the knowledge base is.
        done: The names of the fragments of which the collection has all rows, while it is filled.
        made_with: Tells collections apart that were begun with other options or filter keys.
    """

    collection: str
    versions: tuple[tuple[int, str], ...]
    passages: int
    bm25: Bm25Settings
    embedder: str | None
    home: Home
    done: tuple[str, ...] = ()
    made_with: str = ""


def home_of(folder: Folder) -> Home:
    """Where the knowledge base is that has this index folder."""
    if folder.local is None:
        return Home(str(folder), None)
    path = folder.local.resolve()
    try:
        # Of the settings, because they are written once. A folder may be the root of a mounted volume, and
        # such roots all have the same number.
        inode = (path.parent / SETTINGS).stat().st_ino
    except FileNotFoundError:
        inode = None
    return Home(f"{socket.gethostname()}:{path}", inode)


def state_version(folder: Folder) -> int:
    """The version that a server's collection shows; 0 if there is none.

    Args:
        folder: The folder of the knowledge base's index.
    """
    if names := _names(folder):
        return names[-1][0]
    try:
        return int(unseal(folder.read(_EARLY))["version"] or 0)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return 0  # Whoever opens the index reports a damaged state.
    except OSError as error:
        raise _unreadable(folder, _EARLY, error) from error


def read_state(folder: Folder) -> State | None:
    """Read what the collection shows.

    Args:
        folder: The folder of the knowledge base's index.

    Returns:
        The state; None if there is none, because no collection was ever filled.

    Raises:
        PassageIndexError: If the state cannot be read, or is damaged. That is not the same as none.
    """
    for _ in range(_TRIES):
        names = _names(folder)
        name = _file(*names[-1]) if names else _EARLY
        raw = _read(folder, name)
        if raw is not None:
            return _parsed(folder, name, raw)
        if not names:
            return None
        # A newer one was put in its place between listing and reading.
    raise PassageIndexError(f"The states in {folder} keep changing; try again.")


def write_state(folder: Folder, state: State) -> None:
    """Put a state in place, and remove those of lower versions.

    If there is one of a higher version already, that one still counts.

    Args:
        folder: The folder of the knowledge base's index.
        state: The state.

    Raises:
        PassageIndexError: If another writer put the same version in place, with another content.
    """
    name = _file(state.version, state.number)
    content = asdict(state)
    del content["number"]
    try:
        folder.create(name, seal(content))
    except FileExistsError as error:
        raw = _read(folder, name)
        there = None if raw is None else _parsed(folder, name, raw)
        if there is None or there.manifest != state.manifest:
            raise PassageIndexError(
                f"Another writer noted version {state.version} of the passage index in {folder}, with "
                "another content; run lclm-rag verify --repair."
            ) from error
    for other in _names(folder):
        if other < (state.version, state.number):
            folder.remove(_file(*other))
    folder.remove(_EARLY)


def remove_states(folder: Folder, *, down_to: int = -1) -> None:
    """Remove the states of versions higher than `down_to`, and those that cannot be read."""
    for version, number in _names(folder):
        name = _file(version, number)
        try:
            is_sound = _read(folder, name) is not None
        except PassageIndexError as error:
            if isinstance(error.__cause__, OSError):
                raise
            is_sound = False
        if version > down_to or not is_sound:
            folder.remove(name)
    folder.remove(_EARLY)


def read_work(folder: Folder, name: str) -> Work | None:
    """Read what a writer is doing, or was doing when it was interrupted.

    Args:
        folder: The folder of the knowledge base's index.
        name: `FILLING` or `UPDATING`.

    Returns:
        The work; None if there is none.

    Raises:
        PassageIndexError: If the note cannot be read, or is damaged.
    """
    raw = _read(folder, name)
    if raw is None:
        return None
    try:
        return from_json(Work, {**raw, "bm25": Bm25Settings.from_json(raw["bm25"])})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, name) from error


def write_work(folder: Folder, name: str, work: Work) -> None:
    """Note what is about to be done; see `read_work`."""
    folder.replace(name, seal(asdict(work)))


def _names(folder: Folder) -> list[tuple[int, int]]:
    """The versions and numbers of the states that are there, the one that counts last."""
    try:
        found = [_NAME.fullmatch(facts.name) for facts in folder.files()]
    except OSError as error:
        raise _unreadable(folder, "state", error) from error
    return sorted((int(match[1]), int(match[2])) for match in found if match)


def _file(version: int, number: int) -> str:
    return f"state-{version:010d}-{number:04d}.json"


def _read(folder: Folder, name: str) -> dict[str, Any] | None:
    """The content of a file; None only if there is no such file."""
    try:
        raw = unseal(folder.read(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(folder, name, error) from error
    except ValueError as error:
        raise _damaged(folder, name) from error
    if not isinstance(raw, dict):
        raise _damaged(folder, name)
    return raw


def _parsed(folder: Folder, name: str, raw: dict[str, Any]) -> State | None:
    try:
        # An early note that the collection is being filled for the first time.
        if raw["version"] is None:
            return None
        match = _NAME.fullmatch(name)
        noted = {each: raw[each] for each in _NOTED if each in raw}
        number = int(match[2]) if match else 0
        bm25 = Bm25Settings.from_json(raw["bm25"])
        return from_json(State, {**noted, "bm25": bm25, "number": number})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, name) from error


def _unreadable(folder: Folder, name: str, error: OSError) -> PassageIndexError:
    return PassageIndexError(
        f"{folder / name}, which says what the passage index shows, cannot be read: {error}. Nothing was "
        "changed; try again."
    )


def _damaged(folder: Folder, name: str) -> PassageIndexError:
    return PassageIndexError(
        f"{folder / name}, which says what the passage index shows, is damaged; lclm-rag verify --repair "
        "makes the index anew."
    )
