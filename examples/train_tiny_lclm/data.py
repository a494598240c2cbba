"""Training batches: many questions over one context, laid out by the library's own prompt template.

Every question block sees the context and itself, not the other blocks, and its positions go on from
the end of the context. So each block is exactly the prompt that the library would make for that
question, and a context is computed once for all of them.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal

import torch

from lclm_rag.evaluation.datasets.fact_sheets import FactSheet, fact_sheets
from lclm_rag.prompting.template import PromptTemplate, plain_ids

Task = Literal["questions", "repeat", "copy"]
KINDS = ("person", "product", "place", "contract")


@dataclass
class Batch:
    context_ids: torch.Tensor  # [contexts, T], padded on the right
    context_lengths: torch.Tensor  # [contexts]
    block_ids: torch.Tensor  # [contexts, blocks, L], padded on the right
    labels: torch.Tensor  # [contexts, blocks, L]: the next token, -100 where nothing is learned
    document_ids: torch.Tensor | None  # [documents, T] for the encoder; None: pasted text
    document_lengths: torch.Tensor | None


def draw_contexts(seed: int, contexts: int, documents: int) -> list[list[FactSheet]]:
    """Half of the contexts hold one kind of sheet only, as retrieval by similar words tends to give."""
    rng = random.Random(seed)
    mixed = fact_sheets(rng.getrandbits(60), held_out=False)
    by_kind = [fact_sheets(rng.getrandbits(60), held_out=False, kinds=(k,)) for k in KINDS]
    drawn = []
    for _ in range(contexts):
        source = mixed if rng.random() < 0.5 else rng.choice(by_kind)
        drawn.append(list(itertools.islice(source, documents)))
    return drawn


def make_batch(
    template: PromptTemplate,
    ratio: int,
    *,
    seed: int,
    contexts: int,
    documents: int,
    questions: int,
    latents: bool,
    task: Task,
) -> Batch:
    """Contexts of `documents` passages each, and blocks about them.

    task "questions": up to `questions` of them about fact sheets. "repeat": one block that asks for the
    text of one sheet. "copy": the same, but the passages are random tokens: with no words to guess
    from, copying is learned for every token alike, much sooner than from text.
    """
    rng = random.Random(seed)
    end = template.special_id("<|im_end|>")
    all_contexts: list[list[int]] = []
    all_blocks: list[list[list[int]]] = []
    all_labels: list[list[list[int]]] = []
    encoder_inputs: list[list[int]] = []
    drawn = draw_contexts(rng.getrandbits(60), contexts, 0 if task == "copy" else documents)
    for sheets in drawn:
        if task == "copy":
            texts = [_random_tokens(rng, template) for _ in range(documents)]
        else:
            texts = [plain_ids(template.inert, sheet.document.text) for sheet in sheets]
        bodies = texts
        if latents:
            bodies = [template.memory_span(-(-len(text) // ratio)) for text in texts]
            encoder_inputs += texts
        all_contexts.append(template.context(template.start, bodies)[0])
        if task == "questions":
            # With a leading space an answer has the tokens that it has inside a sentence.
            asks = [
                (question, plain_ids(template.inert, f" {answer}"))
                for question, answer in _draw_questions(rng, sheets, questions)
            ]
        else:
            number = rng.randrange(documents)
            asks = [(f"Repeat passage {number + 1}.", texts[number])]
        blocks, labels = [], []
        for question, answer in asks:
            asked = template.ends(question).after
            said = [*answer, end]
            blocks.append(asked + said[:-1])
            labels.append([-100] * (len(asked) - 1) + said)
        all_blocks.append(blocks)
        all_labels.append(labels)

    return pad_batch(template, ratio, all_contexts, all_blocks, all_labels, encoder_inputs)


def pad_batch(
    template: PromptTemplate,
    ratio: int,
    contexts: list[list[int]],
    blocks: list[list[list[int]]],
    labels: list[list[list[int]]],
    documents: list[list[int]],
) -> Batch:
    """Lists of token ids as a batch: contexts, the blocks of each, and the documents that are latents."""
    document_ids = document_lengths = None
    if documents:
        document_lengths = torch.tensor([len(text) for text in documents])
        document_ids = _pad(documents, 0, multiple=ratio)
    end = template.special_id("<|im_end|>")
    n_blocks = max(map(len, blocks))
    for of_context, its_labels in zip(blocks, labels, strict=True):
        of_context += [[end]] * (n_blocks - len(of_context))
        its_labels += [[-100]] * (n_blocks - len(its_labels))
    shape = (len(contexts), n_blocks, -1)
    return Batch(
        context_ids=_pad(contexts, 0),
        context_lengths=torch.tensor([len(ids) for ids in contexts]),
        block_ids=_pad(list(itertools.chain(*blocks)), 0).view(shape),
        labels=_pad(list(itertools.chain(*labels)), -100).view(shape),
        document_ids=document_ids,
        document_lengths=document_lengths,
    )


def _random_tokens(rng: random.Random, template: PromptTemplate) -> list[int]:
    size = template.markup.get_vocab_size()
    first = len(template.markup.get_added_tokens_decoder())  # Special tokens come first.
    return [rng.randrange(first, size) for _ in range(rng.randint(8, 40))]


def _pad(rows: list[list[int]], value: int, multiple: int = 1) -> torch.Tensor:
    longest = -(-max(len(row) for row in rows) // multiple) * multiple
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _draw_questions(
    rng: random.Random, sheets: list[FactSheet], count: int
) -> list[tuple[str, str]]:
    """Evenly over sheets and kinds of fact; each fact is asked for once at most."""
    by_fact: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for sheet in sheets:
        for question in sheet.questions:
            by_fact.setdefault((sheet.name, question.attribute), []).append(
                (question.question, question.answer)
            )
    chosen = rng.sample(list(by_fact.values()), min(count, len(by_fact)))
    return [rng.choice(phrasings) for phrasings in chosen]
