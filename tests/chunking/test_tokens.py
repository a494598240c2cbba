"""Passages and token ids cut out of one tokenization are those of each stretch tokenized by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from lclm_rag import Document
from lclm_rag.checkpoint import Checkpoint
from lclm_rag.chunking import tokens
from lclm_rag.chunking.splitting import split_document
from lclm_rag.chunking.tokens import TextTokens

WORDS = (
    "the and of letters Müller naïve café e\u0301 l'été don't It's 3.14 2026 12,345 -- ... (see) "
    "[x] #tag a_b foo.bar() \u200b 日本語の文章です。 한국어 العربية 👨‍👩‍👧 🇩🇪 \ufb01ne Ⅷ x\u0301\u0323 ﷺ"
).split(" ")
BREAKS = [" ", " ", " ", "  ", "\n", "\n\n", " \n ", ". ", ".\n\n", "\r\n", "\t", "", "\n# Title\n"]


def text_of(seed: int, words: int) -> str:
    """Words and breaks of many kinds, and now and then what is far longer than a word."""
    draw = random.Random(seed)
    long = ["x" * 300, "=" * 200, "7" * 90, "\n" * 70, " " * 150, "한" * 120]
    parts = []
    for _ in range(words):
        parts.append(draw.choice(long) if draw.random() < 0.01 else draw.choice(WORDS))
        parts.append(draw.choice(BREAKS))
    return "".join(parts) + "end"


def trained(make: Callable[[], tuple[Tokenizer, Any]]) -> Tokenizer:
    tokenizer, trainer = make()
    tokenizer.train_from_iterator([text_of(seed, 300) for seed in range(20)], trainer)
    return tokenizer


def gpt2() -> tuple[Tokenizer, Any]:
    """A space before the first word, and spaces left out of the offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet)


def qwen() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet)


def sentencepiece() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"]
    )


def one_word() -> tuple[Tokenizer, Any]:
    """No word ends before the text does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    return tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"])


def bert() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"])


@pytest.fixture(scope="module", params=["bundled", qwen, gpt2, sentencepiece, bert, one_word])
def tokenizer(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Tokenizer:
    if request.param == "bundled":
        return checkpoint.encoder_tokenizer
    return trained(request.param)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of some hundred characters are cut and joined as those of millions are."""
    for name, value in (("_CHUNK", 160), ("_OVERLAP", 80), ("_AT_ONCE", 320), ("_EDGE", 20)):
        monkeypatch.setattr(tokens, name, value)


def both_ways(
    tokenizer: Tokenizer, text: str, limit: int, *, headers: bool
) -> list[list[tuple[int, int, str, list[int]]]]:
    """Start, end, header and ids of each passage: each stretch by itself, and out of one tokenization."""

    def offsets(stretch: str) -> list[tuple[int, int]]:
        return list(tokenizer.encode(stretch, add_special_tokens=False).offsets)

    document = Document("d", text, {"title": "A title of some words"})
    whole = TextTokens.of_all(["Another text.", text], tokenizer)[1]
    found = []
    for known in (None, whole):
        rows = []
        passages = split_document(
            document, offsets, limit, contextual_headers=headers, tokens=known
        )
        for passage in passages:
            if known is None:
                ids = tokenizer.encode(passage.content, add_special_tokens=False).ids
            else:
                ids = known.ids(passage)
            rows.append((passage.start, passage.end, passage.header, ids))
        found.append(rows)
    return found


@pytest.mark.usefixtures("small_chunks")
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    words=st.integers(1, 400),
    limit=st.integers(24, 120),
    headers=st.booleans(),
)
def test_passages_and_ids_are_those_of_each_stretch_by_itself(
    tokenizer: Tokenizer, seed: int, words: int, limit: int, headers: bool
) -> None:
    alone, together = both_ways(tokenizer, text_of(seed, words), limit, headers=headers)
    assert together == alone


def test_most_of_a_long_text_is_tokenized_once(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.encoder_tokenizer
    read: list[int] = []

    class Counting:
        def encode_batch(self, texts: list[str], **options: Any) -> Any:
            read.append(sum(map(len, texts)))
            return tokenizer.encode_batch(texts, **options)

    draw = random.Random(0)
    sentence = ["river", "stone", "letter", "mayor", "bridge", "signed", "was", "the", "of", "in"]
    text = ". ".join(" ".join(draw.choices(sentence, k=12)).capitalize() for _ in range(1_500))
    counting: Any = Counting()
    (whole,) = TextTokens.of_all([text], counting)
    document = Document("d", text)
    passages = split_document(document, checkpoint.token_offsets, 512, tokens=whole)
    ids = [whole.ids(passage) for passage in passages]
    assert ids == checkpoint.encoder_token_ids([passage.text for passage in both(text, checkpoint)])
    assert sum(read) < 1.4 * len(text)


def both(text: str, checkpoint: Checkpoint) -> list[Any]:
    return list(split_document(Document("d", text), checkpoint.token_offsets, 512))


def test_a_long_text_is_tokenized_as_far_as_it_is_asked_for(checkpoint: Checkpoint) -> None:
    text = "Some words of a sentence. " * 60_000
    (whole,) = TextTokens.of_all([text], checkpoint.encoder_tokenizer)
    document = Document("d", text)
    at_once = len(whole._tokens)
    most = 0
    for passage in split_document(document, checkpoint.token_offsets, 512, tokens=whole):
        whole.ids(passage)
        most = max(most, len(whole._tokens))
    assert at_once < len(text) / 6  # Of about half as many tokens as characters.
    assert most < 2.5 * at_once
