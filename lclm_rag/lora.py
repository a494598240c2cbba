"""LoRA weights in place of a model's own: their base is found, and they are merged into it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lclm_rag.cache import in_cache, make_in_cache
from lclm_rag.checkpoint_files import LORA_CONFIG, LORA_WEIGHTS, model_weights
from lclm_rag.errors import CheckpointError
from lclm_rag.hub import fetch, is_hub_id

__all__ = ["Lora"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lora:
    """LoRA weights as peft saves them.

    Attributes:
        folder: The folder with `adapter_config.json` and `adapter_model.safetensors`.
        checkpoint: The checkpoint's folder.
        base: The base model, as `adapter_config.json` names it: a folder, absolute or relative to one of
            these two, or a hub id.
        revision: The base's revision on the hub; None for the newest.
    """

    folder: Path
    checkpoint: Path
    base: str
    revision: str | None

    @classmethod
    def of(cls, folder: Path, checkpoint: Path) -> Lora | None:
        """Read which base the LoRA weights in a folder belong to.

        Args:
            folder: The folder of a model.
            checkpoint: The checkpoint's folder.

        Returns:
            The LoRA weights; None if the folder is of a model with weights of its own.

        Raises:
            CheckpointError: When the folder has both, or `adapter_config.json` names no base.
        """
        config, weights = folder / LORA_CONFIG, folder / LORA_WEIGHTS
        if not config.is_file() and not weights.is_file():
            return None
        if model_weights(folder):
            raise CheckpointError(
                f"{folder} has both LoRA weights and weights of its own; remove what does not belong to the "
                "checkpoint."
            )
        try:
            settings = json.loads(config.read_text("utf-8"))
            base, revision = settings["base_model_name_or_path"], settings.get("revision")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{config} does not name the base of LoRA weights.") from error
        if not isinstance(base, str) or not base or not isinstance(revision, str | None):
            raise CheckpointError(f"{config} does not name the base of LoRA weights.")
        return cls(folder, checkpoint, base, revision)

    @cached_property
    def base_with_config(self) -> Path:
        """The base's folder; on the hub, only its config is fetched."""
        return self._base("config.json", "generation_config.json")

    @cached_property
    def base_with_weights(self) -> Path:
        """The base's folder, with its weights."""
        return self._base("*.json", "*.safetensors")

    @property
    def files(self) -> list[Path]:
        """All files that decide the merged weights."""
        base = self.base_with_weights
        own = [self.folder / LORA_CONFIG, self.folder / LORA_WEIGHTS]
        return [*own, base / "config.json", *model_weights(base)]

    def merged(self, auto_class: Any) -> Path:
        """Merge the weights into the base, once: the result stays in the cache.

        The merged weights are float32, so that nothing is rounded twice. Merging needs memory and disk for
        them.

        Args:
            auto_class: The transformers class that loads the base.

        Returns:
            A folder with the merged weights and the tokenizer.

        Raises:
            CheckpointError: When the base is not found, or the weights do not fit it.
            ImportError: When peft is not installed: pip install 'lclm-rag[lora]'.
        """
        digest = self._digest(auto_class.__name__)
        if (merged := in_cache("merged", digest)) is not None:
            return merged
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"The LoRA weights in {self.folder} need peft: pip install 'lclm-rag[lora]'."
            ) from error
        _log.info("The LoRA weights in %s are merged into %s, once.", self.folder, self.base)

        def write(folder: Path) -> None:
            self._merge(auto_class).save_pretrained(folder)
            for path in self.folder.iterdir():
                if path.is_file() and path.name not in (LORA_CONFIG, LORA_WEIGHTS):
                    shutil.copyfile(path, folder / path.name)

        return make_in_cache("merged", digest, write)

    @property
    def base_is_fetched(self) -> bool:
        """Whether the base is on the hub, and no folder."""
        return self._base_folder is None and is_hub_id(self.base)

    @cached_property
    def _base_folder(self) -> Path | None:
        # An absolute path replaces what it is joined to.
        for folder in (self.folder / self.base, self.checkpoint / self.base):
            if (folder / "config.json").is_file():
                return folder
        return None

    def _base(self, *patterns: str) -> Path:
        if self._base_folder is not None:
            return self._base_folder
        reason = "there is no such folder with a config.json"
        if is_hub_id(self.base):
            options = {} if self.revision is None else {"revision": self.revision}
            try:
                return fetch(
                    self.base, allow_patterns=list(patterns), ignore_patterns=["*/*"], **options
                )
            except OSError as error:
                reason += f", and the hub does not give it ({error})"
        raise CheckpointError(
            f"The LoRA weights in {self.folder} belong to {self.base}, which is not to be had: {reason}."
        )

    def _digest(self, kind: str) -> str:
        """A name for the merged weights, from the LoRA weights and from when the base was last written."""
        digest = hashlib.sha256(kind.encode())
        base = self.base_with_weights
        for path in (base / "config.json", *model_weights(base)):
            facts = path.resolve().stat()
            digest.update(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode())
        for path in sorted(self.folder.iterdir()):
            if path.is_file():
                digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def _merge(self, auto_class: Any) -> Any:
        import peft
        import torch
        from safetensors.torch import load_file

        from lclm_rag.torch_setup import load_transformers_model

        cpu = torch.device("cpu")
        model = load_transformers_model(auto_class, self.base_with_weights, cpu, torch.float32)
        weights = load_file(self.folder / LORA_WEIGHTS)
        for name, tensor in weights.items():
            # Tokens were added: peft saves the whole table.
            if name.endswith("embed_tokens.weight"):
                model.resize_token_embeddings(len(tensor), mean_resizing=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Of names, and of what is checked here.
                config = peft.PeftConfig.from_pretrained(str(self.folder))
                config.task_type = None  # It only says which methods the wrapped model has.
                wrapped = peft.get_peft_model(model, config)
                report = peft.set_peft_model_state_dict(wrapped, weights)
                self._check(wrapped, report)
                merged = wrapped.merge_and_unload(safe_merge=True)
        except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
            # torch has a heading before the first mismatch.
            raise self._misfit("\n".join(str(error).splitlines()[:2])) from error
        head = merged.get_output_embeddings()
        table = merged.get_input_embeddings()
        if head is not None and head.weight.data_ptr() != table.weight.data_ptr():
            merged.config.tie_word_embeddings = False  # Only one of the two was trained.
        return merged

    def _check(self, wrapped: Any, report: Any) -> None:
        """Refuse weights that peft did not use, and those that it made up."""
        # peft saves a table that was both resized and trained under these names, too.
        copies = ("modules_to_save", "original_module")
        unknown = [n for n in report.unexpected_keys if not any(copy in n for copy in copies)]
        if unknown:
            raise self._misfit(f"it has no place for {unknown[0]}")
        named = dict(wrapped.named_parameters(remove_duplicate=False))
        marks = ("lora_", "modules_to_save", "trainable_tokens")
        missing = {n for n in report.missing_keys if any(mark in n for mark in marks)}
        loaded = {id(parameter) for name, parameter in named.items() if name not in missing}
        made_up = sorted(name for name in missing if id(named.get(name)) not in loaded)
        if made_up:
            raise self._misfit(f"{made_up[0]} is missing")

    def _misfit(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"The LoRA weights in {self.folder} do not fit {self.base}: {' '.join(reason.split())}."
        )
