"""A checkpoint: encoder, adapter and decoder in the published folder format.

```
model_config.json        compression_ratio, encoder_window_size, pooling, ...
encoder/                 transformers format, with its tokenizer
adapter/adapter.safetensors
decoder/                 transformers format, with its tokenizer and chat template
```

Opening one reads headers only, so that a wrong folder is refused before any weight is loaded; torch is
not imported here. Of a checkpoint on the hub the decoder's weights are fetched when a decoder is loaded.

Older checkpoints name the folders embedder/, projectors/ and llm/, or have the parts in checkpoint_N/, of
which the newest counts. An encoder or a decoder may consist of LoRA weights (`adapter_config.json` and
`adapter_model.safetensors`), with the base elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from lclm_rag.adapter_tensors import attention_config, attention_tensors, mlp_tensors
from lclm_rag.checkpoint_files import (
    ANSWERING,
    BUILDING,
    LORA_CONFIG,
    LORA_WEIGHTS,
    model_weights,
    newest,
    part_folder,
)
from lclm_rag.checks import check_unicode
from lclm_rag.english import english_folder
from lclm_rag.errors import CheckpointError
from lclm_rag.hub import fetch, is_hub_id
from lclm_rag.lora import Lora
from lclm_rag.own_code import load_tokenizer, refuse_own_code

__all__ = [
    "BUNDLED",
    "ENGLISH",
    "MEMORY",
    "MEMORY_END",
    "MEMORY_START",
    "OWN",
    "AdapterType",
    "Checkpoint",
    "MaskType",
    "ModelConfig",
    "Pooling",
    "Space",
]

Pooling = Literal["mean", "concat", "eos"]
Space = Literal["encoder", "decoder"]
MaskType = Literal["causal", "bidirectional"]
AdapterType = Literal["mlp", "attn_mlp", "mlp_attn"]

MEMORY_START = "<|memory_start|>"
MEMORY = "<|memory|>"
MEMORY_END = "<|memory_end|>"
_MEMORY_TOKENS = (MEMORY_START, MEMORY, MEMORY_END)

BUNDLED = "bundled"
"""The name of the small checkpoint that comes with the package; it knows made-up fact sheets."""

ENGLISH = "english"
"""The name of the checkpoint that reads English; see `lclm_rag.english` for what it needs."""

OWN = (BUNDLED, ENGLISH)
"""The names of checkpoints that are neither a folder of the user's nor on the hub."""


@dataclass(frozen=True)
class ModelConfig:
    """The contents of `model_config.json`. Units are tokens of the encoder's tokenizer.

    Attributes:
        compression_ratio: Source tokens that one latent stands for.
        encoder_window_size: Tokens that the encoder reads at once; a multiple of `compression_ratio`.
        pooling: How a group of hidden states becomes one latent.
        encoder_mask_type: Whether a token sees those before it ("causal") or its whole window
            ("bidirectional").
        boundary_overlap: Tokens of the previous window that are read again, as context only; with a
            bidirectional mask, of the next window, too.
        adapter_type: The adapter's architecture: an MLP, with attention layers before it ("attn_mlp"), after
            it ("mlp_attn") or without any ("mlp").
        num_adapter_layers: The number of attention layers; not used by "mlp".
        frame: The frame that the decoder was trained in, by name (`lclm_rag.prompting.frames`), or None. It
            changes no latent, so the fingerprint leaves it out.
    """

    compression_ratio: int
    encoder_window_size: int
    pooling: Pooling
    encoder_mask_type: MaskType
    boundary_overlap: int
    adapter_type: AdapterType
    num_adapter_layers: int = 1
    frame: str | None = None

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
        missing = [f.name for f in fields(cls) if f.name not in raw and f.default is MISSING]
        if missing:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}.")
        config = cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})
        config._check(path)
        return config

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.encoder_mask_type == "causal"

    def _check(self, path: Path) -> None:
        for name in (
            "compression_ratio",
            "encoder_window_size",
            "boundary_overlap",
            "num_adapter_layers",
        ):
            value, least = getattr(self, name), 0 if name == "boundary_overlap" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise CheckpointError(
                    f"{path}: {name} must be a whole number of at least {least}, not {value!r}."
                )
        if not isinstance(self.frame, str | None):
            raise CheckpointError(f"{path}: frame must be a name, not {self.frame!r}.")
        if self.encoder_window_size % self.compression_ratio:
            raise CheckpointError(
                f"{path}: encoder_window_size {self.encoder_window_size} is not a multiple of "
                f"compression_ratio {self.compression_ratio}."
            )
        supported = {
            "pooling": ("mean", "concat", "eos"),
            "encoder_mask_type": ("causal", "bidirectional"),
            "adapter_type": ("mlp", "attn_mlp", "mlp_attn"),
        }
        for name, values in supported.items():
            if getattr(self, name) not in values:
                raise CheckpointError(
                    f"{path}: {name} {getattr(self, name)!r} is not supported; supported: "
                    f"{', '.join(values)}."
                )
        if self.pooling == "concat" and self.adapter_type == "attn_mlp":
            raise CheckpointError(
                f"{path}: adapter_type 'attn_mlp' does not go with pooling 'concat': its attention layers "
                "are as wide as the encoder, a latent is wider."
            )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that was checked when it was opened.

    Attributes:
        name: What the user asked for: a folder, a hub id, "bundled" or "english".
        path: The folder.
        config: The contents of `model_config.json`.
        revision: The commit that was fetched from the hub; None for a folder.
    """

    name: str
    path: Path
    config: ModelConfig
    revision: str | None = None

    @property
    def lasting_name(self) -> str:
        """The name, made valid from any working directory: a folder becomes an absolute path."""
        path = Path(self.name).expanduser()
        is_folder = self.name not in OWN and path.is_dir()
        return str(path.resolve()) if is_folder else self.name

    @classmethod
    def open(cls, name_or_path: str | Path | Checkpoint = BUNDLED) -> Checkpoint:
        """Find a checkpoint and check that it is complete. No weights are loaded.

        Args:
            name_or_path: A folder, a hub id (fetched without the decoder's weights, unless it is in the
                cache), "bundled" for the small checkpoint that comes with the package and knows fact sheets,
                or "english" for the one that reads English. A `Checkpoint` is returned as it is.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: When it cannot be found, a file or a tensor is missing or has the wrong shape, a
                setting is not supported, the decoder's tokenizer lacks the memory tokens, or encoder, decoder
                or a tokenizer needs Python code of its own, which is never run.
        """
        if isinstance(name_or_path, Checkpoint):
            return name_or_path
        name = str(name_or_path)
        path, revision = _find(name)
        checkpoint = cls(name, path, ModelConfig.read(path / "model_config.json"), revision)
        checkpoint._check_weights()
        checkpoint._check_tokenizers()
        return checkpoint

    # --- folders --------------------------------------------------------------------------------

    @cached_property
    def encoder_folder(self) -> Path:
        """The encoder's folder in the checkpoint, with its tokenizer."""
        return part_folder(self.path, "encoder")

    @cached_property
    def adapter_file(self) -> Path:
        """The adapter's weights."""
        return part_folder(self.path, "adapter") / "adapter.safetensors"

    @cached_property
    def decoder_folder(self) -> Path:
        """The decoder's folder in the checkpoint, with its tokenizer. Its weights may not be there yet."""
        return part_folder(self.path, "decoder")

    @cached_property
    def encoder_lora(self) -> Lora | None:
        """The encoder's LoRA weights, if it has no others."""
        return Lora.of(self.encoder_folder, self.path)

    @cached_property
    def decoder_lora(self) -> Lora | None:
        """The decoder's LoRA weights, if it has no others."""
        return Lora.of(self.decoder_folder, self.path)

    @cached_property
    def encoder_model_folder(self) -> Path:
        """The folder from which the encoder can be loaded. LoRA weights are merged first, once.

        Raises:
            CheckpointError: When LoRA weights do not fit their base, or the base cannot be found.
            ImportError: When there are LoRA weights, but peft is not installed.
        """
        if self.encoder_lora is None:
            return self.encoder_folder
        from transformers import AutoModel

        return self.encoder_lora.merged(AutoModel)

    @cached_property
    def decoder_model_folder(self) -> Path:
        """The folder from which transformers, vLLM or a server can load the decoder.

        Its weights are fetched, if the checkpoint is on the hub, and LoRA weights are merged, once.

        Raises:
            CheckpointError: When the weights cannot be fetched, LoRA weights do not fit their base, or there
                are no embeddings for the memory tokens.
            ImportError: When there are LoRA weights, but peft is not installed.
        """
        self._fetch_decoder()
        if self.decoder_lora is None:
            return self.decoder_folder
        from transformers import AutoModelForCausalLM

        folder = self.decoder_lora.merged(AutoModelForCausalLM)
        embeddings = int(_read_json(folder / "config.json")["vocab_size"])
        for token in _MEMORY_TOKENS:
            number = self.decoder_tokenizer.token_to_id(token)
            if number is None or number >= embeddings:
                raise CheckpointError(
                    f"{self.decoder_folder}: {token} has no embedding, neither in {self.decoder_lora.base} "
                    "nor among the LoRA weights; save these with the embedding layer "
                    "(modules_to_save=['embed_tokens'])."
                )
        return folder

    def _fetch_decoder(self) -> None:
        """Fetch the decoder's weights, if the checkpoint is on the hub."""
        if self.revision is not None:
            try:
                fetch(self.name, allow_patterns=ANSWERING, revision=self.revision)
            except OSError as error:
                raise CheckpointError(
                    f"The decoder of {self.name} could not be fetched from the hub: {error}."
                ) from error
        _require_weights(self.decoder_folder)

    # --- sizes ----------------------------------------------------------------------------------

    @cached_property
    def encoder_config(self) -> dict[str, Any]:
        """The encoder's config.json; with LoRA weights, that of their base."""
        lora = self.encoder_lora
        return _read_json((lora.base_with_config if lora else self.encoder_folder) / "config.json")

    @cached_property
    def decoder_config(self) -> dict[str, Any]:
        """The decoder's config.json; with LoRA weights, that of their base."""
        lora = self.decoder_lora
        return _read_json((lora.base_with_config if lora else self.decoder_folder) / "config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """The decoder's generation_config.json; empty if there is no such file."""
        path = self.decoder_folder / "generation_config.json"
        if self.decoder_lora is not None and not path.is_file():
            path = self.decoder_lora.base_with_config / "generation_config.json"
        return _read_json(path) if path.is_file() else {}

    @property
    def vocabulary(self) -> int:
        """Token ids that the decoder knows. LoRA weights may add some to their base."""
        if self.decoder_lora is None:
            return int(self.decoder_config["vocab_size"])
        return int(_read_json(self.decoder_model_folder / "config.json")["vocab_size"])

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
        return _tensor_shapes([self.adapter_file])["fc1.bias"][0]

    @cached_property
    def adapter_shape(self) -> dict[str, Any]:
        """The arguments from which `lclm_rag.compression.adapter.Adapter` is made; JSON can hold them."""
        return {
            "encoder_width": self.encoder_width,
            "hidden_width": self.adapter_width,
            "decoder_width": self.decoder_width,
            "adapter_type": self.config.adapter_type,
            "num_layers": self.config.num_adapter_layers,
            "attention_config": self._attention_config,
        }

    @cached_property
    def _attention_config(self) -> dict[str, Any] | None:
        """What the adapter's attention layers are made from; None if it has none."""
        if self.config.adapter_type == "attn_mlp":
            return attention_config(self.encoder_config, "encoder")
        if self.config.adapter_type == "mlp_attn":
            return attention_config(self.decoder_config, "decoder")
        return None

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
        return _tokenizer(self.encoder_folder / "tokenizer.json", inert=True)

    @cached_property
    def encoder_markup_tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer with special tokens, for prompts whose markup the caller writes."""
        return _tokenizer(self.encoder_folder / "tokenizer.json", inert=False)

    def encoder_token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts for the encoder, on all cores. Special tokens in a text are plain letters.

        Args:
            texts: The texts.

        Returns:
            The encoder token ids of each text.

        Raises:
            ValueError: When a text cannot be written as UTF-8.
        """
        for number, text in enumerate(texts, start=1):
            check_unicode(text, f"Text {number} of {len(texts)}")
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

    @cached_property
    def decoder_tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer with special tokens: for our own markup, never for text from outside."""
        return _tokenizer(self.decoder_folder / "tokenizer.json", inert=False)

    @cached_property
    def inert_decoder_tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer; special tokens in a document or question are plain letters to it."""
        return _tokenizer(self.decoder_folder / "tokenizer.json", inert=True)

    @property
    def placeholder_id(self) -> int:
        """The id of `<|memory|>`, the token at each position that a latent takes."""
        found = self.decoder_tokenizer.token_to_id(MEMORY)
        if found is None:
            raise CheckpointError(f"The tokenizer in {self.decoder_folder} has no token {MEMORY}.")
        return int(found)

    @cached_property
    def chat_tokenizer(self) -> Any:
        """The decoder's tokenizer as transformers loads it, for chat templates and for decoding answers."""
        return load_tokenizer(self.decoder_folder)

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
        encoder = self.encoder_folder
        files = [encoder / "config.json", encoder / "tokenizer.json", *model_weights(encoder)]
        if self.encoder_lora is not None:
            files = [encoder / "tokenizer.json", *self.encoder_lora.files]
        return _hash_files(files, first=_without_frame(self.path / "model_config.json"))

    @cached_property
    def _latent_fingerprint(self) -> str:
        adapter = _hash_files([self.adapter_file])
        if self.config.adapter_type == "mlp_attn":
            # The decoder's config, too, changes what it computes.
            adapter += json.dumps(self._attention_config, sort_keys=True)
        return hashlib.sha256((self._encoder_fingerprint + adapter).encode()).hexdigest()[:16]

    @cached_property
    def decoder_fingerprint(self) -> str:
        """16 hex digits that change with anything that changes how the decoder answers a prompt.

        They cover the adapter and the decoder's weights, config, tokenizer and chat template.
        """
        decoder = self.decoder_folder
        self._fetch_decoder()
        files = [self.adapter_file, *model_weights(decoder)]
        files += [] if self.decoder_lora is None else self.decoder_lora.files
        files += sorted(decoder.glob("*.json")) + sorted(decoder.glob("*.jinja"))
        return _hash_files(files)

    # --- checks ---------------------------------------------------------------------------------

    def _check_weights(self) -> None:
        parts = ((self.encoder_folder, self.encoder_lora), (self.decoder_folder, self.decoder_lora))
        for folder, lora in parts:
            if lora is None:
                _require(folder / "config.json", self.path)
            else:
                refuse_own_code(lora.base_with_config)
            refuse_own_code(folder)
        _require_weights(self.encoder_folder)
        if self.revision is None:  # Else they are fetched when the decoder is loaded.
            _require_weights(self.decoder_folder)
        width = int(self.encoder_config["hidden_size"])
        self._check_adapter()
        table = _tensor_shapes(model_weights(self.encoder_folder))
        embeddings = [s for n, s in table.items() if n.endswith("embed_tokens.weight")]
        if embeddings and embeddings[0][1] != width:
            raise CheckpointError(
                f"{self.encoder_folder}: embeddings are {embeddings[0][1]} wide, config.json says "
                f"hidden_size {width}."
            )

    def _check_adapter(self) -> None:
        path, kind = self.adapter_file, self.config.adapter_type
        _require(path, self.path)
        shapes = _tensor_shapes([path])
        hidden = shapes.get("fc1.bias", [self.decoder_width])[0]
        expected = mlp_tensors(self.encoder_width, hidden, self.decoder_width)
        if self._attention_config is not None:
            expected |= attention_tensors(self._attention_config, self.config.num_adapter_layers)
        for name, shape in expected.items():
            if name not in shapes:
                raise CheckpointError(
                    f"{path} lacks the tensor {name} of an adapter of type {kind}."
                )
            if shapes[name] != shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {shapes[name]}, but encoder and decoder need {shape}."
                )
        unknown = sorted(shapes.keys() - expected.keys())
        if unknown:
            raise CheckpointError(
                f"{path}: unknown tensor {unknown[0]}, which an adapter of type {kind} does not have."
            )

    def _check_tokenizers(self) -> None:
        _require(self.encoder_folder / "tokenizer.json", self.path)
        if not (self.decoder_folder / "tokenizer.json").is_file():
            base = self.decoder_config.get("_name_or_path") or "Qwen/Qwen3-4B-Instruct-2507"
            raise CheckpointError(
                f"{self.decoder_folder} has no tokenizer. Fetch that of {base} (hf download {base} "
                f"tokenizer.json tokenizer_config.json --local-dir {self.decoder_folder}) and add the "
                f"tokens {' '.join(_MEMORY_TOKENS)} to it."
            )
        for token in _MEMORY_TOKENS:
            if self.decoder_tokenizer.token_to_id(token) is None:
                raise CheckpointError(
                    f"The tokenizer in {self.decoder_folder} has no token {token}; an LCLM decoder "
                    f"needs {', '.join(_MEMORY_TOKENS)}."
                )


def _find(name: str) -> tuple[Path, str | None]:
    """The folder with the parts, and the commit if it was fetched from the hub."""
    if name == BUNDLED:
        return Path(str(resources.files("lclm_rag") / "checkpoints" / "tiny-lclm-4x")), None
    if name == ENGLISH:
        return english_folder(), None
    path = Path(name).expanduser()
    if path.is_dir():
        path = newest(path)
        _require(path / "model_config.json", path)
        return path, None
    if not is_hub_id(name):
        raise CheckpointError(
            f"There is no checkpoint folder {name!r}; give a folder, a hub id such as "
            f"latent-context/0.6b-4b-LCLM-16x, {ENGLISH!r} or {BUNDLED!r}."
        )
    try:
        path = fetch(name, allow_patterns=BUILDING)
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint {name!r} is neither a folder nor could it be fetched from the hub: {error}."
        ) from error
    return path, path.name  # The cache names a snapshot's folder by its commit.


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


def _require_weights(folder: Path) -> None:
    """Refuse a model's folder without weights, be they its own or LoRA's."""
    is_lora = (folder / LORA_CONFIG).is_file()
    if not ((folder / LORA_WEIGHTS).is_file() if is_lora else model_weights(folder)):
        raise CheckpointError(f"{folder} has no *.safetensors file; the weights are missing.")


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


def _without_frame(path: Path) -> bytes:
    """The bytes of a `model_config.json`, or what they would be if it named no frame."""
    written, settings = path.read_bytes(), _read_json(path)
    if "frame" not in settings:
        return written
    del settings["frame"]
    return (json.dumps(settings, indent=2) + "\n").encode()


def _hash_files(files: list[Path], first: bytes | None = None) -> str:
    """A digest of files. first: contents that are hashed as if they were a file before the others."""
    digest = hashlib.sha256()
    if first is not None:
        digest.update(hashlib.sha256(first).digest())
    for path in files:
        with path.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:16]
