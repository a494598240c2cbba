"""Python code that comes with a model: it is never run, and never asked about on standard input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lclm_rag.errors import CheckpointError

__all__ = ["load_tokenizer", "own_code_refused", "refuse_own_code"]

_ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation")


@contextmanager
def own_code_refused(name: str | Path) -> Iterator[None]:
    """Load a model or a tokenizer in this block, with `trust_remote_code=False`.

    Args:
        name: The model, for the message.

    Raises:
        CheckpointError: When it can only be loaded by running code of its own.
    """
    try:
        yield
    except ValueError as error:
        # transformers, sentence-transformers and vLLM have no type for it, but all name this argument.
        if "trust_remote_code" not in str(error):
            raise
        raise CheckpointError(
            f"{name} can only be loaded by running Python code that comes with it{_named(Path(name))}, which "
            "is never done; use a model that needs no code of its own."
        ) from error


def refuse_own_code(folder: Path) -> None:
    """Refuse a model's folder that needs code of its own, before any weight is loaded.

    Args:
        folder: The folder, with `config.json`, `tokenizer_config.json` or both.

    Raises:
        CheckpointError: When config or tokenizer can only be loaded by running code of the folder, or the
            config asks for attention code from the hub.
    """
    config = _settings(folder / "config.json")
    for key in _ATTENTION:
        if "/" in json.dumps(config.get(key)):
            raise CheckpointError(
                f"{folder}: config.json asks for code from the hub ({key} {config[key]!r}), which is never "
                "run; remove that line."
            )
    if "auto_map" in config:
        from transformers import AutoConfig

        with own_code_refused(folder):
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if "auto_map" in _settings(folder / "tokenizer_config.json"):
        load_tokenizer(folder)


def load_tokenizer(folder: str | Path, **options: Any) -> Any:
    """Load a tokenizer as transformers has it.

    Args:
        folder: The tokenizer's folder.
        **options: Further options of `AutoTokenizer.from_pretrained`.

    Returns:
        The tokenizer.

    Raises:
        CheckpointError: When it needs code of its own.
    """
    from transformers import AutoTokenizer

    with own_code_refused(folder):
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )


def _named(folder: Path) -> str:
    """Which code a folder names, as a parenthesis; empty if it names none in `auto_map`."""
    for file in ("config.json", "tokenizer_config.json"):
        named = _settings(folder / file).get("auto_map")
        if named:
            first = next(iter(named.values())) if isinstance(named, dict) else named
            return (
                f" (auto_map in {file}: {first if isinstance(first, str) else json.dumps(first)})"
            )
    return ""


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none, as whoever loads it says in better words."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
