"""The words, sentences and patterns that sets of questions are made from, in TOML files beside the code."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

__all__ = ["read_data"]


def read_data(name: str) -> dict[str, Any]:
    """The contents of the file `<name>.toml` in this package."""
    path = files("lclm_rag.evaluation.datasets") / f"{name}.toml"
    return tomllib.loads(path.read_text("utf-8"))
