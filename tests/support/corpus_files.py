"""Writing small corpora, and reading them as a user does."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lclm_rag.connectors.corpora import read_corpus
from lclm_rag.errors import CorpusError
from lclm_rag.types import Document

__all__ = [
    "HTML",
    "error_of",
    "packed",
    "read_one",
    "read_skipping",
    "write_files",
    "write_jsonl",
    "write_parquet",
]


HTML = (
    "<html><head><title> A\n page </title></head><body><h2>Café</h2><p>It opens.</p></body></html>"
)


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def write_jsonl(path: Path, records: Iterable[object], *, ensure_ascii: bool = False) -> Path:
    lines = (json.dumps(r, ensure_ascii=ensure_ascii) for r in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return path


def write_parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path


def read_one(*paths: str | Path, **options: Any) -> Document:
    (document,) = read_corpus(paths, **options)
    return document


def error_of(*paths: str | Path, **options: Any) -> str:
    with pytest.raises(CorpusError) as caught:
        list(read_corpus(paths, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def read_skipping(*paths: str | Path, **options: Any) -> tuple[list[Document], list[str]]:
    skipped: list[str] = []
    documents = list(
        read_corpus(
            paths, on_error="skip", on_skip=skipped.append, on_ignore=skipped.append, **options
        )
    )
    return documents, skipped


def packed(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    return bytes(pa.compress(data, "zstd", asbytes=True))
