"""Batches of stage C: long codes and UUIDs, passages of both forms in one prompt, and asking for more.

In the style "skim" a block is a whole chat: the question, "EXPAND: 3", the passage word for word,
"ANSWER: …"; what it says is the library's own (`lclm_rag.querying.expansion`).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

from data import Batch, draw_contexts, pad_batch

from lclm_rag.evaluation.datasets.exact_strings import exact_string_questions, with_exact_strings
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
from lclm_rag.prompting.template import PromptTemplate, plain_ids
from lclm_rag.querying.expansion import Given, next_messages

Style = Literal["pasted", "mixed", "latents", "skim"]

_WITH_STRINGS = 0.7
_ASKED_FOR_STRINGS = 0.5


def make_expansion_batch(
    template: PromptTemplate,
    between: list[int],
    ratio: int,
    *,
    seed: int,
    contexts: int,
    documents: int,
    questions: int,
    style: Style,
) -> Batch:
    """between: token ids from an answer's words to the next user's, as the chat template has them.

    "pasted": all passages as text. "mixed": one or two as text, about which codes and ids are asked.
    "latents": none as text, codes and ids asked all the same. "skim": none, and codes and ids are to be
    read by expanding their passage.
    """
    rng = random.Random(seed)
    shown = template
    if style == "skim":
        offer = template.frame.expansion.offer
        shown = replace(template, instruction=template.instruction + offer)
    drawn = draw_contexts(rng.getrandbits(60), contexts, documents)
    all_contexts, all_blocks, all_labels = [], [], []
    encoder_inputs: list[list[int]] = []
    for plain in drawn:
        sheets = [with_exact_strings(s, rng) if rng.random() < _WITH_STRINGS else s for s in plain]
        texts = [plain_ids(template.inert, sheet.document.text) for sheet in sheets]
        pasted = _pasted(rng, documents, style)
        bodies = [
            text if i in pasted else template.memory_span(-(-len(text) // ratio))
            for i, text in enumerate(texts)
        ]
        encoder_inputs += [text for i, text in enumerate(texts) if i not in pasted]
        all_contexts.append(shown.context(shown.start, bodies)[0])
        blocks, labels = [], []
        for number, question in _draw(rng, sheets, questions, pasted, style):
            turns = _turns(template, between, sheets, number, question, style)
            block: list[int] = []
            learned: list[int] = []
            for given, said in turns:
                block += given + said
                learned += [-100] * len(given) + said
            # A label is the token that follows.
            blocks.append(block[:-1])
            labels.append(learned[1:])
        all_blocks.append(blocks)
        all_labels.append(labels)
    return pad_batch(template, ratio, all_contexts, all_blocks, all_labels, encoder_inputs)


def _pasted(rng: random.Random, documents: int, style: Style) -> set[int]:
    if style == "pasted":
        return set(range(documents))
    if style == "mixed":
        return set(rng.sample(range(documents), min(documents, rng.randint(1, 2))))
    return set()


def _draw(
    rng: random.Random, sheets: list[FactSheet], count: int, pasted: set[int], style: Style
) -> list[tuple[int, FactQuestion]]:
    """(number of the passage, question), about half of them for codes and ids where these can be read."""
    strings, others = [], []
    for i, sheet in enumerate(sheets):
        asked = exact_string_questions(sheet)
        others += [(i + 1, q) for q in sheet.questions if q not in asked]
        if i in pasted or style in ("latents", "skim"):
            strings += [(i + 1, q) for q in asked]
    chosen = rng.sample(strings, min(len(strings), round(count * _ASKED_FOR_STRINGS)))
    return chosen + rng.sample(others, min(len(others), count - len(chosen)))


def _turns(
    template: PromptTemplate,
    between: list[int],
    sheets: list[FactSheet],
    number: int,
    question: FactQuestion,
    style: Style,
) -> list[tuple[list[int], list[int]]]:
    """What is given and what is said, turn by turn."""
    end = [template.end_of_turn]
    # With a leading space an answer has the tokens that it has inside a sentence.
    if style != "skim":
        answer = plain_ids(template.inert, f" {question.answer}")
        return [(template.ends(question.question).after, answer + end)]
    answer = plain_ids(template.inert, f"ANSWER: {question.answer}")
    first = template.ends(question.question).after
    if question not in exact_string_questions(sheets[number - 1]):
        return [(first, answer + end)]
    passage = (number, sheets[number - 1].document.text)
    given = Given((passage,), (), question.question, left=2, last=False)
    ((_, turn),) = next_messages(template.frame, given, by_tool=False)
    words = plain_ids(template.inert, turn)
    return [
        (first, plain_ids(template.inert, f"EXPAND: {number}") + end),
        (between[1:] + words + template.markup_ids(template.closing), answer + end),
    ]


def between_turns(template: PromptTemplate) -> list[int]:
    """`<|im_end|>` of an answer, and what opens the user's next turn."""
    return template.markup_ids("<|im_end|>\n<|im_start|>user\n")
