"""A checkpoint: encoder, adapter and decoder in the published folder format.

```
model_config.json        compression_ratio, encoder_window_size, pooling, ...
encoder/                 transformers format, with its tokenizer
adapter/adapter.safetensors
decoder/                 transformers format, with its tokenizer and chat template
```

Opening one reads headers only, so that a wrong folder is refused before any weight is loaded; torch is
not imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from lclm_rag.errors import CheckpointError
from lclm_rag.hub import fetch, is_hub_id

__all__ = [
    "BUNDLED",
    "MEMORY",
    "MEMORY_END",
    "MEMORY_START",
    "Checkpoint",
    "ModelConfig",
    "Pooling",
    "Space",
]

Pooling = Literal["mean", "concat", "eos"]
Space = Literal["encoder", "decoder"]

MEMORY_START = "<|memory_start|>"
MEMORY = "<|memory|>"
MEMORY_END = "<|memory_end|>"
_MEMORY_TOKENS = (MEMORY_START, MEMORY, MEMORY_END)

BUNDLED = "bundled"
"""The name of the small checkpoint that comes with the package."""


@dataclass(frozen=True)
class ModelConfig:
    """The contents of `model_config.json`. Units are tokens of the encoder's tokenizer.

    Attributes:
        compression_ratio: Source tokens that one latent stands for.
        encoder_window_size: Tokens that the encoder reads at once; a multiple of `compression_ratio`.
        pooling: How a group of hidden states becomes one latent.
        encoder_mask_type: The encoder's attention mask; only "causal" is supported.
        boundary_overlap: Tokens of the previous window that are read again, as context only.
        adapter_type: The adapter's architecture; only "mlp" is supported.
    """

    compression_ratio: int
    encoder_window_size: int
    pooling: Pooling
    encoder_mask_type: str
    boundary_overlap: int
    adapter_type: str

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """Read and check a `model_config.json`.

        Args:
            path: The file.

        Returns:
            The checked configuration.

        Raises:
            CheckpointError: When the file cannot be read, lacks a setting, or has one that is not supported.
        """
        raw = _read_json(path)
        missing = [f.name for f in fields(cls) if f.name not in raw]
        if missing:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}.")
        config = cls(**{f.name: raw[f.name] for f in fields(cls)})
        config._check(path)
        return config

    def _check(self, path: Path) -> None:
        for name in ("compression_ratio", "encoder_window_size", "boundary_overlap"):
            value, least = getattr(self, name), 0 if name == "boundary_overlap" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise CheckpointError(
                    f"{path}: {name} must be a whole number of at least {least}, not {value!r}."
                )
        if self.encoder_window_size % self.compression_ratio:
            raise CheckpointError(
                f"{path}: encoder_window_size {self.encoder_window_size} is not a multiple of "
                f"compression_ratio {self.compression_ratio}."
            )
        supported = {
            "pooling": ("mean", "concat", "eos"),
            "encoder_mask_type": ("causal",),
            "adapter_type": ("mlp",),
        }
        for name, values in supported.items():
            if getattr(self, name) not in values:
                raise CheckpointError(
                    f"{path}: {name} {getattr(self, name)!r} is not supported; supported: "
                    f"{', '.join(values)}."
                )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that was checked when it was opened.

    Attributes:
        name: What the user asked for: a folder, a hub id, or "bundled".
        path: The folder.
        config: The contents of `model_config.json`.
    """

    name: str
    path: Path
    config: ModelConfig

    @property
    def lasting_name(self) -> str:
        """The name, made valid from any working directory: a folder becomes an absolute path."""
        path = Path(self.name).expanduser()
        is_folder = self.name != BUNDLED and path.is_dir()
        return str(path.resolve()) if is_folder else self.name

    @classmethod
    def open(cls, name_or_path: str | Path | Checkpoint = BUNDLED) -> Checkpoint:
        """Find a checkpoint and check that it is complete. No weights are loaded.

        Args:
            name_or_path: A folder, a hub id (fetched if it is not in the cache), or "bundled" for the small
                checkpoint that comes with the package. A `Checkpoint` is returned as it is.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: When it cannot be found, a file or a tensor is missing or has the wrong shape, a
                setting is not supported, or the decoder's tokenizer lacks the memory tokens.
        """
        if isinstance(name_or_path, Checkpoint):
            return name_or_path
        name = str(name_or_path)
        path = _find(name)
        checkpoint = cls(name, path, ModelConfig.read(path / "model_config.json"))
        checkpoint._check_weights()
        checkpoint._check_tokenizers()
        return checkpoint

    # --- sizes ----------------------------------------------------------------------------------

    @cached_property
    def encoder_config(self) -> dict[str, Any]:
        """The encoder's config.json."""
        return _read_json(self.path / "encoder" / "config.json")

    @cached_property
    def decoder_config(self) -> dict[str, Any]:
        """The decoder's config.json."""
        return _read_json(self.path / "decoder" / "config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """The decoder's generation_config.json; empty if there is no such file."""
        path = self.path / "decoder" / "generation_config.json"
        return _read_json(path) if path.is_file() else {}

    @property
    def encoder_width(self) -> int:
        """Width of a latent before the adapter; `concat` pooling keeps the whole group side by side."""
        width = int(self.encoder_config["hidden_size"])
        return width * self.config.compression_ratio if self.config.pooling == "concat" else width

    @property
    def decoder_width(self) -> int:
        """Width of a latent after the adapter: that of the decoder's token embeddings."""
        return int(self.decoder_config["hidden_size"])

    @cached_property
    def adapter_width(self) -> int:
        """Width between the adapter's two layers."""
        return _tensor_shapes([self.path / "adapter" / "adapter.safetensors"])["fc1.bias"][0]

    def width(self, space: Space) -> int:
        """The width of a latent.

        Args:
            space: "encoder" for latents before the adapter, "decoder" for latents after it.

        Returns:
            The number of values in a latent.
        """
        return self.encoder_width if space == "encoder" else self.decoder_width

    @property
    def context_length(self) -> int:
        """Positions that the decoder can hold, prompt and answer together."""
        return int(self.decoder_config["max_position_embeddings"])

    # --- tokenizers -----------------------------------------------------------------------------

    @cached_property
    def encoder_tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer; special tokens in a text are plain letters to it."""
        return _tokenizer(self.path / "encoder" / "tokenizer.json", inert=True)

    @cached_property
    def encoder_markup_tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer with special tokens, for prompts whose markup the caller writes."""
        return _tokenizer(self.path / "encoder" / "tokenizer.json", inert=False)

    def encoder_token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts for the encoder, on all cores. Special tokens in a text are plain letters.

        Args:
            texts: The texts.

        Returns:
            The encoder token ids of each text.
        """
        encoded = self.encoder_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in encoded]

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Find where the encoder tokens of a text are. Special tokens in the text are plain letters.

        Args:
            text: The text.

        Returns:
            The character span of each token, in order.
        """
        return list(self.encoder_tokenizer.encode(text, add_special_tokens=False).offsets)

    def token_offsets_of(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Call `token_offsets` for many texts, on all cores.

        Args:
            texts: The texts.

        Returns:
            For each text, the character span of each of its tokens.
        """
        encoded = self.encoder_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [list(each.offsets) for each in encoded]

    @cached_property
    def decoder_tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer with special tokens: for our own markup, never for text from outside."""
        return _tokenizer(self.path / "decoder" / "tokenizer.json", inert=False)

    @cached_property
    def inert_decoder_tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer; special tokens in a document or question are plain letters to it."""
        return _tokenizer(self.path / "decoder" / "tokenizer.json", inert=True)

    @property
    def placeholder_id(self) -> int:
        """The id of `<|memory|>`, the token at each position that a latent takes."""
        found = self.decoder_tokenizer.token_to_id(MEMORY)
        if found is None:
            raise CheckpointError(
                f"The tokenizer in {self.path / 'decoder'} has no token {MEMORY}."
            )
        return int(found)

    @cached_property
    def chat_tokenizer(self) -> Any:
        """The decoder's tokenizer as transformers loads it, for chat templates and for decoding answers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path / "decoder", local_files_only=True)

    # --- identity -------------------------------------------------------------------------------

    def fingerprint(self, space: Space) -> str:
        """Identify the latents that this checkpoint makes.

        It covers the encoder's weights, config and tokenizer, and model_config.json; in decoder space the
        adapter too. The decoder is not covered: it can be swapped.

        Args:
            space: The space of the latents.

        Returns:
            16 hex digits that change with anything that changes a latent in `space`.
        """
        return self._encoder_fingerprint if space == "encoder" else self._latent_fingerprint

    @cached_property
    def _encoder_fingerprint(self) -> str:
        encoder = self.path / "encoder"
        files = [self.path / "model_config.json", encoder / "config.json"]
        files += [encoder / "tokenizer.json", *_weight_files(encoder)]
        return _hash_files(files)

    @cached_property
    def _latent_fingerprint(self) -> str:
        adapter = _hash_files([self.path / "adapter" / "adapter.safetensors"])
        return hashlib.sha256((self._encoder_fingerprint + adapter).encode()).hexdigest()[:16]

    @cached_property
    def decoder_fingerprint(self) -> str:
        """16 hex digits that change with anything that changes how the decoder answers a prompt.

        They cover the adapter and the decoder's weights, config, tokenizer and chat template.
        """
        decoder = self.path / "decoder"
        files = [self.path / "adapter" / "adapter.safetensors", *_weight_files(decoder)]
        files += sorted(decoder.glob("*.json")) + sorted(decoder.glob("*.jinja"))
        return _hash_files(files)

    # --- checks ---------------------------------------------------------------------------------

    def _check_weights(self) -> None:
        for part in ("encoder", "decoder"):
            folder = self.path / part
            _require(folder / "config.json", self.path)
            if not _weight_files(folder):
                raise CheckpointError(
                    f"{folder} has no *.safetensors file; the weights are missing."
                )
        width = int(self.encoder_config["hidden_size"])
        self._check_adapter()
        table = _tensor_shapes(_weight_files(self.path / "encoder"))
        embeddings = [s for n, s in table.items() if n.endswith("embed_tokens.weight")]
        if embeddings and embeddings[0][1] != width:
            raise CheckpointError(
                f"{self.path / 'encoder'}: embeddings are {embeddings[0][1]} wide, config.json says "
                f"hidden_size {width}."
            )

    def _check_adapter(self) -> None:
        path = self.path / "adapter" / "adapter.safetensors"
        _require(path, self.path)
        shapes = _tensor_shapes([path])
        encoder, decoder = self.encoder_width, self.decoder_width
        hidden = shapes.get("fc1.bias", [decoder])[0]
        expected = {
            "norm.weight": [encoder],
            "fc1.weight": [hidden, encoder],
            "fc1.bias": [hidden],
            "fc2.weight": [decoder, hidden],
            "fc2.bias": [decoder],
        }
        for name, shape in expected.items():
            if name not in shapes:
                raise CheckpointError(f"{path} lacks the tensor {name}; it is no MLP adapter.")
            if shapes[name] != shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {shapes[name]}, but encoder and decoder need {shape}."
                )
        unknown = sorted(shapes.keys() - expected.keys())
        if unknown:
            raise CheckpointError(
                f"{path}: unknown tensor {unknown[0]}; only MLP adapters are supported."
            )

    def _check_tokenizers(self) -> None:
        _require(self.path / "encoder" / "tokenizer.json", self.path)
        if not (self.path / "decoder" / "tokenizer.json").is_file():
            base = self.decoder_config.get("_name_or_path") or "Qwen/Qwen3-4B-Instruct-2507"
            raise CheckpointError(
                f"{self.path / 'decoder'} has no tokenizer. Fetch that of {base} (hf download {base} "
                f"tokenizer.json tokenizer_config.json --local-dir {self.path / 'decoder'}) and add the "
                f"tokens {' '.join(_MEMORY_TOKENS)} to it."
            )
        for token in _MEMORY_TOKENS:
            if self.decoder_tokenizer.token_to_id(token) is None:
                raise CheckpointError(
                    f"The tokenizer in {self.path / 'decoder'} has no token {token}; an LCLM decoder "
                    f"needs {', '.join(_MEMORY_TOKENS)}."
                )


def _find(name: str) -> Path:
    if name == BUNDLED:
        return Path(str(resources.files("lclm_rag") / "checkpoints" / "tiny-lclm-4x"))
    path = Path(name).expanduser()
    if path.is_dir():
        _require(path / "model_config.json", path)
        return path
    if not is_hub_id(name):
        raise CheckpointError(
            f"There is no checkpoint folder {name!r}; give a folder, a hub id such as "
            f"latent-context/0.6b-4b-LCLM-16x, or {BUNDLED!r}."
        )
    try:
        return fetch(name)
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint {name!r} is neither a folder nor could it be fetched from the hub: {error}."
        ) from error


def _require(path: Path, checkpoint: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint: {path.relative_to(checkpoint)} is missing."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return value


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _tensor_shapes(files: list[Path]) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as f:
                shapes |= {name: f.get_slice(name).get_shape() for name in f.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error
    return shapes


def _tokenizer(path: Path, *, inert: bool) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception.
        raise CheckpointError(f"{path} is not a readable tokenizer: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = inert
    return tokenizer


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]
