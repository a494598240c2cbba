"""LLMLingua-2: a passage's text made shorter, to as many of the decoder's tokens as its latents take.

```python
compressor = TextCompressor(checkpoint.inert_decoder_tokenizer)
short = compressor.compress(passage.text, budget=passage.n_latents)
```

A classifier says of each word how likely it is to be needed, and the likeliest stay (LLMLingua-2,
arXiv 2403.12968). The package `llmlingua` does that here; what it does otherwise is left out: its own
loading runs code from the hub by default, makes up weights that are missing, seeds every random state of the
process and fetches OpenAI's vocabulary to count tokens. Tokens are counted by the decoder's tokenizer, which
in the package weighs a long word against a short one when it looks for the threshold.

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
from lclm_rag.prompting.template import plain_ids
from lclm_rag.torch_setup import load_transformers_model, resolve_device

__all__ = ["PUBLISHED_MODEL", "CompressedText", "TextCompressor"]

PUBLISHED_MODEL = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"

# By its name the package knows how a tokenizer marks where words begin; a folder may be called anything.
_NAMES = {"xlm-roberta": "xlm-roberta-large", "bert": "bert-base-multilingual-cased"}
_WINDOW = 512  # Tokens that the package hands the classifier at once, padded up to it.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # No pickled weights.


@dataclass(frozen=True)
class CompressedText:
    """What is left of a text.

    tokens: of the decoder's tokenizer, special tokens as letters.
    rate: the share of tokens to keep that LLMLingua-2 was asked for; 1 where the text fitted as it was.
    """

    text: str
    tokens: int
    rate: float


class TextCompressor:
    """LLMLingua-2 with one classifier, for texts that go to one decoder."""

    def __init__(
        self,
        decoder_tokenizer: Tokenizer,
        model: str | Path = PUBLISHED_MODEL,
        *,
        device: str = "auto",
        keep_digits: bool = False,
    ) -> None:
        """Load the classifier, in float32 as the package needs it.

        decoder_tokenizer: with `encode_special_tokens` set, as `Checkpoint.inert_decoder_tokenizer` has it.
        model: a folder or a hub id of an XLM-RoBERTa or BERT that was trained for LLMLingua-2.
        device: "auto" is CUDA where there is one.
        keep_digits: never drop a token with a digit (the package's `force_reserve_digit`).

        Raises ImportError where the package is missing; CheckpointError where the model cannot be found or
        is not such a classifier; ValueError for a device that is not there.
        """
        self._tokenizer = decoder_tokenizer
        self._keep_digits = keep_digits
        self._package = _package(decoder_tokenizer, _find(str(model)), resolve_device(device))

    def compress(self, text: str, budget: int) -> CompressedText:
        """The text with its least needed words left out: as near to `budget` tokens of the decoder as the
        package's steps of one percent allow, and never above.

        Nothing may be left where the budget is small. A text that fits is given back as it is.
        Raises ValueError for a budget below 1, CompressionError where it cannot be met (too many digits to
        keep, say) or LLMLingua-2 sees no words in the text.
        """
        if budget < 1:
            raise ValueError(f"The budget must be at least 1 token, not {budget}.")
        whole = CompressedText(text, self._count(text), 1.0)
        if whole.tokens <= budget:
            return whole
        dropping = cache(lambda percent: self._dropping(text, percent))
        # The more is dropped, the less is left.
        percent = bisect_left(range(100), True, key=lambda p: dropping(p).tokens <= budget)
        if percent == 100:
            raise CompressionError(
                f"LLMLingua-2 cannot bring a text of {whole.tokens} tokens down to {budget}; the least it "
                f"came to is {dropping(99).tokens}."
            )
        return dropping(percent)

    def _dropping(self, text: str, percent: int) -> CompressedText:
        """What is left when the package drops that many percent, and one more: it adds one itself."""
        # Half a percent off the edge at which the package cuts to whole ones.
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
    """llmlingua's PromptCompressor, put together here instead of by its __init__ (see the module)."""
    try:
        made = importlib.import_module("llmlingua").PromptCompressor
    except ImportError as error:
        raise ImportError(
            "LLMLingua-2 needs the package llmlingua: pip install 'lclm-rag[llmlingua]'"
        ) from error
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    _check(config, folder)
    model = load_transformers_model(AutoModelForTokenClassification, folder, device, torch.float32)
    package = made.__new__(made)
    package.model, package.device = model, str(device)
    package.model_name = _NAMES[config.model_type]
    package.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    package.special_tokens = set(package.tokenizer.all_special_tokens)
    package.added_tokens, package.max_force_token = list[str](), 0
    package.max_batch_size, package.max_seq_len = 50, _WINDOW
    package.oai_tokenizer = _Counting(decoder_tokenizer)
    return package


@dataclass(frozen=True)
class _Counting:
    """Stands where the package has OpenAI's tokenizer, of which it only takes the length."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        # XLM-RoBERTa's mark of a beginning word; it is not in the text.
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
    # RoBERTa counts positions from behind its padding token's id.
    first = config.pad_token_id + 1 if config.model_type == "xlm-roberta" else 0
    if config.max_position_embeddings - first < _WINDOW:
        raise CheckpointError(
            f"The model in {folder} reads {config.max_position_embeddings - first} tokens at once; "
            f"LLMLingua-2 gives it {_WINDOW}."
        )


def _find(model: str) -> Path:
    """A folder with safetensors, fetched from the hub where the name is not a folder's."""
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
