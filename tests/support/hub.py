"""The hub, which cannot be reached: it serves models from local folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

__all__ = ["LocalHub"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Takes the place of `snapshot_download` and `HfApi.model_info`; the cache is laid out as the hub's is.

    Attributes:
        models: The folder behind each hub id.
        fetched: The files fetched so far, as "owner/name: path".
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, cache: Path, models: dict[str, Path]
    ) -> None:
        self.cache, self.models = cache, models
        self.fetched: list[str] = []
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(
            huggingface_hub.HfApi, "model_info", lambda _, *args, **options: self.model_info(*args)
        )

    def snapshot_download(self, name: str, *, revision: str | None = None, **patterns: Any) -> str:
        assert revision in (None, COMMIT)
        snapshot = self.snapshot(name)
        for path in filter_repo_objects(self._files(name), **patterns):
            if not (snapshot / path).is_file():
                (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.models[name] / path, snapshot / path)
                self.fetched.append(f"{name}: {path}")
        return str(snapshot)

    def snapshot(self, name: str) -> Path:
        """The folder of what is in the cache."""
        return self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT

    def model_info(self, name: str) -> Any:
        sizes = {path: (self.models[name] / path).stat().st_size for path in self._files(name)}
        files = [SimpleNamespace(rfilename=path, size=size) for path, size in sizes.items()]
        return SimpleNamespace(sha=COMMIT, siblings=files)

    def _files(self, name: str) -> list[str]:
        if name not in self.models:
            raise OSError("401 Client Error.\nRequest ID: 1")
        root = self.models[name]
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
