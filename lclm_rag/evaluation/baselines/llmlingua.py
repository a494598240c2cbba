"""LLMLingua-2: shortens a passage's text to as many decoder tokens as its latents take.

```python
compressor = TextCompressor(checkpoint.inert_decoder_tokenizer)
short = compressor.compress(passage.text, budget=passage.n_latents)
```

A classifier estimates for each word how likely it is to be needed, and the likeliest stay (LLMLingua-2,
arXiv 2403.12968). The package `llmlingua` does that here. Its own loading is not used, because it runs code
from the hub by default, makes up missing weights, seeds every random state of the process and fetches
OpenAI's vocabulary to count tokens. Here the decoder's tokenizer counts tokens; the package weighs long words
against short ones by these counts when it looks for the threshold.

Needs `pip install 'lclm-rag[llmlingua]'`.
"""

from __future__ import annotations

import importlib
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from lclm_rag.errors import CheckpointError, CompressionError
from lclm_rag.hub import fetch, is_hub_id
from lclm_rag.own_code import load_tokenizer, refuse_own_code
from lclm_rag.prompting.template import plain_ids
from lclm_rag.torch_setup import load_transformers_model, resolve_device

__all__ = ["PUBLISHED_MODEL", "CompressedText", "TextCompressor"]

PUBLISHED_MODEL = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"

# The package infers from the model's name how its tokenizer marks word starts. A folder may have any name, so
# it gets one of these.
_NAMES = {"xlm-roberta": "xlm-roberta-large", "bert": "bert-base-multilingual-cased"}
_WINDOW = 512  # Tokens in each input of the classifier; the package pads to this length.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # No pickled weights.


@dataclass(frozen=True)
class CompressedText:
    """A shortened text.

    Attributes:
        text: The text that is left.
        tokens: Its length in tokens of the decoder's tokenizer; the marks of special tokens count as plain
            text.
        rate: The share of tokens that LLMLingua-2 was set to keep; 1 if the text fitted unchanged.
    """

    text: str
    tokens: int
    rate: float


class TextCompressor:
    """LLMLingua-2 with one classifier, for texts that go to one decoder.

    The classifier is loaded in float32, which the package needs.

    Args:
        decoder_tokenizer: The decoder's tokenizer with `encode_special_tokens` set, as
            `Checkpoint.inert_decoder_tokenizer` has it.
        model: A folder or a hub id of an XLM-RoBERTa or BERT that was trained for LLMLingua-2.
        device: The classifier's device; "auto" is CUDA if there is any.
        keep_digits: Whether tokens with a digit are never dropped (the package's `force_reserve_digit`).

    Raises:
        ImportError: When the package `llmlingua` is missing.
        CheckpointError: When the model cannot be found or is not such a classifier.
        ValueError: When the device does not exist.
    """

    def __init__(
        self,
        decoder_tokenizer: Tokenizer,
        model: str | Path = PUBLISHED_MODEL,
        *,
        device: str = "auto",
        keep_digits: bool = False,
    ) -> None:
        self._tokenizer = decoder_tokenizer
        self._keep_digits = keep_digits
        self._package = _package(decoder_tokenizer, _find(str(model)), resolve_device(device))

    def compress(self, text: str, budget: int) -> CompressedText:
        """Shorten a text to at most `budget` decoder tokens by leaving out the least needed words.

        The result is as close to the budget as the package's steps of one percent allow. With a small budget,
        nothing may be left. A text that fits is returned unchanged.

        Args:
            text: The text.
            budget: The most tokens of the decoder's tokenizer that may be left, at least 1.

        Raises:
            ValueError: When the budget is below 1.
            CompressionError: When the budget cannot be met (for example because of too many digits to keep),
                or LLMLingua-2 sees no words in the text.
        """
        if budget < 1:
            raise ValueError(f"The budget must be at least 1 token, not {budget}.")
        whole = CompressedText(text, self._count(text), 1.0)
        if whole.tokens <= budget:
            return whole
        dropping = cache(lambda percent: self._dropping(text, percent))
        # The length falls as the percentage grows, so a binary search applies.
        percent = bisect_left(range(100), True, key=lambda p: dropping(p).tokens <= budget)
        if percent == 100:
            raise CompressionError(
                f"LLMLingua-2 cannot bring a text of {whole.tokens} tokens down to {budget}; the least it "
                f"came to is {dropping(99).tokens}."
            )
        return dropping(percent)

    def _dropping(self, text: str, percent: int) -> CompressedText:
        """The text that is left when the package drops `percent` percent, and one more that it adds."""
        # Half a percent off the edge at which the package truncates to whole percents.
        rate = 1 - (percent + 0.5) / 100
        try:
            done = self._package.compress_prompt_llmlingua2(
                [text], rate=rate, force_reserve_digit=self._keep_digits
            )
        except IndexError as error:
            raise CompressionError(f"LLMLingua-2 sees no words in {text[:40]!r}.") from error
        shortened = str(done["compressed_prompt"])
        return CompressedText(shortened, self._count(shortened), rate)

    def _count(self, text: str) -> int:
        return len(plain_ids(self._tokenizer, text))


def _package(decoder_tokenizer: Tokenizer, folder: Path, device: torch.device) -> Any:
    """Make the package's PromptCompressor without its `__init__` (see the module's docstring)."""
    try:
        made = importlib.import_module("llmlingua").PromptCompressor
    except ImportError as error:
        raise ImportError(
            "LLMLingua-2 needs the package llmlingua: pip install 'lclm-rag[llmlingua]'"
        ) from error
    from transformers import AutoConfig, AutoModelForTokenClassification

    refuse_own_code(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _check(config, folder)
    model = load_transformers_model(AutoModelForTokenClassification, folder, device, torch.float32)
    package = made.__new__(made)
    package.model, package.device = model, str(device)
    package.model_name = _NAMES[config.model_type]
    package.tokenizer = load_tokenizer(folder)
    package.special_tokens = set(package.tokenizer.all_special_tokens)
    package.added_tokens, package.max_force_token = list[str](), 0
    package.max_batch_size, package.max_seq_len = 50, _WINDOW
    package.oai_tokenizer = _Counting(decoder_tokenizer)
    return package


@dataclass(frozen=True)
class _Counting:
    """Replaces OpenAI's tokenizer in the package, which uses it only to count tokens."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        # Strip XLM-RoBERTa's mark of a word start, which is not part of the text.
        return plain_ids(self.tokenizer, text.lstrip("▁"))


def _check(config: Any, folder: Path) -> None:
    if config.model_type not in _NAMES:
        raise CheckpointError(
            f"The model in {folder} is of type {config.model_type}; LLMLingua-2 knows "
            f"{' and '.join(_NAMES)}."
        )
    if config.num_labels != 2:
        raise CheckpointError(
            f"The model in {folder} tells {config.num_labels} labels apart; LLMLingua-2's has 2: drop, keep."
        )
    # RoBERTa counts positions from the one after its padding token's id.
    first = config.pad_token_id + 1 if config.model_type == "xlm-roberta" else 0
    if config.max_position_embeddings - first < _WINDOW:
        raise CheckpointError(
            f"The model in {folder} reads {config.max_position_embeddings - first} tokens at once; "
            f"LLMLingua-2 gives it {_WINDOW}."
        )


def _find(model: str) -> Path:
    """A folder with safetensors; a name that is no folder is fetched from the hub."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if not is_hub_id(model):
            raise CheckpointError(
                f"There is no folder {model!r}; give a folder or a hub id such as {PUBLISHED_MODEL}."
            )
        try:
            folder = fetch(model, allow_patterns=_FILES)
        except OSError as error:
            raise CheckpointError(
                f"The model {model!r} is neither a folder nor could it be fetched: {error}."
            ) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} is not a model's folder: it needs config.json and weights as safetensors."
        )
    return folder
