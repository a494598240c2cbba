"""The tokenizer of a start: its files, and the memory tokens in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lclm_rag.checkpoint import MEMORY, MEMORY_END, MEMORY_START
from lclm_rag.errors import CheckpointError
from lclm_rag.own_code import load_tokenizer

__all__ = ["name_memory_tokens", "take_tokenizer"]

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_VOCABULARIES = ("tokenizer.model", "vocab.json", "vocab.txt")
"""Files that transformers makes a `tokenizer.json` from."""


def take_tokenizer(source: Path, target: Path, *, chat: bool) -> None:
    """Copy the files of a model's tokenizer.

    Args:
        source: The model's folder.
        target: Where they go.
        chat: Whether the tokenizer must have a chat template.

    Raises:
        CheckpointError: When there is no tokenizer, or no chat template though there must be one.
    """
    if not any((source / name).is_file() for name in ("tokenizer.json", *_VOCABULARIES)):
        raise CheckpointError(f"{source} has no tokenizer: tokenizer.json is missing.")
    try:
        tokenizer = load_tokenizer(source)
    except CheckpointError:
        raise
    except Exception as error:  # It raises what the tokenizer's own parts raise.
        raise CheckpointError(f"The tokenizer in {source} cannot be loaded: {error}") from error
    if chat and not tokenizer.chat_template:
        raise CheckpointError(
            f"The tokenizer in {source} has no chat template; start from a model that was trained for chat."
        )
    target.mkdir(parents=True, exist_ok=True)
    if not (source / "tokenizer.json").is_file():
        tokenizer.save_pretrained(target)
        if not (target / "tokenizer.json").is_file():
            raise CheckpointError(
                f"The tokenizer in {source} cannot be written as a tokenizer.json."
            )
        return
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def name_memory_tokens(folder: Path) -> dict[str, str | None]:
    """See to it that a tokenizer has the memory tokens.

    Special tokens that nothing uses are renamed, those with the highest ids. Nothing uses a token if it is
    not in the chat template, does not end, begin or fill anything, and is not added to texts. If there are
    not enough of them, the memory tokens are added.

    Args:
        folder: A model's folder, with the files of its tokenizer and its configuration.

    Returns:
        For each memory token that was not there: the token that was renamed, or None if it was added.
    """
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    wanted = (MEMORY_START, MEMORY, MEMORY_END)
    missing = [token for token in wanted if tokenizer.token_to_id(token) is None]
    spare = _spare_tokens(folder)
    if len(spare) < len(missing):
        tokenizer.add_special_tokens(missing)
        tokenizer.save(str(path))
        return dict.fromkeys(missing)
    renamed = dict(zip(spare[len(spare) - len(missing) :], missing, strict=True))
    for name in _FILES:
        file = folder / name
        if renamed and file.suffix == ".json" and file.is_file():
            written = _renamed(json.loads(file.read_text("utf-8")), renamed)
            file.write_text(json.dumps(written, ensure_ascii=False, indent=2) + "\n", "utf-8")
    return {new: old for old, new in renamed.items()}


def _spare_tokens(folder: Path) -> list[str]:
    """Special tokens that nothing uses, by their ids."""
    loaded = load_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    used_text = json.dumps([loaded.chat_template, tokenizer.get("post_processor")])
    named = {getattr(loaded, f"{role}_token", None) for role in _ROLES}
    numbered: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text("utf-8"))
            for key, value in config.items():
                if key.endswith("_token_id"):
                    numbered.update(value if isinstance(value, list) else [value])
    return [
        token["content"]
        for token in sorted(tokenizer.get("added_tokens", []), key=lambda token: token["id"])
        if token["special"]
        and token["content"] not in named
        and token["id"] not in numbered
        and json.dumps(token["content"])[1:-1] not in used_text
    ]


_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """A JSON value in which the strings in `names` are replaced, keys included."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(each, names) for key, each in value.items()}
    return value
