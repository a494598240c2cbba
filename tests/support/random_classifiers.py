"""Classifiers of random weights: of tokens, as LLMLingua-2 has them, and of pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 64, "num_labels": 2}


def save_classifier(folder: Path, kind: str, texts: Sequence[str], **changed: Any) -> Path:
    """kind: "bert" or "xlm-roberta". texts: what its tokenizer is made from. changed: sizes."""
    torch.manual_seed(3)
    if kind == "bert":
        tokenizer, marks = _word_pieces(texts)
        config: Any = BertConfig(vocab_size=len(tokenizer), **SHAPE | changed)
        classifier: Any = BertForTokenClassification(config)
    else:
        tokenizer, marks = _sentence_pieces(texts)
        ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in marks}
        ids.pop("unk_token_id")
        size = {"max_position_embeddings": 514} | SHAPE | changed
        config = XLMRobertaConfig(vocab_size=len(tokenizer), **size, **ids)
        classifier = XLMRobertaForTokenClassification(config)
    # Far apart, so that words differ in how likely they are kept.
    torch.nn.init.normal_(classifier.classifier.weight, std=0.3)
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_cross_encoder(folder: Path, texts: Sequence[str], **changed: Any) -> Path:
    """A cross-encoder that reads up to 64 tokens. texts: what its tokenizer is made from."""
    torch.manual_seed(5)
    tokenizer, _ = _word_pieces(texts)
    shape = SHAPE | {"num_labels": 1, "max_position_embeddings": 64} | changed
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **shape))
    # Far apart, so that passages differ in their scores.
    for each in (model.classifier, model.bert.pooler.dense, *_attention(model)):
        torch.nn.init.normal_(each.weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _attention(model: BertForSequenceClassification) -> list[torch.nn.Linear]:
    return [layer.attention.output.dense for layer in model.bert.encoder.layer]


def _word_pieces(texts: Sequence[str]) -> tuple[PreTrainedTokenizerFast, list[tuple[str, str]]]:
    marks = [("pad", "[PAD]"), ("unk", "[UNK]"), ("cls", "[CLS]"), ("sep", "[SEP]")]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = [mark for _, mark in marks]
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    )
    made.decoder = decoders.WordPiece()
    return _fast(made, marks), marks


def _sentence_pieces(texts: Sequence[str]) -> tuple[PreTrainedTokenizerFast, list[tuple[str, str]]]:
    marks = [("bos", "<s>"), ("pad", "<pad>"), ("eos", "</s>"), ("unk", "<unk>")]
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=[mark for _, mark in marks],
        unk_token="<unk>",
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.decoder = decoders.Metaspace()
    return _fast(made, marks), marks


def _fast(made: Tokenizer, marks: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **{f"{name}_token": mark for name, mark in marks}
    )
