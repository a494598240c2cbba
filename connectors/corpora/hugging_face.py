"""Reads Hugging Face data sets, saved in a folder or on the hub: one document for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_rag.connectors.corpora.items import Item
from lclm_rag.connectors.corpora.messages import first_line, printable
from lclm_rag.connectors.corpora.records import Columns
from lclm_rag.errors import CorpusError
from lclm_rag.offline import require_online
from lclm_rag.storage import Location

__all__ = [
    "HubDataset",
    "SavedDataset",
    "count_rows",
    "is_saved_dataset",
    "parse_hub_uri",
    "read_splits",
    "require_datasets",
]

_BATCH_ROWS = 256


@dataclass(frozen=True)
class SavedDataset:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""

    path: Path

    def __str__(self) -> str:
        return printable(self.path)


@dataclass(frozen=True)
class HubDataset:
    """`hf://OWNER/NAME/CONFIG:SPLIT`: a data set on the hub.

    Attributes:
        name: OWNER/NAME.
        config: The config; None for the only one.
        split: The split; None for all, one after another.
    """

    name: str
    config: str | None
    split: str | None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"hf://{self.name}{config}" + (f":{self.split}" if self.split else "")


def parse_hub_uri(uri: str) -> HubDataset:
    """Parse the URI of a data set on the hub.

    Raises:
        CorpusError: When it is not such a URI.
    """
    path, _, split = uri.removeprefix("hf://").partition(":")
    parts = path.split("/")
    if not all(parts) or len(parts) > 3 or parts[0] == "datasets":
        raise CorpusError(
            f"{uri}: not the name of a data set; write hf://OWNER/NAME, hf://OWNER/NAME:SPLIT or "
            "hf://OWNER/NAME/CONFIG:SPLIT."
        )
    return HubDataset("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or None)


def is_saved_dataset(folder: Location) -> bool:
    """Whether `save_to_disk` wrote the folder.

    Raises:
        OSError: When the folder cannot be read.
    """
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def require_datasets(where: str) -> None:
    """Check that the library `datasets` is installed.

    Args:
        where: The data set, for the error message.

    Raises:
        ImportError: When it is not installed.
    """
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{where}: Hugging Face data sets need datasets: pip install 'lclm-rag[datasets]'"
        ) from error


def read_splits(
    source: SavedDataset | HubDataset, columns: Columns
) -> Iterator[tuple[str, Iterator[Item]]]:
    """Read the splits of a data set: one document for each row.

    Only the needed columns are read. Without an id column, the id is "<name>:<row>" or, with several splits,
    "<name>:<split>:<row>".

    Args:
        source: The data set.
        columns: Which column holds what.

    Yields:
        For each split its place, for messages, and its row numbers with documents or errors.
    """
    try:
        splits = _load(source)
    except CorpusError as error:
        yield str(source), iter([(0, error)])
        return
    name = source.path.resolve().name if isinstance(source, SavedDataset) else source.name
    if isinstance(source, HubDataset) and source.config:
        name = f"{name}/{source.config}"
    for split, rows in splits.items():
        below = f":{split}" if split else ""
        where = str(source) if str(source).endswith(below) else f"{source}{below}"
        yield where, _rows(rows, columns, f"{name}{below}", where)


def count_rows(source: SavedDataset) -> int:
    """The number of rows of all splits.

    Raises:
        CorpusError: When the data set cannot be loaded.
    """
    return sum(len(rows) for rows in _load(source).values())


def _load(source: SavedDataset | HubDataset) -> Mapping[str, Any]:
    """The data set's splits by name; a data set without splits under ""."""
    if isinstance(source, HubDataset):
        require_online(f"the Hugging Face hub for {source}")
    import datasets

    try:
        if isinstance(source, SavedDataset):
            loaded = datasets.load_from_disk(str(source.path))
        else:
            loaded = datasets.load_dataset(
                source.name, source.config, split=source.split, streaming=True
            )
    except Exception as error:  # From the library, its file systems and its network client.
        raise CorpusError(
            f"{source}: cannot be loaded ({first_line(error)}); check name and network."
        ) from error
    if isinstance(loaded, dict):
        return loaded
    return {source.split or "" if isinstance(source, HubDataset) else "": loaded}


def _rows(rows: Any, columns: Columns, name: str, where: str) -> Iterator[Item]:
    from lclm_rag.connectors.corpora.arrow import batch_documents, columns_not_read
    from lclm_rag.connectors.corpora.arrow_columns import needed_columns

    number = 0
    schema = None
    needed: list[str] = []
    try:
        if rows.features is not None:
            for not_read in columns_not_read(rows.features.arrow_schema, columns, where):
                yield 0, not_read
            rows = rows.select_columns(needed_columns(rows.features.arrow_schema, columns, where))
        for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            # If the features are not known beforehand, each batch brings its schema.
            if table.schema != schema:
                schema, needed = table.schema, needed_columns(table.schema, columns, where)
            for batch in table.select(needed).to_batches():
                yield from batch_documents(batch, columns, name, where, number)
                number += batch.num_rows
    except CorpusError as error:
        yield 0, error
    except Exception as error:  # From the library, its file systems and its network client.
        after = f" after row {number}" if number else ""
        yield (
            0,
            CorpusError(f"{where}: cannot be read{after} ({first_line(error)}); try it again."),
        )
