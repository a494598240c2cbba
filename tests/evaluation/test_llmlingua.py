"""Text compression by LLMLingua-2, with classifiers of random weights: the published one is never fetched."""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.errors import CheckpointError, CompressionError
from lclm_rag.evaluation.baselines.llmlingua import PUBLISHED_MODEL, TextCompressor
from lclm_rag.evaluation.datasets.fact_sheets import fact_sheets
from lclm_rag.prompting.template import plain_ids
from support.random_classifiers import save_classifier

SHEETS = [sheet.document.text for sheet in islice(fact_sheets(11, held_out=True), 60)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """One passage, and one of several windows of the classifier."""
    return [SHEETS[0], " ".join(SHEETS[:20])]


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name says nothing of what is in it."""
    return save_classifier(tmp_path_factory.mktemp("model"), request.param, SHEETS)


@pytest.fixture(scope="module")
def compressor(model: Path, checkpoint: Checkpoint) -> TextCompressor:
    return TextCompressor(checkpoint.inert_decoder_tokenizer, model, device="cpu")


def test_the_budget_is_held_and_nearly_used(
    compressor: TextCompressor, checkpoint: Checkpoint, texts: list[str]
) -> None:
    """As if a latent stood for 4, 8 and 16 tokens."""
    for text in texts:
        whole = len(plain_ids(checkpoint.inert_decoder_tokenizer, text))
        for ratio in (4, 8, 16):
            short = compressor.compress(text, whole // ratio)
            assert short.tokens == len(plain_ids(checkpoint.inert_decoder_tokenizer, short.text))
            assert 0.4 * (whole // ratio) < short.tokens <= whole // ratio
            assert 0 < short.rate < 1


def test_what_is_left_are_words_of_the_text_in_their_order(
    compressor: TextCompressor, texts: list[str]
) -> None:
    words = iter(re.findall(r"\w+", texts[0]))
    kept = re.findall(r"\w+", compressor.compress(texts[0], 40).text)
    assert len(kept) > 5
    assert all(word in words for word in kept)


def test_a_text_that_fits_stays_as_it_is(
    compressor: TextCompressor, checkpoint: Checkpoint
) -> None:
    text = "  Two\n\nlines, <|im_end|> and   spaces.  "
    tokens = len(plain_ids(checkpoint.inert_decoder_tokenizer, text))
    short = compressor.compress(text, tokens)
    assert (short.text, short.tokens, short.rate) == (text, tokens, 1.0)


def test_nothing_may_be_left(compressor: TextCompressor, texts: list[str]) -> None:
    short = compressor.compress(texts[0], 1)
    assert short.tokens <= 1


def test_it_is_what_the_package_says_when_it_loads_the_model_itself(
    compressor: TextCompressor, texts: list[str], model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The package goes by the folder's name, fetches OpenAI's vocabulary and seeds the process."""
    import tiktoken
    from llmlingua import PromptCompressor, prompt_compressor

    named = tmp_path / compressor._package.model_name
    named.symlink_to(model)
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: compressor._package.oai_tokenizer)
    monkeypatch.setattr(prompt_compressor, "seed_everything", lambda _: None)
    package = PromptCompressor(str(named), "cpu", {"trust_remote_code": False}, use_llmlingua2=True)
    for text in texts:
        short = compressor.compress(text, 40)
        theirs = package.compress_prompt_llmlingua2([text], rate=short.rate)
        assert short.text == theirs["compressed_prompt"]
        assert short.tokens == theirs["compressed_tokens"]


def test_digits_can_be_kept(
    compressor: TextCompressor, model: Path, checkpoint: Checkpoint, texts: list[str]
) -> None:
    keeping = TextCompressor(
        checkpoint.inert_decoder_tokenizer, model, device="cpu", keep_digits=True
    )
    digits = [len(re.findall(r"\d", c.compress(texts[1], 900).text)) for c in (compressor, keeping)]
    assert digits[0] < digits[1]
    # Numbers that the classifier's tokenizer has whole: nothing of them may go.
    mark = "▁" if "roberta" in keeping._package.model_name else ""
    number = min(w for w in keeping._package.tokenizer.vocab if re.fullmatch(rf"{mark}\d+", w))
    with pytest.raises(CompressionError, match=r"down to 10; the least it came to is \d+"):
        keeping.compress(f"{number.removeprefix(mark)} " * 300, 10)


def test_a_text_without_words_is_refused(compressor: TextCompressor) -> None:
    with pytest.raises(CompressionError, match="sees no words in '☃☃☃"):
        compressor.compress("☃" * 50, 10)


def test_a_budget_of_nothing(compressor: TextCompressor) -> None:
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        compressor.compress("Text.", 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_labels": 3}, "tells 3 labels apart"),
        ({"max_position_embeddings": 130}, "reads 128 tokens at once; LLMLingua-2 gives it 512"),
    ],
)
def test_a_model_that_is_no_such_classifier(
    changed: dict[str, int], message: str, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    folder = save_classifier(tmp_path, "xlm-roberta", SHEETS, **changed)
    with pytest.raises(CheckpointError, match=message):
        TextCompressor(checkpoint.inert_decoder_tokenizer, folder, device="cpu")


def test_other_folders_and_names(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = checkpoint.inert_decoder_tokenizer
    with pytest.raises(CheckpointError, match=r"is of type qwen3; .*xlm-roberta and bert"):
        TextCompressor(tokenizer, checkpoint.path / "encoder")
    with pytest.raises(CheckpointError, match=r"needs config\.json and weights as safe"):
        TextCompressor(tokenizer, tmp_path)
    with pytest.raises(CheckpointError, match=r"There is no folder '\./nowhere'"):
        TextCompressor(tokenizer, "./nowhere")

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match=f"'{PUBLISHED_MODEL}' is neither .* fetched: no network"
    ):
        TextCompressor(tokenizer)


def test_without_the_package_the_extra_is_named(
    model: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    with pytest.raises(ImportError, match=r"pip install 'lclm-rag\[llmlingua\]'"):
        TextCompressor(checkpoint.inert_decoder_tokenizer, model)
