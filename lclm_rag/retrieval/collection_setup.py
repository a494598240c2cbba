"""How a collection on a Qdrant server is laid out: shards, copies, memory, and which metadata filters see."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "ON_DISK_FROM",
    "CollectionSetup",
    "check_options",
    "creation",
    "options_of",
    "read_options",
]

ON_DISK_FROM = 1_000_000
"""The number of passages from which payload indexes are kept on disk: in memory, each costs some 100 bytes
for every passage that has the key."""

_DENSE, _SPARSE = "dense", "sparse"
_WHOLE = (
    "shard_number",
    "replication_factor",
    "write_consistency_factor",
    "on_disk_payload",
    "hnsw_config",
    "wal_config",
    "optimizers_config",
    "quantization_config",
    "strict_mode_config",
)
_OF_DENSE = ("on_disk", "hnsw_config", "quantization_config", "datatype")
_OF_SPARSE = ("on_disk", "full_scan_threshold", "datatype")


@dataclass(frozen=True)
class CollectionSetup:
    """How a collection is made, and what its points hold.

    Attributes:
        options: Options of the collection, as `check_options` takes them.
        filter_keys: The metadata keys that points hold, and that filters can name; None for all.
        large: Whether payload indexes are kept on disk.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    filter_keys: tuple[str, ...] | None = None
    large: bool = False


def read_options(path: str | Path) -> dict[str, Any]:
    """Read the options of a collection from a file, and check them.

    Args:
        path: A JSON file, or a TOML file if its name ends in .toml.

    Returns:
        The options.

    Raises:
        ValueError: When the file cannot be read or parsed, or an option is not one of a collection or has a
            value that it cannot have.
        ImportError: When qdrant-client is not installed.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        options = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as {_kind(path)}: {error}") from error
    try:
        return check_options(options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_options(options: Any) -> dict[str, Any]:
    """Check options of a collection by the models of qdrant-client.

    Args:
        options: `shard_number`, `replication_factor`, `write_consistency_factor`, `on_disk_payload`,
            `hnsw_config`, `wal_config`, `optimizers_config`, `quantization_config` and `strict_mode_config`
            as in Qdrant's own request; `dense` with `on_disk`, `hnsw_config`, `quantization_config` and
            `datatype`; `sparse` with `on_disk`, `full_scan_threshold` and `datatype`.

    Returns:
        The options, as they were given.

    Raises:
        ValueError: When an option is not one of these, or has a value that it cannot have.
        ImportError: When qdrant-client is not installed.
    """
    from pydantic import ValidationError

    if not isinstance(options, Mapping):
        raise ValueError(f"Options of a collection are names and values, not {options!r}.")
    _check_names("", options, (*_WHOLE, _DENSE, _SPARSE))
    for name, known in ((_DENSE, _OF_DENSE), (_SPARSE, _OF_SPARSE)):
        part = options.get(name, {})
        if not isinstance(part, Mapping):
            raise ValueError(f"{name} has names and values, not {part!r}.")
        _check_names(f"{name}.", part, known)
    try:
        creation(options, width=1)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where} cannot be {first['input']!r}: {first['msg']}.") from error
    if wrong := next(_too_small(options), None):
        raise ValueError(f"{wrong} must be at least 1, not {options[wrong]}.")
    return dict(options)


def creation(options: Mapping[str, Any], width: int | None) -> dict[str, Any]:
    """The arguments of `QdrantClient.create_collection`.

    Args:
        options: Options that were checked.
        width: The width of dense vectors; None for none.

    Returns:
        The arguments, but for the collection's name.
    """
    from qdrant_client import models

    from lclm_rag.retrieval.qdrant_index import BM25, DENSE

    sparse = models.SparseVectorParams(
        modifier=models.Modifier.IDF,
        index=models.SparseIndexParams(**options[_SPARSE]) if _SPARSE in options else None,
    )
    dense = models.VectorParams(
        size=width or 1, distance=models.Distance.COSINE, **options.get(_DENSE, {})
    )
    made = models.CreateCollection(
        vectors={} if width is None else {DENSE: dense},
        sparse_vectors={BM25: sparse},
        **{name: options[name] for name in _WHOLE if name in options},
    )
    return {
        "vectors_config": made.vectors,
        "sparse_vectors_config": made.sparse_vectors,
        **{name: getattr(made, name) for name in _WHOLE if name in options},
    }


def options_of(info: Any) -> dict[str, Any]:
    """The options with which a collection like this one can be made.

    Args:
        info: The `CollectionInfo` of a passage index.

    Returns:
        The options.
    """
    from lclm_rag.retrieval.qdrant_index import BM25, DENSE

    config = info.config
    found = config.params.model_dump(mode="json", exclude_none=True)
    found |= config.model_dump(mode="json", exclude_none=True)
    found["optimizers_config"] = found.pop("optimizer_config", None)
    options = {name: found[name] for name in _WHOLE if found.get(name) is not None}
    vectors = found.get("vectors") or {}
    dense = vectors.get(DENSE, {})
    sparse = (found.get("sparse_vectors") or {}).get(BM25, {}).get("index", {})
    for name, part, known in ((_DENSE, dense, _OF_DENSE), (_SPARSE, sparse, _OF_SPARSE)):
        if kept := {key: part[key] for key in known if key in part}:
            options[name] = kept
    return options


def _check_names(before: str, options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in options:
        if name not in known:
            raise ValueError(
                f"{before}{name} is not an option of a collection; {', '.join(known)} are."
            )


def _too_small(options: Mapping[str, Any]) -> Iterator[str]:
    """The counts that Qdrant would refuse, when everything is compressed."""
    for name in ("shard_number", "replication_factor", "write_consistency_factor"):
        if options.get(name) is not None and options[name] < 1:
            yield name


def _kind(path: Path) -> str:
    return "TOML" if path.suffix == ".toml" else "JSON"
